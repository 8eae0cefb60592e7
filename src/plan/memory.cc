#include "plan/memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstddef>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace stasis::plan {
namespace {

constexpr int arch_map_vdso_64 = 0x2003;   // asm/prctl.h
constexpr uint32_t mlock_on_fault = 1;     // MLOCK_ONFAULT
constexpr size_t populate_from = 64 * page_size;   ///< smaller runs gain nothing from being populated at once

bool is_file(const model::Mapping& mapping) {
  return mapping.backing == model::Backing::private_file || mapping.backing == model::Backing::shared_file;
}
bool is_private(const model::Mapping& mapping) {
  return mapping.backing == model::Backing::private_anonymous || mapping.backing == model::Backing::private_file;
}

std::vector<PageLocation> pages_of(const Emission& out, ObjectId id) {
  const auto found = out.options.pages.find(id);
  return found == out.options.pages.end() ? std::vector<PageLocation>{} : found->second;
}

/// The parts of `pages` that lie in `where`, cut to it.
std::vector<PageLocation> pages_within(const std::vector<PageLocation>& pages, AddressRange where) {
  std::vector<PageLocation> found;
  auto page = std::ranges::upper_bound(pages, where.begin, {}, [](const PageLocation& p) { return p.range.end; });
  for (; page != pages.end() && page->range.begin < where.end; ++page) {
    PageLocation part = *page;
    if (part.range.begin < where.begin) {
      part.offset += where.begin - part.range.begin;
      part.range.begin = where.begin;
    }
    part.range.end = std::min(part.range.end, where.end);
    found.push_back(std::move(part));
  }
  return found;
}

/// Collects runs and writes as few LOAD_PAGES as the pages files allow: consecutive bytes of one file make one command.
class Loader {
 public:
  Loader(Emission& out, Pid pid) : out_(out), pid_(pid) {}
  ~Loader() { finish(); }
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  void load(const PageLocation& location, uint64_t at) {
    if (location.file != file_) {
      finish();
      file_ = location.file;
      fd_ = out_.temporary_fd();
      auto sink = out_.process(pid_);
      Perform open{fmt::format("pages from {}", file_), "", {}, {{fd_, ObjectId{}}}, {}};
      open.calls.push_back(call(SYS_openat, sink.images_fd(), text(file_), O_RDONLY | O_CLOEXEC, 0));
      open.calls.push_back(call(Call::move_fd, ResultOf{-1}, fd_, O_CLOEXEC));
      sink.add(std::move(open));
    }
    if (!runs_.empty() && next_offset_ != location.offset) flush();
    if (runs_.empty()) offset_ = location.offset;
    if (!runs_.empty() && runs_[runs_.size() - 2] + runs_.back() == at) runs_.back() += location.range.size();
    else runs_.insert(runs_.end(), {at, location.range.size()});
    next_offset_ = location.offset + location.range.size();
  }

 private:
  void flush() {
    if (runs_.empty()) return;
    out_.process(pid_).add(LoadPages{fd_, offset_, std::move(runs_)});
    runs_.clear();
  }
  void finish() {
    flush();
    if (!file_.empty()) out_.process(pid_).add(Close{fd_});
    file_.clear();
  }

  Emission& out_;
  Pid pid_;
  std::string file_;
  int fd_ = -1;
  uint64_t offset_ = 0, next_offset_ = 0;
  std::vector<uint64_t> runs_;
};

void populate(Sink& sink, AddressRange range) {
  if (range.size() < populate_from) return;
  // One call that allocates the pages costs less than a fault each while they are filled. Failure costs nothing.
  sink.perform("allocate pages", "", {expecting(call(SYS_madvise, range.begin, range.size(), MADV_POPULATE_WRITE), Expectation::Kind::anything)});
}

/// Maps and fills the private and file-backed mappings of one process.
class MappingPlanner {
 public:
  MappingPlanner(Emission& out, const MemoryPlan& plan, SharedSegments& segments, const OpenNumbers& open)
      : out_(out), plan_(plan), segments_(segments), open_(open), pages_(pages_of(out, plan.space->id)) {}

  Status run() {
    if (plan_.inherited_from != nullptr) unmap_foreign();
    for (const auto& mapping : plan_.space->mappings) TRY(map(mapping));
    TRY(map_vdso());
    close_files();
    load();
    protect();
    return {};
  }

 private:
  Sink sink() { return out_.process(plan_.pid); }

  bool inherits(const model::Mapping& mapping) const {
    if (plan_.inherited_from == nullptr || !is_private(mapping)) return false;
    const auto& theirs = plan_.inherited_from->mappings;
    const auto same = std::ranges::find(theirs, mapping.range, &model::Mapping::range);
    if (same == theirs.end() || same->backing != mapping.backing || same->offset != mapping.offset ||
        same->file != mapping.file || same->map_flags != mapping.map_flags ||
        same->advice.contains(MADV_DONTFORK) || same->advice.contains(MADV_WIPEONFORK)) {
      return false;
    }
    const auto pages = pages_within(pages_, mapping.range);
    return std::ranges::any_of(pages, &PageLocation::shared_with_parent);
  }

