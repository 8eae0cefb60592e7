#include "resource/memory_record.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "base/checked.h"
#include "resource/aio.h"
#include "resource/system_v.h"

namespace stasis::resource {
namespace {

using model::Backing;

/// vma_entry.status
constexpr uint32_t regular = 1 << 0;
constexpr uint32_t stack = 1 << 1;
constexpr uint32_t vsyscall = 1 << 2;
constexpr uint32_t vdso = 1 << 3;
constexpr uint32_t heap = 1 << 5;
constexpr uint32_t file_private = 1 << 6;
constexpr uint32_t file_shared = 1 << 7;
constexpr uint32_t anonymous_shared = 1 << 8;
constexpr uint32_t anonymous_private = 1 << 9;
constexpr uint32_t system_v = 1 << 10;
constexpr uint32_t socket = 1 << 11;
constexpr uint32_t vvar = 1 << 12;
constexpr uint32_t aio_ring = 1 << 13;
constexpr uint32_t memfd = 1 << 14;
constexpr uint32_t shadow_stack = 1 << 15;
constexpr uint32_t guard = 1 << 16;
constexpr uint32_t uprobes = 1 << 17;
constexpr uint32_t io_uring_queues = 1 << 30;  ///< ours

/// Kept as they are in vma_entry.flags; type, MAP_ANONYMOUS and MAP_LOCKED follow from elsewhere.
constexpr uint32_t kept_flags = MAP_GROWSDOWN | MAP_NORESERVE | MAP_HUGETLB | model::map_droppable |
                                (static_cast<uint32_t>(MAP_HUGE_MASK) << MAP_HUGE_SHIFT);
constexpr uint32_t segment_flags = MAP_HUGETLB | (static_cast<uint32_t>(MAP_HUGE_MASK) << MAP_HUGE_SHIFT);
/// madvise(2) values that are states of a mapping rather than deeds.
constexpr int lasting_advice[] = {MADV_RANDOM,   MADV_SEQUENTIAL, MADV_DONTFORK, MADV_MERGEABLE,
                                  MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_WIPEONFORK};
/// The end of user space with five-level page tables; the vsyscall page lies above.
constexpr uint64_t address_limit = uint64_t{1} << 56;
constexpr size_t auxv_words_of_criu = 44;
constexpr size_t auxv_limit = 512;  // words; the kernel's own limit is far below
constexpr size_t name_limit = 79;   // ANON_VMA_NAME_MAX_LEN - 1

bool is_system_v(const model::Application& application, const model::Mapping& mapping) {
  const auto segment = application.shared_memories.find(mapping.shared_memory);
  return segment != application.shared_memories.end() && segment->second.system_v.has_value();
}

uint32_t status_of(const model::Application& application, const model::Mapping& mapping) {
  switch (mapping.backing) {
    case Backing::private_anonymous:
      return regular | anonymous_private | (mapping.is_heap ? heap : 0u);
    case Backing::shared_anonymous:
      return regular | anonymous_shared | (is_system_v(application, mapping) ? system_v : 0u);
    case Backing::vdso:
      return regular | vdso | anonymous_private;
    case Backing::vvar:
      return regular | vvar | anonymous_private;
    case Backing::vsyscall:
      return vsyscall | anonymous_private;
    case Backing::aio_ring:
      return regular | aio_ring;
    case Backing::io_uring:
      return regular | io_uring_queues;
    case Backing::private_file:
    case Backing::shared_file:
      break;
  }
  const auto file = application.descriptions.find(mapping.file);
  const bool is_known = file != application.descriptions.end() && file->second.state.value;
  if (is_known && file->second.state.value->kind() == "packet socket") return regular | socket;
  const bool in_memory = is_known && file->second.state.value->kind() == "memfd";
  return regular | (mapping.backing == Backing::shared_file ? file_shared : file_private) | (in_memory ? memfd : 0u) |
         (mapping.is_heap ? heap : 0u);
}

bool is_file(Backing backing) {
  return backing == Backing::private_file || backing == Backing::shared_file || backing == Backing::io_uring;
}
bool is_shared(Backing backing) {
  return backing == Backing::shared_anonymous || backing == Backing::shared_file || backing == Backing::io_uring;
}

void encode_extensions(const model::Application& application, const model::Mapping& mapping, vma_entry& entry) {
  if (mapping.locked_on_fault) entry.set_locked_on_fault(true);
  if (mapping.accounted) entry.set_accounted(true);
  if (mapping.protection_key != 0) entry.set_protection_key(static_cast<uint32_t>(mapping.protection_key));
  if (mapping.sealed) entry.set_sealed(true);
  if (!mapping.name.empty()) entry.set_name(mapping.name);
  const auto segment = application.shared_memories.find(mapping.shared_memory);
  if (segment == application.shared_memories.end()) return;
  entry.set_segment_size(segment->second.size);
  if (segment->second.system_v) encode_system_v(*segment->second.system_v, *entry.mutable_system_v());
  if (mapping.read_only_attach) entry.set_read_only_attach(true);
}

void encode_mapping(const model::Application& application, const model::Mapping& mapping, vma_entry& entry) {
  entry.set_start(mapping.range.begin);
  entry.set_end(mapping.range.end);
  entry.set_pgoff(mapping.offset);
  entry.set_shmid(is_file(mapping.backing) ? mapping.file.value : mapping.shared_memory.value);
  entry.set_prot(mapping.protection);
  uint32_t flags =
      mapping.map_flags | (mapping.locked ? MAP_LOCKED : 0) | (is_file(mapping.backing) ? 0 : MAP_ANONYMOUS);
  if ((mapping.map_flags & model::map_droppable) == 0) flags |= is_shared(mapping.backing) ? MAP_SHARED : MAP_PRIVATE;
  entry.set_flags(flags);
  entry.set_status(status_of(application, mapping));
  entry.set_fd(-1);
  uint64_t advice = 0;
  for (const int value : mapping.advice) advice |= uint64_t{1} << value;
  if (advice != 0) entry.set_madv(advice);
  const auto file = application.descriptions.find(mapping.file);
  if (file != application.descriptions.end()) entry.set_fdflags(file->second.flags & O_ACCMODE);
  encode_extensions(application, mapping, entry);
}

class MappingDecoder {
 public:
  MappingDecoder(const vma_entry& entry, std::string where) : entry_(entry), where_(std::move(where)) {}

