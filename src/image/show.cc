#include "image/show.h"

#include <nlohmann/json.hpp>

#include "devices.pb.h"
#include "namespaces.pb.h"
#include "pipes.pb.h"
#include "regular.pb.h"
#include "sockets.pb.h"

namespace stasis::image {
namespace {

namespace pb = google::protobuf;
using Json = nlohmann::ordered_json;

/// The part of a payload that fills up a multiple of `unit`.
constexpr uint64_t padding(uint64_t size, uint64_t unit) { return (unit - size % unit) % unit; }

Result<std::string> encoded(Reader& reader, uint64_t length) { return base64(TRY(reader.raw(length))); }

Result<Json> semaphores(Reader& reader, const ipc_sem_entry& set) {
  const uint64_t size = uint64_t{set.nsems()} * sizeof(uint16_t);
  const Bytes bytes = TRY(reader.raw(size));
  TRY(reader.skip(padding(size, sizeof(uint64_t))));
  Json values = Json::array();
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) values.push_back(bytes[i] | bytes[i + 1] << 8);
  return values;
}

Result<Json> messages(Reader& reader, const ipc_msg_entry& queue) {
  Json values = Json::array();
  for (uint32_t i = 0; i < queue.qnum(); ++i) {
    ipc_msg message;
    if (!TRY(reader.next(message))) break;
    values.push_back(to_json(message));
    values.push_back(TRY(encoded(reader, message.msize())));
    TRY(reader.skip(padding(message.msize(), sizeof(uint64_t))));
  }
  return values;
}

Result<Json> ghost(Reader& reader, const pb::Message& record) {
  if (const auto* chunk = dynamic_cast<const ghost_chunk_entry*>(&record)) return TRY(encoded(reader, chunk->len()));
  if (static_cast<const ghost_file_entry&>(record).chunks()) return Json();
  return TRY(encoded(reader, reader.remaining()));
}

/// What follows `record`, which is of the message of a kind with this payload; null: nothing.
Result<Json> payload(Payload kind, Reader& reader, const pb::Message& record) {
  switch (kind) {
    case Payload::none:
      return Json();
    case Payload::pipe_data:
      return TRY(encoded(reader, static_cast<const pipe_data_entry&>(record).bytes()));
    case Payload::ghost:
      return ghost(reader, record);
    case Payload::socket_packet:
      return TRY(encoded(reader, static_cast<const sk_packet_entry&>(record).length()));
    case Payload::tcp_queues: {
      const auto& stream = static_cast<const tcp_stream_entry&>(record);
      Json queues;
      queues["inq"] = TRY(encoded(reader, stream.inq_len()));
      queues["outq"] = TRY(encoded(reader, stream.outq_len()));
      return queues;
    }
    case Payload::bpf_map: {
      const auto& map = static_cast<const bpfmap_data_entry&>(record);
      return TRY(encoded(reader, uint64_t{map.keys_bytes()} + map.values_bytes()));
    }
    case Payload::ipc_shared_memory: {
      const uint64_t size = static_cast<const ipc_shm_entry&>(record).size();
      Json text = TRY(encoded(reader, size));
      TRY(reader.skip(padding(size, sizeof(uint32_t))));
      return text;
    }
    case Payload::ipc_semaphores:
      return semaphores(reader, static_cast<const ipc_sem_entry&>(record));
    case Payload::ipc_messages:
      return messages(reader, static_cast<const ipc_msg_entry&>(record));
  }
  return Json();
}

/// The message of record number `index`: some kinds begin with another one.
std::string_view message_of(const FileKind& kind, uint64_t index) {
  if (kind.payload == Payload::ghost && index > 0) return "ghost_chunk_entry";
  return index == 0 && !kind.head.empty() ? kind.head : kind.message;
}

Result<Json> file_json(const Directory& directory, std::string_view file) {
  auto [kind, reader] = TRY(directory.identify(file));
  Json json;
  json["magic"] = kind->magic_name;
  if (kind->raw()) {
    json["size"] = reader.remaining();
    return json;
  }
  Json& entries = json["entries"] = Json::array();
  for (uint64_t index = 0;; ++index) {
    const auto record = new_record(message_of(*kind, index));
    if (!record) return fail(Error::internal("show " + std::string(file), "its message is not listed"));
    if (!TRY(reader.next(*record))) break;
    Json entry = to_json(*record);
    Json extra = TRY(payload(kind->payload, reader, *record));
    if (!extra.is_null()) entry["extra"] = std::move(extra);
    entries.push_back(std::move(entry));
  }
  return json;
}

std::string text(const Json& json, bool indented) {
  // File names need not be UTF-8: whatever is not becomes U+FFFD.
  return json.dump(indented ? 4 : -1, ' ', true, Json::error_handler_t::replace);
}

}  // namespace

Result<std::string> show_file(const Directory& directory, std::string_view file, bool indented) {
  return text(TRY(file_json(directory, file)), indented);
}

Result<std::string> show_directory(const Directory& directory, bool indented) {
  Json json = Json::object();
  for (const std::string& file : TRY(directory.list()))
    if (parse_name(file)) json[file] = TRY(file_json(directory, file));
  for (const FileKind& kind : file_kinds()) {
    const std::string file = file_name(kind.pattern);
    if (kind.service && directory.has(file)) json[file] = TRY(file_json(directory, file));
  }
  if (json.empty()) return fail(Error::invalid("show", "the directory holds no images", directory.path()));
  return text(json, indented);
}

}  // namespace stasis::image
