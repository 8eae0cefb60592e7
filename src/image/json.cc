// A record as JSON in crit's conventions. How a field is meant to be read is said in the schema (proto/show.proto).
#include <arpa/inet.h>
#include <sys/sysmacros.h>

#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <utility>

#include "image/show.h"
#include "show.pb.h"

namespace stasis::image {
namespace {

namespace pb = google::protobuf;
using Json = nlohmann::ordered_json;
using Field = pb::FieldDescriptor;

struct Name {
  uint64_t value;
  std::string_view name;
};

constexpr Name protections[] = {{1, "PROT_READ"}, {2, "PROT_WRITE"}, {4, "PROT_EXEC"}};
constexpr Name map_flags[] = {
    {1, "MAP_SHARED"}, {2, "MAP_PRIVATE"}, {8, "MAP_DROPPABLE"}, {0x20, "MAP_ANON"}, {0x100, "MAP_GROWSDOWN"}};
constexpr Name mapping_kinds[] = {
    {1u << 0, "VMA_AREA_REGULAR"},  {1u << 1, "VMA_AREA_STACK"},   {1u << 2, "VMA_AREA_VSYSCALL"},
    {1u << 3, "VMA_AREA_VDSO"},     {1u << 5, "VMA_AREA_HEAP"},    {1u << 6, "VMA_FILE_PRIVATE"},
    {1u << 7, "VMA_FILE_SHARED"},   {1u << 8, "VMA_ANON_SHARED"},  {1u << 9, "VMA_ANON_PRIVATE"},
    {1u << 10, "VMA_AREA_SYSVIPC"}, {1u << 11, "VMA_AREA_SOCKET"}, {1u << 12, "VMA_AREA_VVAR"},
    {1u << 13, "VMA_AREA_AIORING"}, {1u << 14, "VMA_AREA_MEMFD"},  {1u << 15, "VMA_AREA_SHSTK"},
    {1u << 17, "VMA_AREA_UPROBES"}, {1u << 31, "VMA_UNSUPP"}};
constexpr Name open_flags[] = {
    {01, "O_WRONLY"},         {02, "O_RDWR"},          {0100, "O_CREAT"},       {0200, "O_EXCL"},
    {0400, "O_NOCTTY"},       {01000, "O_TRUNC"},      {02000, "O_APPEND"},     {04000, "O_NONBLOCK"},
    {010000, "O_DSYNC"},      {020000, "FASYNC"},      {040000, "O_DIRECT"},    {0100000, "O_LARGEFILE"},
    {0200000, "O_DIRECTORY"}, {0400000, "O_NOFOLLOW"}, {01000000, "O_NOATIME"}, {02000000, "O_CLOEXEC"}};
constexpr Name seals[] = {
    {1, "F_SEAL_SEAL"}, {2, "F_SEAL_SHRINK"}, {4, "F_SEAL_GROW"}, {8, "F_SEAL_WRITE"}, {16, "F_SEAL_FUTURE_WRITE"}};
constexpr Name page_flags[] = {{1, "PE_PARENT"}, {2, "PE_LAZY"}, {4, "PE_PRESENT"}};

constexpr std::pair<std::string_view, std::span<const Name>> flag_sets[] = {
    {"mmap.prot", protections},  {"mmap.flags", map_flags}, {"mmap.status", mapping_kinds},
    {"rfile.flags", open_flags}, {"seals.flags", seals},    {"pmap.flags", page_flags}};

constexpr Name task_states[] = {{1, "Alive"}, {3, "Zombie"}, {6, "Stopped"}};
constexpr Name families[] = {{1, "UNIX"}, {2, "INET"}, {10, "INET6"}, {16, "NETLINK"}, {17, "PACKET"}};
constexpr Name socket_types[] = {{1, "STREAM"}, {2, "DGRAM"}, {3, "RAW"}, {5, "SEQPACKET"}, {10, "PACKET"}};
constexpr Name socket_states[] = {{1, "ESTABLISHED"}, {2, "SYN_SENT"},  {3, "SYN_RECV"}, {4, "FIN_WAIT1"},
                                  {5, "FIN_WAIT2"},   {6, "TIME_WAIT"}, {7, "CLOSE"},    {8, "CLOSE_WAIT"},
                                  {9, "LAST_ACK"},    {10, "LISTEN"}};
constexpr Name protocols[] = {{0, "IP"}, {6, "TCP"}, {17, "UDP"}, {136, "UDPLITE"}};

constexpr std::pair<std::string_view, std::span<const Name>> value_sets[] = {{"gen.task_state", task_states},
                                                                             {"sk.family", families},
                                                                             {"sk.type", socket_types},
                                                                             {"sk.state", socket_states},
                                                                             {"sk.proto", protocols}};

template <size_t Count>
std::optional<std::span<const Name>> find(const std::pair<std::string_view, std::span<const Name>> (&sets)[Count],
                                          std::string_view name) {
  for (const auto& [set, names] : sets)
    if (set == name) return names;
  return std::nullopt;
}

std::string flag_names(uint64_t value, std::span<const Name> names) {
  std::string text;
  const auto add = [&](std::string_view word) { text.append(text.empty() ? "" : " | ").append(word); };
  for (const Name& flag : names)
    if (value & flag.value) {
      add(flag.name);
    }
  for (const Name& flag : names) value &= ~flag.value;
  if (value != 0) add(fmt::format("0x{:x}", value));
  return text;
}

template <typename Integer>
std::string hexadecimal(Integer value) {
  if (value < 0) return fmt::format("-0x{:x}", 0 - static_cast<uint64_t>(value));
  return fmt::format("0x{:x}", value);
}

std::string device(uint64_t value, bool user_space_encoding) {
  constexpr unsigned minor_bits = 20;
  if (user_space_encoding) return fmt::format("{}:{}", major(value), minor(value));
  return fmt::format("{}:{}", value >> minor_bits, value & ((1u << minor_bits) - 1));
}

template <typename Integer>
Json number(const Field* field, Integer value, bool hex) {
  const auto& as = field->options().GetExtension(show::as);
  if (hex || as.hex()) return hexadecimal(value);
  const auto bits = static_cast<uint64_t>(value);
  if (as.dev() || as.odev()) return device(bits, as.odev());
  if (!as.flags().empty()) {
    const auto names = find(flag_sets, as.flags());
    return names ? flag_names(bits, *names) : hexadecimal(value);
  }
  if (!as.dict().empty()) {
    if (const auto names = find(value_sets, as.dict() + "." + field->name()))
      for (const Name& name : *names)
        if (name.value == bits) return std::string(name.name);
  }
  return value;
}

// RFC 2045 as Python's quopri writes it: line ends stay, blanks are quoted only before one.
std::string quoted_printable(std::string_view text) {
  constexpr size_t line_limit = 76;
  std::string out;
  size_t column = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<uint8_t>(text[i]);
    const bool last = i + 1 == text.size();
    const bool line_end = last || text[i + 1] == '\n';
    if (c == '\n') {
      out += '\n';
      column = 0;
      continue;
    }
    const bool blank = c == ' ' || c == '\t';
    const bool quote = c > 126 || c == '=' || (c < 33 && !blank && c != '\r') || (blank && line_end) ||
                       (c == '.' && column == 0 && line_end);
    const size_t width = quote ? 3 : 1;
    if (quote ? column + width >= line_limit : !line_end && column + width >= line_limit) {
      out += "=\n";
      column = 0;
    }
    out += quote ? fmt::format("={:02X}", c) : std::string(1, text[i]);
    column += width;
  }
  return out;
}

Json bytes_value(const Field* field, const std::string& value) {
  if (field->type() == Field::TYPE_STRING) return value;
  const std::string& conversion = field->options().GetExtension(show::as).conv();
  if (conversion == "text") return value;
  if (conversion == "unix_name") return quoted_printable(value);
  return base64({reinterpret_cast<const uint8_t*>(value.data()), value.size()});
}

Json object(const pb::Message& message, bool hex);

/// A single value, or element `index` of a repeated one.
Json value(const pb::Message& message, const Field* field, std::optional<int> index, bool hex) {
  const auto& reflection = *message.GetReflection();
  const bool all_hex = hex || field->options().GetExtension(show::as).hex();
#define STASIS_GET(type) \
  (index ? reflection.GetRepeated##type(message, field, *index) : reflection.Get##type(message, field))
  switch (field->cpp_type()) {
    case Field::CPPTYPE_INT32:
      return number<int64_t>(field, STASIS_GET(Int32), hex);
    case Field::CPPTYPE_INT64:
      return number<int64_t>(field, STASIS_GET(Int64), hex);
    case Field::CPPTYPE_UINT32:
      return number<uint64_t>(field, STASIS_GET(UInt32), hex);
    case Field::CPPTYPE_UINT64:
      return number<uint64_t>(field, STASIS_GET(UInt64), hex);
    case Field::CPPTYPE_DOUBLE:
      return STASIS_GET(Double);
    case Field::CPPTYPE_FLOAT:
      return STASIS_GET(Float);
    case Field::CPPTYPE_BOOL:
      return STASIS_GET(Bool);
    case Field::CPPTYPE_ENUM:
      return STASIS_GET(Enum)->name();
    case Field::CPPTYPE_STRING:
      return bytes_value(field, STASIS_GET(String));
    case Field::CPPTYPE_MESSAGE:
      return object(
          index ? reflection.GetRepeatedMessage(message, field, *index) : reflection.GetMessage(message, field),
          all_hex);
  }
#undef STASIS_GET
  return nullptr;
}

/// Words in network order: one is an IPv4 address, four are an IPv6 address.
std::optional<std::string> address(const pb::Message& message, const Field* field) {
  const int words = message.GetReflection()->FieldSize(message, field);
  if ((words != 1 && words != 4) || field->cpp_type() != Field::CPPTYPE_UINT32) return std::nullopt;
  std::array<uint32_t, 4> binary{};
  for (int i = 0; i < words; ++i) binary[i] = message.GetReflection()->GetRepeatedUInt32(message, field, i);
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (!inet_ntop(words == 1 ? AF_INET : AF_INET6, binary.data(), text.data(), text.size())) return std::nullopt;
  return text.data();
}

Json repeated(const pb::Message& message, const Field* field, bool hex) {
  Json values = Json::array();
  if (field->options().GetExtension(show::as).ipadd())
    if (const auto text = address(message, field)) {
      values.push_back(*text);
      return values;
    }
  const int count = message.GetReflection()->FieldSize(message, field);
  for (int i = 0; i < count; ++i) values.push_back(value(message, field, i, hex));
  return values;
}

Json object(const pb::Message& message, bool hex) {
  Json json = Json::object();
  std::vector<const Field*> present;
  message.GetReflection()->ListFields(message, &present);
  for (const Field* field : present) {
    const auto& as = field->options().GetExtension(show::as);
    json[as.name().empty() ? field->name() : as.name()] =
        field->is_repeated() ? repeated(message, field, hex) : value(message, field, std::nullopt, hex);
  }
  return json;
}

}  // namespace

Json to_json(const pb::Message& message) { return object(message, false); }

std::string base64(ByteView bytes) {
  constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  constexpr size_t bytes_per_line = 57;
  std::string text;
  text.reserve(bytes.size() / 3 * 4 + bytes.size() / bytes_per_line + 8);
  for (size_t start = 0; start < bytes.size(); start += 3) {
    const size_t count = std::min<size_t>(3, bytes.size() - start);
    uint32_t group = 0;
    for (size_t i = 0; i < 3; ++i) group = group << 8 | (i < count ? bytes[start + i] : 0);
    for (size_t i = 0; i < 4; ++i) text += i <= count ? alphabet[group >> (18 - 6 * i) & 63] : '=';
    if ((start + 3) % bytes_per_line == 0 || start + 3 >= bytes.size()) text += '\n';
  }
  return text;
}

}  // namespace stasis::image