  std::unexpected<Error> reject(std::string_view field, std::string cause) const {
    return fail(Error::invalid("read mapping", std::move(cause), fmt::format("{}, field {}", where_, field)));
  }

  Result<AddressRange> range() const {
    const AddressRange range{entry_.start(), entry_.end()};
    if (range.begin % page_size != 0 || range.end % page_size != 0 || range.empty()) {
      return reject("end", fmt::format("{:#x}-{:#x} is no range of pages", range.begin, range.end));
    }
    if (range.end > address_limit && (entry_.status() & vsyscall) == 0)
      return reject("end", fmt::format("{:#x} is beyond user space", range.end));
    return range;
  }

  Result<model::Mapping> mapping() const {
    model::Mapping mapping;
    mapping.range = TRY(range());
    mapping.backing = TRY(backing());
    if (entry_.prot() > (PROT_READ | PROT_WRITE | PROT_EXEC))
      return reject("prot", fmt::format("{:#x} is no protection", entry_.prot()));
    mapping.protection = entry_.prot();
    const bool special = mapping.backing == Backing::vdso || mapping.backing == Backing::vvar ||
                         mapping.backing == Backing::vsyscall || mapping.backing == Backing::aio_ring;
    if (special) return mapping;
    TRY(place(mapping));
    TRY(attributes(mapping));
    return mapping;
  }

