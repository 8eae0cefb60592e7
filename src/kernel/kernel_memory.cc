#include "kernel/kernel_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/bpf.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "kernel/bpf.h"
#include "kernel/proc.h"
#include "kernel/process.h"

namespace stasis::kernel {
namespace {

constexpr std::string_view btf_path = "/sys/kernel/btf/vmlinux";
constexpr uint16_t btf_magic = 0xeb9f;
constexpr uint32_t kind_int = 1, kind_pointer = 2, kind_array = 3, kind_struct = 4, kind_union = 5, kind_enum = 6,
                   kind_typedef = 8, kind_volatile = 9, kind_const = 10, kind_restrict = 11, kind_function = 12,
                   kind_function_type = 13, kind_variable = 14, kind_section = 15, kind_decl_tag = 17,
                   kind_type_tag = 18, kind_enum64 = 19, last_kind = 19;
constexpr size_t member_size = 12;

/// What follows a type of this kind with so many members.
size_t size_behind(uint32_t kind, uint32_t count) {
  switch (kind) {
    case kind_int:
    case kind_variable:
    case kind_decl_tag:
      return 4;
    case kind_array:
      return 12;
    case kind_struct:
    case kind_union:
    case kind_section:
    case kind_enum64:
      return size_t{12} * count;
    case kind_enum:
    case kind_function_type:
      return size_t{8} * count;
    default:
      return 0;
  }
}

std::unexpected<Error> malformed(std::string cause) {
  return fail(Error::invalid("read the kernel's types", std::move(cause), std::string(btf_path)));
}

using namespace bpf;

/// The word at an address; of address 0 the calling task's own.
constexpr std::array reading{
    move(6, 1),
    load(3, 6, 0),
    skip_if_zero(3, 7),
    move(1, frame),
    add(1, -8),
    set(2, 8),
    helper(BPF_FUNC_probe_read_kernel),
    load(1, frame, -8),
    store(6, Question::answer_at, 1),
    leave(),
    helper(BPF_FUNC_get_current_task),
    store(6, Question::answer_at, 0),
    set(0, 0),
    leave(),
};

}  // namespace

bool KernelTypes::has_name(uint32_t offset, std::string_view name) const {
  const size_t left = text_.size() - strings_;
  if (offset >= left || left - offset <= name.size()) return false;
  const uint8_t* begin = text_.data() + strings_ + offset;
  return std::memcmp(begin, name.data(), name.size()) == 0 && begin[name.size()] == 0;
}

Result<KernelTypes> KernelTypes::parse(ByteView text, std::shared_ptr<const void> holder) {
  constexpr size_t header = 24, usual_types = 1 << 17;
  KernelTypes types;
  types.holder_ = std::move(holder);
  types.text_ = text;
  if (text.size() < header || text.size() > UINT32_MAX) return malformed("it is too short, or too long");
  const uint64_t begin = types.word_at(4), type_begin = begin + types.word_at(8),
                 type_end = type_begin + types.word_at(12), strings = begin + types.word_at(16),
                 strings_end = strings + types.word_at(20);
  if ((types.word_at(0) & 0xffff) != btf_magic || begin < header || type_end > text.size() || strings_end > text.size())
    return malformed("its header is wrong");
  types.strings_ = strings;
  types.places_.reserve(std::min(usual_types, text.size() / size_of_type));
  types.places_.push_back(0);
  for (size_t at = type_begin; at < type_end;) {
    if (type_end - at < size_of_type) return malformed("it ends within a type");
    const Type type = types.type_at(at);
    if (kind(type) == 0 || kind(type) > last_kind)
      return malformed(fmt::format("a type of an unknown kind, {}", kind(type)));
    types.places_.push_back(static_cast<uint32_t>(at));
    at = type.more + size_behind(kind(type), count(type));
    if (at > type_end) return malformed("it ends within a type");
  }
  return types;
}

/// A handful is asked for, of tens of thousands: they are not worth an index.
std::optional<uint32_t> KernelTypes::named(uint32_t wanted, std::string_view name) const {
  for (uint32_t id = 1; id < places_.size(); ++id) {
    const Type type = type_at(places_[id]);
    if (kind(type) == wanted && has_name(type.name, name)) return id;
  }
  return std::nullopt;
}

std::optional<KernelField> KernelTypes::field(std::string_view structure, std::string_view name) const {
  const auto found = named(kind_struct, structure);
  return found ? find(type(*found), name, 0) : std::nullopt;
}

std::optional<uint32_t> KernelTypes::function(std::string_view name) const { return named(kind_function, name); }

Result<KernelTypes> KernelTypes::read() {
  const std::string path(btf_path);
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status{};
  if (!fd.valid() || fstat(fd.get(), &status) != 0) return fail_errno("read the kernel's types", path);
  const auto size = static_cast<size_t>(status.st_size);
  void* mapped = mmap(nullptr, size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd.get(), 0);
  if (mapped != MAP_FAILED) {
    const std::shared_ptr<const void> holder(mapped, [size](const void* at) { munmap(const_cast<void*>(at), size); });
    return parse({static_cast<const uint8_t*>(mapped), size}, holder);
  }
  const auto text = std::make_shared<const std::string>(TRY(read_file(path)));
  return parse({reinterpret_cast<const uint8_t*>(text->data()), text->size()}, text);
}

std::optional<KernelField> KernelTypes::find(const Type& structure, std::string_view name, int depth) const {
  constexpr int deepest = 8;
  const bool has_bit_fields = structure.info >> 31 != 0;
  for (uint32_t i = 0; i < count(structure) && depth < deepest; ++i) {
    const size_t at = structure.more + i * member_size;
    const uint32_t place = word_at(at + 8), type = word_at(at + 4);
    const uint32_t bits = has_bit_fields ? place >> 24 : 0, offset = has_bit_fields ? place & 0xffffff : place;
    if (has_name(word_at(at), name)) return KernelField{offset / 8, bits == 0 ? size_of(type) : 0, offset % 8, bits};
    const auto own_type = has_name(word_at(at), "") && type < places_.size() ? this->type(type) : Type{};
    const bool is_open = kind(own_type) == kind_struct || kind(own_type) == kind_union;
    auto inner = is_open ? find(own_type, name, depth + 1) : std::nullopt;
    if (!inner) continue;
    inner->offset += offset / 8;
    return inner;
  }
  return std::nullopt;
}

uint32_t KernelTypes::size_of(uint32_t id) const {
  constexpr int deepest = 16;
  for (int depth = 0; depth < deepest && id < places_.size(); ++depth) {
    const auto type = this->type(id);
    switch (kind(type)) {
      case kind_pointer:
        return sizeof(uint64_t);
      case kind_typedef:
      case kind_volatile:
      case kind_const:
      case kind_restrict:
      case kind_type_tag:
        id = type.size_or_type;
        continue;
      case kind_int:
      case kind_enum:
      case kind_enum64:
      case kind_struct:
      case kind_union:
        return type.size_or_type;
      default:
        return 0;
    }
  }
  return 0;
}

Result<KernelMemory> KernelMemory::open() {
  KernelMemory memory;
  memory.reader_ = TRY(Question::load(reading, "read kernel memory"));
  memory.types_ = TRY(KernelTypes::read());
  // A kernel that is locked down loads the program, and lets it read nothing (kernel_lockdown(7)).
  TRY(memory.get(TRY(memory.reader_.ask(0)), "task_struct", "tgid"));
  return memory;
}

Result<uint64_t> KernelMemory::word(uint64_t address) const {
  if (address < sizeof(uint64_t)) return fail(Error::conflict("read kernel memory", "a pointer leads nowhere"));
  return reader_.ask(address);
}

std::optional<KernelField> KernelMemory::find(std::string_view structure, std::string_view name) const {
  auto fields = found_.find(structure);
  if (fields == found_.end()) fields = found_.emplace(structure, Fields()).first;
  auto known = fields->second.find(name);
  if (known == fields->second.end()) known = fields->second.emplace(name, types_.field(structure, name)).first;
  return known->second;
}

Result<KernelField> KernelMemory::field(std::string_view structure, std::string_view name) const {
  if (const auto field = find(structure, name)) return *field;
  return fail(Error::unsupported("read kernel memory", fmt::format("this kernel has no {}.{}", structure, name)));
}

Result<uint64_t> KernelMemory::address(uint64_t object, std::string_view structure, std::string_view name) const {
  return object + TRY(field(structure, name)).offset;
}

Result<uint64_t> KernelMemory::get(uint64_t object, std::string_view structure, std::string_view name) const {
  const auto field = TRY(this->field(structure, name));
  const uint64_t value = TRY(word(object + field.offset)) >> field.bit;
  const uint32_t width = field.bits != 0 ? field.bits : field.size * 8;
  return width == 0 || width >= 64 ? value : value & ((uint64_t{1} << width) - 1);
}

Result<std::vector<uint64_t>> KernelMemory::listed(uint64_t head, std::string_view structure,
                                                   std::string_view member) const {
  constexpr size_t most = 100'000;  // should the list lead anywhere else
  const uint64_t offset = TRY(field(structure, member)).offset;
  std::vector<uint64_t> objects;
  for (uint64_t at = TRY(word(head)); at != head && objects.size() < most; at = TRY(word(at)))
    objects.push_back(at - offset);
  return objects;
}

Result<uint64_t> KernelMemory::file(int fd) const {
  const uint64_t task = TRY(reader_.ask(0));
  const uint64_t files = TRY(get(task, "task_struct", "files"));
  const uint64_t table = TRY(get(TRY(get(files, "files_struct", "fdt")), "fdtable", "fd"));
  return word(table + static_cast<uint64_t>(fd) * sizeof(uint64_t));
}

Result<uint64_t> KernelMemory::private_data(int fd) const { return get(TRY(file(fd)), "file", "private_data"); }

Result<uint64_t> KernelMemory::socket(int fd) const { return get(TRY(private_data(fd)), "socket", "sk"); }

/// By a pidfd of it: struct pid leads to the thread (kernel/pid.c, pid_task).
Result<uint64_t> KernelMemory::task(pid_t tid) const {
  const auto pidfd = TRY(pidfd_open_thread(tid));
  const uint64_t opened = TRY(file(pidfd.get()));
  // Since Linux 6.9 it is an inode of pidfs.
  uint64_t pid = TRY(get(TRY(get(opened, "file", "f_inode")), "inode", "i_private"));
  if (pid == 0) pid = TRY(get(opened, "file", "private_data"));
  const uint64_t first = TRY(word(TRY(address(pid, "pid", "tasks"))));
  if (first == 0) return fail(Error::gone("read kernel memory", fmt::format("thread {}", tid)));
  return first - TRY(address(0, "task_struct", "pid_links"));
}

}  // namespace stasis::kernel