  /// What the creator has mapped and we do not inherit goes away; pages we do not share go, too.
  void unmap_foreign() {
    std::vector<AddressRange> kept;
    for (const auto& mapping : plan_.space->mappings) {
      if (inherits(mapping)) kept.push_back(mapping.range);
    }
    kept.push_back(out_.program.agent_area);
    std::ranges::sort(kept);
    uint64_t at = 0;
    constexpr uint64_t task_size = 0x7ffffffff000;
    for (const auto& range : kept) {
      if (at < range.begin) sink().add(Munmap{at, range.begin - at});
      at = range.end;
    }
    sink().add(Munmap{at, task_size - at});
    for (const auto& mapping : plan_.space->mappings) {
      if (inherits(mapping)) drop_unshared(mapping);
    }
  }
  void drop_unshared(const model::Mapping& mapping) {
    uint64_t at = mapping.range.begin;
    Calls drops;
    const auto drop_until = [&](uint64_t end) {
      if (at < end) drops.push_back(call(SYS_madvise, at, end - at, MADV_DONTNEED));
    };
    for (const auto& page : pages_within(pages_, mapping.range)) {
      if (!page.shared_with_parent) continue;
      drop_until(page.range.begin);
      at = page.range.end;
    }
    drop_until(mapping.range.end);
    if (!drops.empty()) sink().perform("drop pages that are not shared with the parent", "", std::move(drops));
  }

  uint32_t protection_while_loading(const model::Mapping& mapping) const {
    const bool has_pages = is_private(mapping) && !pages_within(pages_, mapping.range).empty();
    return has_pages ? mapping.protection | PROT_WRITE : mapping.protection;
  }

  Status map(const model::Mapping& mapping) {
    if (inherits(mapping)) {
      const uint32_t wanted = protection_while_loading(mapping);
      sink().add(Mprotect{mapping.range.begin, mapping.range.size(), wanted});
      return {};
    }
    switch (mapping.backing) {
      case model::Backing::private_anonymous:
        sink().add(MmapAnon{mapping.range.begin, mapping.range.size(), false, protection_while_loading(mapping), mapping.map_flags});
        return {};
      case model::Backing::shared_anonymous: return map_segment(mapping);
      case model::Backing::private_file:
      case model::Backing::shared_file: return map_file(mapping);
      case model::Backing::vdso:
      case model::Backing::vvar:
      case model::Backing::vsyscall: return {};
    }
    return {};
  }

  Status map_segment(const model::Mapping& mapping) {
    const ObjectId id = mapping.shared_memory;
    int fd = segments_.held_at.at(id);
    if (!segments_.is_owner(id, plan_.pid)) {
      if (!taken_.contains(id)) {
        taken_[id] = out_.temporary_fd();
        out_.await_all(sink(), fmt::format("segment {}", id));
        sink().add(TransferFd{segments_.owner(id), plan_.pid, fd, taken_[id], true});
      }
      fd = taken_[id];
    }
    sink().add(Mmap{mapping.range.begin, mapping.range.size(), fd, mapping.offset, true, mapping.protection, mapping.map_flags});
    return {};
  }

  Status map_file(const model::Mapping& mapping) {
    const int fd = TRY(file_for(mapping));
    sink().add(Mmap{mapping.range.begin, mapping.range.size(), fd, mapping.offset, mapping.backing == model::Backing::shared_file,
                    protection_while_loading(mapping), mapping.map_flags});
    return {};
  }

  /// The mapped description: one that is open already, or one opened for the moment.
  Result<int> file_for(const model::Mapping& mapping) {
    if (const auto found = open_.find(mapping.file); found != open_.end()) return found->second;
    if (const auto found = files_.find(mapping.file); found != files_.end()) return found->second;
    const auto description = out_.application.descriptions.find(mapping.file);
    if (description == out_.application.descriptions.end()) {
      return fail(Error::invalid("plan memory", fmt::format("the mapping at {:#x} is of a file that is not in the images", mapping.range.begin)));
    }
    const auto* maker = out_.maker(description->second);
    if (maker == nullptr) {
      return fail(Error::internal("plan memory", fmt::format("nobody makes files of kind {}", description->second.state.value->kind())));
    }
    const int fd = out_.temporary_fd();
    const auto placement = out_.placement(description->second, fd);
    auto into = sink();
    TRY(maker->make(out_.application, {&placement, 1}, into));
    files_[mapping.file] = fd;
    return fd;
  }