 private:
  Result<Backing> backing() const {
    const uint32_t status = entry_.status();
    // CRIU's images of such memory are of IPC namespaces, and refused for these.
    const uint32_t unknown_segment = entry_.has_system_v() ? 0 : system_v;
    const std::pair<uint32_t, const char*> unsupported[] = {{unknown_segment, "System V shared memory"},
                                                            {shadow_stack, "a shadow stack"},
                                                            {uprobes, "moved instructions of a uprobe"}};
    for (const auto& [bit, what] : unsupported) {
      if ((status & bit) != 0)
        return fail(
            Error::unsupported("read mapping", fmt::format("it is {}, which cannot be restored", what), where_));
    }
    if ((status & vsyscall) != 0) return Backing::vsyscall;
    if ((status & aio_ring) != 0) return Backing::aio_ring;
    if ((status & io_uring_queues) != 0) return Backing::io_uring;
    // CRIU says in the flags alone whether it is shared.
    if ((status & socket) != 0)
      return (entry_.flags() & MAP_SHARED) != 0 ? Backing::shared_file : Backing::private_file;
    if ((status & vdso) != 0) return Backing::vdso;
    if ((status & vvar) != 0) return Backing::vvar;
    constexpr std::pair<uint32_t, Backing> kinds[] = {{file_private, Backing::private_file},
                                                      {file_shared, Backing::shared_file},
                                                      {anonymous_shared, Backing::shared_anonymous},
                                                      {anonymous_private, Backing::private_anonymous}};
    std::optional<Backing> found;
    for (const auto& [bit, kind] : kinds) {
      if ((status & bit) == 0) continue;
      if (found) return reject("status", fmt::format("{:#x} names two kinds of mapping", status));
      found = kind;
    }
    if (!found) return reject("status", fmt::format("{:#x} names no kind of mapping", status));
    return *found;
  }

  /// What it is a mapping of.
  Status place(model::Mapping& mapping) const {
    if (entry_.pgoff() % page_size != 0 || !checked_add(entry_.pgoff(), mapping.range.size())) {
      return reject("pgoff", fmt::format("{:#x} is no offset for {} bytes", entry_.pgoff(), mapping.range.size()));
    }
    if (mapping.backing == Backing::private_anonymous) return {};
    if (entry_.shmid() == 0 || entry_.shmid() > UINT32_MAX)
      return reject("shmid", fmt::format("{:#x} is no id", entry_.shmid()));
    mapping.offset = entry_.pgoff();
    const ObjectId id{static_cast<uint32_t>(entry_.shmid())};
    (is_file(mapping.backing) ? mapping.file : mapping.shared_memory) = id;
    return {};
  }

  Status attributes(model::Mapping& mapping) const {
    mapping.map_flags = entry_.flags() & kept_flags;
    if (is_file(mapping.backing)) mapping.map_flags &= ~segment_flags;  // follows from the file
    if ((mapping.map_flags & MAP_HUGETLB) == 0) mapping.map_flags &= ~segment_flags;
    mapping.is_heap = (entry_.status() & heap) != 0;
    mapping.is_stack = (entry_.status() & stack) != 0;
    mapping.locked = (entry_.flags() & MAP_LOCKED) != 0;
    mapping.locked_on_fault = mapping.locked && entry_.locked_on_fault();
    uint64_t advice = entry_.madv();
    for (const int value : lasting_advice) {
      if ((advice >> value & 1) == 0) continue;
      mapping.advice.insert(value);
      advice &= ~(uint64_t{1} << value);
    }
    if (advice != 0)
      return reject("madv", fmt::format("{:#x} names advice that is no state of a mapping", entry_.madv()));
    if (entry_.protection_key() > 15)
      return reject("protection_key", fmt::format("there is no key {}", entry_.protection_key()));
    mapping.protection_key = static_cast<int>(entry_.protection_key());
    mapping.accounted = entry_.accounted() || (!is_shared(mapping.backing) && (mapping.protection & PROT_WRITE) != 0 &&
                                               (mapping.map_flags & (MAP_NORESERVE | MAP_HUGETLB)) == 0);
    mapping.sealed = entry_.sealed();
    if (entry_.name().size() > name_limit || entry_.name().find('\0') != std::string::npos)
      return reject("name", "it is no name of a mapping");
    mapping.name = entry_.name();
    mapping.read_only_attach = entry_.read_only_attach();
    if (mapping.read_only_attach && ((entry_.status() & system_v) == 0 || (mapping.protection & PROT_WRITE) != 0))
      return reject("read_only_attach", "it is no System V segment, or writable");
    return {};
  }

  const vma_entry& entry_;
  std::string where_;
};

class SpaceDecoder {
 public:
  SpaceDecoder(const mm_entry& mm, const std::string& file, model::Application& application, model::AddressSpace& space)
      : mm_(mm), file_(file), application_(application), space_(space) {}

  Status run() {
    TRY(layout());
    space_.executable = ObjectId{mm_.exe_file_id()};
    space_.lock_future = mm_.lock_future();
    space_.lock_future_on_fault = mm_.lock_future_on_fault();
    for (int i = 0; i < mm_.vmas_size(); ++i) TRY(entry(mm_.vmas(i), fmt::format("{}, field vmas[{}]", file_, i)));
    TRY(decode_aio(mm_, file_, space_));
    // CRIU keeps no [stack] mark: it is where the process started.
    for (auto& mapping : space_.mappings) {
      if (mapping.backing == Backing::private_anonymous && mapping.range.contains(space_.layout.start_stack))
        mapping.is_stack = true;
    }
    return {};
  }

 private:
  Status layout() {
    auto& to = space_.layout;
    to = {mm_.mm_start_code(), mm_.mm_end_code(),  mm_.mm_start_data(),  mm_.mm_end_data(),
          mm_.mm_start_brk(),  mm_.mm_brk(),       mm_.mm_start_stack(), mm_.mm_arg_start(),
          mm_.mm_arg_end(),    mm_.mm_env_start(), mm_.mm_env_end(),     {}};
    if (to.brk < to.start_brk) return reject("mm_brk", fmt::format("the heap ends at {:#x} before it begins", to.brk));
    if (to.arg_end < to.arg_start || to.env_end < to.env_start)
      return reject("mm_arg_end", "arguments or environment end before they begin");
    std::vector<uint64_t> auxv(mm_.mm_saved_auxv().begin(), mm_.mm_saved_auxv().end());
    auxv.insert(auxv.end(), mm_.auxv_rest().begin(), mm_.auxv_rest().end());
    if (auxv.size() > auxv_limit || auxv.size() % 2 != 0) {
      return reject("mm_saved_auxv", fmt::format("{} words are no auxiliary vector", auxv.size()));
    }
    // CRIU pads with zeros to the size of the kernel's own array; pairs behind AT_NULL say nothing.
    for (size_t i = 0; i + 1 < auxv.size(); i += 2) {
      to.auxv.insert(to.auxv.end(), {auxv[i], auxv[i + 1]});
      if (auxv[i] == 0) break;
    }
    return {};
  }

  std::unexpected<Error> reject(std::string_view field, std::string cause) const {
    return fail(Error::invalid("read memory", std::move(cause), fmt::format("{}, field {}", file_, field)));
  }

  Status entry(const vma_entry& entry, const std::string& where) {
    const MappingDecoder decoder(entry, where);
    if ((entry.status() & guard) != 0) return add_guard(decoder);
    auto mapping = TRY(decoder.mapping());
    if (!space_.mappings.empty() && mapping.range.begin < space_.mappings.back().range.end) {
      return decoder.reject("start", "it overlaps the mapping before, or is out of order");
    }
    if (mapping.backing == Backing::shared_anonymous) TRY(add_segment(decoder, entry, mapping, where));
    if (mapping.backing == Backing::shared_file) widen_access(entry, mapping);
    space_.mappings.push_back(std::move(mapping));
    return {};
  }

  /// CRIU says of a memfd that is only mapped how it was opened in the mapping alone.
  void widen_access(const vma_entry& entry, const model::Mapping& mapping) {
    const auto file = application_.descriptions.find(mapping.file);
    if (file == application_.descriptions.end() || (entry.fdflags() & O_ACCMODE) != O_RDWR) return;
    auto& flags = file->second.flags;
    if ((flags & O_ACCMODE) == O_RDONLY) flags = (flags & ~static_cast<uint32_t>(O_ACCMODE)) | O_RDWR;
  }

  Status add_guard(const MappingDecoder& decoder) {
    AddressRange range = TRY(decoder.range());
    auto mapping =
        std::ranges::upper_bound(space_.mappings, range.begin, {}, [](const model::Mapping& m) { return m.range.end; });
    for (; !range.empty(); ++mapping) {
      if (mapping == space_.mappings.end() || mapping->range.begin > range.begin)
        return decoder.reject("start", "guard pages where nothing is mapped");
      const AddressRange part{range.begin, std::min(range.end, mapping->range.end)};
      if (!mapping->guards.empty() && mapping->guards.back().end > part.begin)
        return decoder.reject("start", "guard pages overlap or are out of order");
      mapping->guards.push_back(part);
      range.begin = part.end;
    }
    return {};
  }