  void close_files() {
    for (const auto& [id, fd] : files_) sink().add(Close{fd});
    for (const auto& [id, fd] : taken_) {
      sink().add(Close{fd});
      out_.post(sink(), fmt::format("segment {} mapped", id));
    }
  }

  /// ARCH_MAP_VDSO_64 maps the whole block, data pages first, at the lowest address.
  Status map_vdso() {
    uint64_t lowest = ~0ull;
    for (const auto& mapping : plan_.space->mappings) {
      if (mapping.backing == model::Backing::vdso || mapping.backing == model::Backing::vvar) lowest = std::min(lowest, mapping.range.begin);
    }
    if (lowest == ~0ull) return {};
    Perform map{"vDSO", "", {"CAP_CHECKPOINT_RESTORE"}, {}, {}};
    map.calls.push_back(call(SYS_arch_prctl, arch_map_vdso_64, lowest));
    sink().add(std::move(map));
    return {};
  }

  void load() {
    for (const auto& mapping : plan_.space->mappings) {
      if (!is_private(mapping)) continue;
      const bool inherited = inherits(mapping);
      for (const auto& page : pages_within(pages_, mapping.range)) {
        if (inherited && page.shared_with_parent) continue;
        auto into = sink();
        populate(into, page.range);
      }
    }
    Loader loader(out_, plan_.pid);
    for (const auto& mapping : plan_.space->mappings) {
      if (!is_private(mapping)) continue;
      const bool inherited = inherits(mapping);
      for (const auto& page : pages_within(pages_, mapping.range)) {
        if (!(inherited && page.shared_with_parent)) loader.load(page, page.range.begin);
      }
    }
  }

  void protect() {
    for (const auto& mapping : plan_.space->mappings) {
      if (is_private(mapping) && protection_while_loading(mapping) != mapping.protection) {
        sink().add(Mprotect{mapping.range.begin, mapping.range.size(), mapping.protection});
      }
    }
  }

  Emission& out_;
  const MemoryPlan& plan_;
  SharedSegments& segments_;
  const OpenNumbers& open_;
  std::vector<PageLocation> pages_;
  std::map<ObjectId, int> files_, taken_;
};

}  // namespace

SharedSegments::SharedSegments(Emission& out, const std::vector<Pid>& order) {
  std::set<ObjectId> seen;
  for (const Pid pid : order) {
    const auto* task = out.application.find(pid);
    if (task == nullptr || task->state == model::TaskState::zombie || !seen.insert(task->address_space).second) continue;
    for (const auto& mapping : out.application.address_spaces.at(task->address_space).mappings) {
      if (mapping.backing == model::Backing::shared_anonymous) owners_.emplace(mapping.shared_memory, pid);
    }
  }
}

Status plan_mappings(Emission& out, const MemoryPlan& plan, SharedSegments& segments, const OpenNumbers& open) {
  return MappingPlanner(out, plan, segments, open).run();
}

/// The owner maps a whole new segment at a free place, opens it again through its map_files link, fills it and unmaps it.
Status plan_segments(Emission& out, const MemoryPlan& plan, SharedSegments& segments) {
  std::set<ObjectId> made;
  uint64_t scratch = out.program.agent_area.end;
  for (const auto& mapping : plan.space->mappings) {
    const ObjectId id = mapping.shared_memory;
    if (mapping.backing != model::Backing::shared_anonymous || !segments.is_owner(id, plan.pid) || !made.insert(id).second) continue;
    const auto segment = out.application.shared_memories.find(id);
    if (segment == out.application.shared_memories.end()) {
      return fail(Error::invalid("plan memory", fmt::format("shared segment {} is not in the images", id)));
    }
    const uint64_t size = segment->second.size;
    const int fd = out.temporary_fd();
    segments.held_at[id] = fd;
    auto sink = out.process(plan.pid);
    sink.add(MmapAnon{scratch, size, true, PROT_READ | PROT_WRITE, segment->second.map_flags | MAP_NORESERVE});
    sink.add(Open{fmt::format("/proc/self/map_files/{:x}-{:x}", scratch, scratch + size), O_RDWR | O_CLOEXEC, 0, fd, ObjectId{}});
    {
      Loader loader(out, plan.pid);
      for (const auto& page : pages_of(out, id)) loader.load(page, scratch + page.range.begin);
    }
    sink.add(Munmap{scratch, size});
    out.post(sink, fmt::format("segment {}", id));
  }
  return {};
}

void close_segments(Emission& out, Pid pid, SharedSegments& segments) {
  for (const auto& [id, fd] : segments.held_at) {
    if (!segments.is_owner(id, pid)) continue;
    out.await_all(out.process(pid), fmt::format("segment {} mapped", id));
    out.process(pid).add(Close{fd});
  }
}