  /// CRIU says nothing of a segment's size: it reaches as far as somebody maps it.
  Status add_segment(const MappingDecoder& decoder, const vma_entry& entry, const model::Mapping& mapping,
                     const std::string& where) {
    auto& segment = application_.shared_memories[mapping.shared_memory];
    if (entry.segment_size() % page_size != 0 || entry.segment_size() > address_limit) {
      return decoder.reject("segment_size", fmt::format("{} is no size of a segment", entry.segment_size()));
    }
    const uint32_t flags = mapping.map_flags & segment_flags;
    if (segment.id.value != 0 && segment.map_flags != flags)
      return decoder.reject("flags", "it differs in page size from other mappings of its segment");
    const uint64_t reach = mapping.offset + mapping.range.size();
    const bool fresh = segment.id.value == 0;
    segment.id = mapping.shared_memory, segment.map_flags = flags;
    segment.size = std::max({segment.size, entry.segment_size(), reach});
    std::optional<model::SystemVSegment> described;
    if ((entry.status() & system_v) != 0) described = TRY(system_v_of(decoder, entry, where));
    if (!fresh && segment.system_v != described)
      return decoder.reject("system_v", "it differs from that of other mappings of its segment");
    segment.system_v = described;
    if (described && described->huge_page_order != (flags >> MAP_HUGE_SHIFT & MAP_HUGE_MASK))
      return decoder.reject("system_v.hugetlb_flag", "the mapping has pages of another size");
    if (described && segment.size != whole_size(*described))
      return decoder.reject("system_v.size", "what is mapped does not fit in");
    if (segment.size > address_limit)
      return decoder.reject("pgoff", fmt::format("a segment of {} bytes is impossible", segment.size));
    return {};
  }

  static uint64_t whole_size(const model::SystemVSegment& segment) {
    const uint64_t page = segment.huge_page_order == 0 ? page_size : uint64_t{1} << segment.huge_page_order;
    return (segment.size + page - 1) / page * page;
  }

  Result<model::SystemVSegment> system_v_of(const MappingDecoder& decoder, const vma_entry& entry,
                                            const std::string& where) const {
    auto segment = TRY(decode_system_v(entry.system_v(), where));
    for (const auto& [id, other] : application_.shared_memories) {
      if (id.value != entry.shmid() && other.system_v && other.system_v->id == segment.id)
        return decoder.reject("system_v.desc.id", fmt::format("{} is another segment's", segment.id));
    }
    return segment;
  }

  const mm_entry& mm_;
  const std::string& file_;
  model::Application& application_;
  model::AddressSpace& space_;
};

}  // namespace

Status encode_memory(const model::Application& application, const model::AddressSpace& space, mm_entry& mm) {
  const auto& layout = space.layout;
  mm.set_mm_start_code(layout.start_code);
  mm.set_mm_end_code(layout.end_code);
  mm.set_mm_start_data(layout.start_data);
  mm.set_mm_end_data(layout.end_data);
  mm.set_mm_start_stack(layout.start_stack);
  mm.set_mm_start_brk(layout.start_brk);
  mm.set_mm_brk(layout.brk);
  mm.set_mm_arg_start(layout.arg_start);
  mm.set_mm_arg_end(layout.arg_end);
  mm.set_mm_env_start(layout.env_start);
  mm.set_mm_env_end(layout.env_end);
  mm.set_exe_file_id(space.executable.value);
  for (size_t i = 0; i < layout.auxv.size(); ++i)
    i < auxv_words_of_criu ? mm.add_mm_saved_auxv(layout.auxv[i]) : mm.add_auxv_rest(layout.auxv[i]);
  if (space.lock_future) mm.set_lock_future(true);
  if (space.lock_future_on_fault) mm.set_lock_future_on_fault(true);
  for (const auto& mapping : space.mappings) encode_mapping(application, mapping, *mm.add_vmas());
  encode_aio(space, mm);
  // Guards stand behind all mappings, as entries of their own.
  for (const auto& mapping : space.mappings) {
    for (const auto& range : mapping.guards) {
      auto& entry = *mm.add_vmas();
      entry.set_start(range.begin);
      entry.set_end(range.end);
      entry.set_pgoff(0);
      entry.set_shmid(0);
      entry.set_prot(0);
      entry.set_flags(0);
      entry.set_status(guard);
      entry.set_fd(0);
    }
  }
  return {};
}

Status decode_memory(const mm_entry& mm, const std::string& file, model::Application& application,
                     model::AddressSpace& space) {
  return SpaceDecoder(mm, file, application, space).run();
}

}  // namespace stasis::resource