namespace {

struct MmMap {   // struct prctl_mm_map
  uint64_t start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end, env_start, env_end;
  uint64_t auxv;
  uint32_t auxv_size, exe_fd;
};

/// Set in one call: PR_SET_MM_AUXV by itself needs CAP_SYS_RESOURCE, which PR_SET_MM_MAP does not (kernel/sys.c).
Calls layout_calls(const model::MemoryLayout& layout, int exe_fd) {
  const ByteView auxv{reinterpret_cast<const uint8_t*>(layout.auxv.data()), layout.auxv.size() * sizeof(uint64_t)};
  const MmMap map{layout.start_code, layout.end_code, layout.start_data, layout.end_data, layout.start_brk, layout.brk,
                  layout.start_stack, layout.arg_start, layout.arg_end, layout.env_start, layout.env_end, 0,
                  static_cast<uint32_t>(auxv.size()), static_cast<uint32_t>(exe_fd)};
  auto argument = auxv.empty() ? struct_in(map) : struct_pointing_to(map, offsetof(MmMap, auxv), auxv);
  return {call(SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, std::move(argument), sizeof map, 0)};
}

/// Calls for one mapping that need its contents in place.
Calls state_calls(const model::Mapping& mapping) {
  Calls calls;
  const uint64_t begin = mapping.range.begin, size = mapping.range.size();
  for (const int advice : mapping.advice) calls.push_back(call(SYS_madvise, begin, size, advice));
  if (!mapping.name.empty()) {
    // Kernels without CONFIG_ANON_VMA_NAME know no names: then the images have none either.
    calls.push_back(call(SYS_prctl, PR_SET_VMA, PR_SET_VMA_ANON_NAME, begin, size, text(mapping.name)));
  }
  if (mapping.locked) calls.push_back(call(SYS_mlock2, begin, size, mapping.locked_on_fault ? mlock_on_fault : 0));
  return calls;
}

}  // namespace

Status plan_memory_state(Emission& out, const MemoryPlan& plan, const OpenNumbers& open) {
  auto sink = out.process(plan.pid);
  std::set<int> keys;
  for (const auto& mapping : plan.space->mappings) {
    if (auto calls = state_calls(mapping); !calls.empty()) {
      sink.perform(fmt::format("state of the mapping at {:#x}", mapping.range.begin), "memory.state", std::move(calls));
    }
    if (mapping.protection_key > 0) keys.insert(mapping.protection_key);
  }
  if (!keys.empty()) {
    // Keys are handed out in ascending order: those below the highest are taken as well, and freed again if unused.
    Calls calls;
    for (int key = 1; key <= *keys.rbegin(); ++key) calls.push_back(expecting(call(SYS_pkey_alloc, 0, 0), Expectation::Kind::exactly, key));
    for (const auto& mapping : plan.space->mappings) {
      if (mapping.protection_key > 0) {
        calls.push_back(call(SYS_pkey_mprotect, mapping.range.begin, mapping.range.size(), mapping.protection, mapping.protection_key));
      }
    }
    for (int key = 1; key <= *keys.rbegin(); ++key) {
      if (!keys.contains(key)) calls.push_back(call(SYS_pkey_free, key));
    }
    sink.perform("protection keys", "memory.keys", std::move(calls));
  }

  int exe_fd = -1;
  if (const auto found = open.find(plan.space->executable); found != open.end()) exe_fd = found->second;
  const bool temporary = exe_fd < 0;
  if (temporary) {
    const auto description = out.application.descriptions.find(plan.space->executable);
    if (description == out.application.descriptions.end()) {
      return fail(Error::invalid("plan memory", fmt::format("the executable of address space {} is not in the images", plan.space->id)));
    }
    const auto* maker = out.maker(description->second);
    if (maker == nullptr) return fail(Error::internal("plan memory", "nobody makes the executable's kind of file"));
    exe_fd = out.temporary_fd();
    const auto placement = out.placement(description->second, exe_fd);
    TRY(maker->make(out.application, {&placement, 1}, sink));
  }
  sink.perform("memory layout and executable", "memory.layout", layout_calls(plan.space->layout, exe_fd), {"CAP_CHECKPOINT_RESTORE"});
  if (temporary) sink.add(Close{exe_fd});
  if (plan.space->lock_future) {
    const int flags = MCL_FUTURE | (plan.space->lock_future_on_fault ? MCL_ONFAULT : 0);
    sink.perform("lock future memory", "memory.lock_future", {call(SYS_mlockall, flags)});
  }
  for (const auto& mapping : plan.space->mappings) {
    constexpr uint32_t mseal = 462;
    if (mapping.sealed) {
      sink.perform("seal", "memory.seals", {call(mseal, mapping.range.begin, mapping.range.size(), 0)});
    }
  }
  return {};
}

}  // namespace stasis::plan
