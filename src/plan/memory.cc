// How an address space is filled.
//
// A mapping that will hold stored pages is made writable first and gets its protection when they are loaded. So does
// one that was writable once: the kernel counts it as committed memory from then on (VM_ACCOUNT), and keeps it apart
// from neighbours that never were.
//
// A process whose parent's memory was complete when it was forked keeps the stretches in which pages are shared with
// the parent, and mappings that both have as a whole if little in them has to be written; whatever else it inherited
// goes away. Stretches, not mappings: heap and stack of a child have mostly grown since, and the kernel joins what is
// mapped beside them.
#include "plan/memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <optional>
#include <set>

#include "plan/page_loading.h"

namespace stasis::plan {
namespace {

constexpr int arch_map_vdso_64 = 0x2003;  // asm/prctl.h
constexpr uint64_t task_size = 0x7ffffffff000;

bool is_private(const model::Mapping& mapping) {
  return mapping.backing == model::Backing::private_anonymous || mapping.backing == model::Backing::private_file;
}

/// Huge pages want an address of their own size.
uint64_t alignment_of(const model::SharedMemory& segment) {
  if ((segment.map_flags & MAP_HUGETLB) == 0) return page_size;
  const uint32_t order = segment.map_flags >> MAP_HUGE_SHIFT & MAP_HUGE_MASK;
  return order == 0 ? uint64_t{1} << 21 : uint64_t{1} << order;
}

/// Where a whole one can be mapped for a while.
uint64_t scratch_for(const Emission& out, const model::SharedMemory& segment) {
  const uint64_t alignment = alignment_of(segment);
  return (out.program.agent_area.end + alignment - 1) / alignment * alignment;
}

/// A stretch of the parent's memory that a child has, too.
struct Inherited {
  AddressRange range;
  const model::Mapping* origin = nullptr;  ///< in the parent
};

/// Where private mappings of parent and child show the same thing at the same addresses and fork copies it.
std::vector<Inherited> inheritable(const model::Mapping& mapping, const model::AddressSpace& parent) {
  std::vector<Inherited> parts;
  const auto huge_advice = [](const model::Mapping& m) {
    return std::pair(m.advice.contains(MADV_HUGEPAGE), m.advice.contains(MADV_NOHUGEPAGE));
  };
  for (const auto& theirs : parent.mappings) {
    if (!theirs.range.overlaps(mapping.range) || !is_private(mapping)) continue;
    const bool same = theirs.backing == mapping.backing && theirs.file == mapping.file &&
                      theirs.map_flags == mapping.map_flags &&
                      (mapping.backing != model::Backing::private_file ||
                       theirs.offset - theirs.range.begin == mapping.offset - mapping.range.begin);
    const bool copied = !theirs.advice.contains(MADV_DONTFORK) && !theirs.advice.contains(MADV_WIPEONFORK);
    // What one of them has grown would be a mapping of its own: the kernel merges none with a copy (mm/vma.c,
    // is_mergeable_anon_vma), where growing is no merging.
    const bool grown = (mapping.map_flags & MAP_GROWSDOWN) != 0 && theirs.range.begin > mapping.range.begin;
    if (!same || !copied || grown || huge_advice(theirs) != huge_advice(mapping)) continue;
    const AddressRange part{std::max(theirs.range.begin, mapping.range.begin),
                            std::min(theirs.range.end, mapping.range.end)};
    parts.push_back({part, &theirs});
  }
  return parts;
}

/// Neither has changed what of it fork copies.
bool is_unchanged(const model::Mapping& theirs, const model::Mapping& mapping) {
  return theirs.range == mapping.range && theirs.protection == mapping.protection &&
         theirs.accounted == mapping.accounted;
}

/// Maps and fills the private and file-backed mappings of one process.
class MappingPlanner {
 public:
  MappingPlanner(Emission& out, const MemoryPlan& plan, SharedSegments& segments, const OpenNumbers& open)
      : out_(out), plan_(plan), segments_(segments), open_(open), pages_(stored_pages(out, plan.space->id)) {
    for (const auto& mapping : plan.space->mappings) {
      if (is_wanted(mapping)) mappings_.push_back(&mapping);
    }
  }

  Status run() {
    const bool first_part = plan_.part != MemoryPlan::Part::passed_files_only;
    if (first_part && plan_.inherited_from != nullptr) inherit();
    const bool lacks_code = !has(model::Backing::vdso);
    if (first_part && lacks_code) map_vdso();  // before something else is where the code will be for a moment
    for (const auto* mapping : mappings_) TRY(map(*mapping));
    if (first_part && !lacks_code) map_vdso();
    close_files();
    TRY(load());
    protect();
    return {};
  }

 private:
  Sink sink() { return out_.process(plan_.pid); }

  bool is_passed(const model::Mapping& mapping) const {
    const auto description = out_.application.descriptions.find(mapping.file);
    if (description == out_.application.descriptions.end()) return false;
    return out_.is_passed(description->second);
  }
  bool is_wanted(const model::Mapping& mapping) const {
    return plan_.part == MemoryPlan::Part::all ||
           is_passed(mapping) == (plan_.part == MemoryPlan::Part::passed_files_only);
  }

  // ---- what comes from the parent

  void inherit() {
    parents_pages_ = &stored_pages(out_, plan_.inherited_from->id);
    for (const auto* mapping : mappings_) {
      if (is_passed(*mapping)) continue;
      for (const auto& part : inheritable(*mapping, *plan_.inherited_from)) {
        const bool shares_pages =
            std::ranges::any_of(pages_within(pages_, part.range), &PageLocation::shared_with_parent);
        if (shares_pages || is_kept_as_a_whole(*mapping, *part.origin)) inherited_.push_back(part);
      }
    }
    inherits_vdso_ = vdso_block(*plan_.space) == vdso_block(*plan_.inherited_from);
    unmap_foreign();
    for (const auto& part : inherited_) drop_unshared(part.range);
  }

  /// It is as it was mapped, and to write the child's pages over those of the parent costs no more than new memory.
  bool is_kept_as_a_whole(const model::Mapping& mapping, const model::Mapping& theirs) const {
    const bool promised = (mapping.map_flags & MAP_HUGETLB) != 0;  // huge pages are, to whoever maps them
    return !promised && is_unchanged(theirs, mapping) &&
           std::ranges::all_of(pages_within(pages_, mapping.range), is_short);
  }
  /// Then a copy of the parent's page is as good as an empty one.
  static bool is_short(const PageLocation& page) { return page.range.size() < populate_from; }

  void unmap_foreign() {
    std::vector<AddressRange> kept{out_.program.agent_area};
    for (const auto& part : inherited_) kept.push_back(part.range);
    if (inherits_vdso_) {
      for (const auto& mapping : plan_.space->mappings) {
        if (mapping.backing == model::Backing::vdso || mapping.backing == model::Backing::vvar)
          kept.push_back(mapping.range);
      }
    }
    std::ranges::sort(kept);
    uint64_t at = 0;
    for (const auto& range : kept) {
      if (at < range.begin) sink().add(Munmap{at, range.begin - at});
      at = range.end;
    }
    sink().add(Munmap{at, task_size - at});
  }

  /// Pages of the parent's that are not the child's, and will not be written over. What comes later has to be missing.
  void drop_unshared(AddressRange part) {
    uint64_t at = part.begin;
    const auto drop_until = [&](uint64_t end) {
      if (any_within(*parents_pages_, {at, end})) sink().add(DropPages{at, end - at});
    };
    for (const auto& page : pages_within(pages_, part)) {
      if (!page.shared_with_parent && (out_.options.lazy || !is_short(page))) continue;
      drop_until(page.range.begin);
      at = page.range.end;
    }
    drop_until(part.end);
  }

  std::vector<Inherited> inherited_in(AddressRange where) const {
    std::vector<Inherited> found;
    for (const auto& part : inherited_) {
      if (part.range.overlaps(where)) found.push_back(part);
    }
    return found;
  }

  // ---- mapping

  uint32_t protection_while_loading(const model::Mapping& mapping) const {
    if (!is_private(mapping)) return mapping.protection;
    const bool written = mapping.accounted || any_within(pages_, mapping.range);
    return written && !came_complete(mapping) ? mapping.protection | PROT_WRITE : mapping.protection;
  }

  /// From the parent, who had done with it.
  bool came_complete(const model::Mapping& mapping) const {
    const auto inherited = inherited_in(mapping.range);
    return !inherited.empty() && is_unchanged(*inherited.front().origin, mapping) &&
           std::ranges::all_of(pages_within(pages_, mapping.range), &PageLocation::shared_with_parent);
  }

  Status map(const model::Mapping& mapping) {
    switch (mapping.backing) {
      case model::Backing::shared_anonymous:
        TRY(map_segment(mapping));
        break;
      case model::Backing::private_anonymous:
      case model::Backing::private_file:
      case model::Backing::shared_file:
        TRY(map_around_inherited(mapping));
        break;
      case model::Backing::vdso:
      case model::Backing::vvar:
      case model::Backing::vsyscall:
        return {};
      case model::Backing::aio_ring:
        set_up_aio(mapping);
        return {};
      case model::Backing::io_uring:
        return map_queues(mapping);
    }
    // These decide which pages the kernel takes to fill it.
    for (const int advice : {MADV_HUGEPAGE, MADV_NOHUGEPAGE}) {
      if (!mapping.advice.contains(advice) || (advice == MADV_NOHUGEPAGE && is_made_without_huge_pages(mapping)))
        continue;
      sink().perform("huge page advice", "memory.state",
                     {call(SYS_madvise, mapping.range.begin, mapping.range.size(), advice)});
    }
    return {};
  }

  /// As stacks of threads are: no advice is needed then.
  bool is_made_without_huge_pages(const model::Mapping& mapping) const {
    return out_.options.stacks_are_never_huge && mapping.backing == model::Backing::private_anonymous &&
           mapping.advice.contains(MADV_NOHUGEPAGE);
  }

  void set_up_aio(const model::Mapping& mapping) {
    const auto context = std::ranges::find(plan_.space->aio, mapping.range.begin, &model::AioContext::ring);
    if (context == plan_.space->aio.end()) return;
    const std::array<uint32_t, 4> state{context->slots, context->head, context->tail, 0};
    In in = struct_in(state);
    in.bytes.insert(in.bytes.end(), context->events.begin(), context->events.end());
    sink().perform("AIO context", "memory.aio",
                   {call(Call::setup_aio, context->requests, context->ring, mapping.range.size(), std::move(in))});
  }

  Status map_queues(const model::Mapping& mapping) {
    const int fd = TRY(file_for(mapping));
    sink().perform("queues of an io_uring", "memory.io_uring",
                   {call(Call::map_in_place, fd, mapping.range.begin, mapping.range.size(), mapping.offset,
                         mapping.protection, Out{Call::room_for_choices})});
    return {};
  }

  /// The whole mapping, or what is missing between its inherited parts.
  Status map_around_inherited(const model::Mapping& mapping) {
    uint64_t at = mapping.range.begin;
    const auto inherited = inherited_in(mapping.range);
    for (const auto& part : inherited) {
      if (at < part.range.begin) TRY(map_part(mapping, {at, part.range.begin}));
      at = part.range.end;
    }
    if (at < mapping.range.end) TRY(map_part(mapping, {at, mapping.range.end}));
    if (inherited.empty()) return {};
    const uint32_t protection = protection_while_loading(mapping);
    const auto& first = inherited.front();
    if (first.range != mapping.range || first.origin->protection != protection)
      sink().add(Mprotect{mapping.range.begin, mapping.range.size(), protection});
    return {};
  }

  Status map_part(const model::Mapping& mapping, AddressRange part) {
    const uint32_t protection = protection_while_loading(mapping);
    if (mapping.backing == model::Backing::private_anonymous) {
      const uint32_t never_huge = is_made_without_huge_pages(mapping) ? MAP_STACK : 0;
      sink().add(MmapAnon{part.begin, part.size(), false, protection, mapping.map_flags | never_huge});
      return {};
    }
    const int fd = TRY(file_for(mapping));
    const bool shared = mapping.backing == model::Backing::shared_file;
    sink().add(Mmap{part.begin, part.size(), fd, mapping.offset + (part.begin - mapping.range.begin), shared,
                    protection, mapping.map_flags});
    return {};
  }

  /// shmat(2) maps the whole segment. Where parts of an attachment are left, they come from one whole attachment
  /// elsewhere: shmdt(2) finds them by the file that they have in common (ipc/shm.c, ksys_shmdt).
  void attach(const model::Mapping& mapping, const model::SharedMemory& segment) {
    const auto origin_of = [](const model::Mapping& m) { return m.range.begin - m.offset; };
    std::vector<const model::Mapping*> parts;
    for (const auto& other : plan_.space->mappings) {
      const bool together = other.shared_memory == segment.id && origin_of(other) == origin_of(mapping) &&
                            other.read_only_attach == mapping.read_only_attach;
      if (together) parts.push_back(&other);
    }
    if (parts.front() != &mapping) return;  // came with the first
    uint32_t protection = PROT_READ | (mapping.read_only_attach ? 0 : PROT_WRITE);
    for (const auto* part : parts) protection |= part->protection & PROT_EXEC;
    const bool whole = mapping.range.size() == segment.size;
    const uint64_t at = whole ? mapping.range.begin : scratch_for(out_, segment);
    sink().add(AttachSegment{segment.system_v->id, at, segment.size, protection, segment.id});
    uint64_t done = 0;
    const auto drop_until = [&](uint64_t offset) {
      if (done < offset) sink().add(Munmap{at + done, offset - done});
    };
    for (const auto* part : parts) {
      drop_until(part->offset);
      done = part->offset + part->range.size();
      const bool split = !whole && move_part(at, segment.size, *part);
      if (split || protection != part->protection)
        sink().add(Mprotect{part->range.begin, part->range.size(), part->protection});
    }
    drop_until(segment.size);
  }

  /// What comes behind it is split off first: only a mapping as a whole is moved.
  bool move_part(uint64_t at, uint64_t size, const model::Mapping& part) {
    const bool split = part.offset + part.range.size() != size;
    if (split) sink().add(Mprotect{at + part.offset, part.range.size(), PROT_NONE});
    sink().add(Mremap{at + part.offset, part.range.size(), part.range.begin});
    return split;
  }

  Status map_segment(const model::Mapping& mapping) {
    const ObjectId id = mapping.shared_memory;
    const auto segment = out_.application.shared_memories.find(id);
    if (segment != out_.application.shared_memories.end() && segment->second.system_v) {
      attach(mapping, segment->second);
      return {};
    }
    const auto held = segments_.held_at.find(id);
    if (held == segments_.held_at.end())
      return fail(Error::internal("plan memory", fmt::format("nobody has made segment {} yet", id)));
    int fd = held->second;
    if (!segments_.is_owner(id, plan_.pid)) {
      if (!taken_.contains(id)) {
        taken_[id] = out_.temporary_fd();
        out_.await_all(sink(), fmt::format("segment {}", id));
        out_.transfer(segments_.owner(id), plan_.pid, fd, taken_[id], true);
      }
      fd = taken_[id];
    }
    sink().add(Mmap{mapping.range.begin, mapping.range.size(), fd, mapping.offset, true, mapping.protection,
                    mapping.map_flags});
    return {};
  }

  /// The mapped description: one that is open already, or one opened for the moment.
  Result<int> file_for(const model::Mapping& mapping) {
    if (const auto number = open_(mapping.file)) return *number;
    if (const auto found = files_.find(mapping.file); found != files_.end()) return found->second;
    const auto description = out_.application.descriptions.find(mapping.file);
    if (description == out_.application.descriptions.end()) {
      return fail(Error::invalid(
          "plan memory",
          fmt::format("the mapping at {:#x} is of a file that is not in the images", mapping.range.begin)));
    }
    const auto* maker = out_.maker(description->second);
    if (maker == nullptr) {
      return fail(Error::internal(
          "plan memory", fmt::format("nobody makes files of kind {}", description->second.state.value->kind())));
    }
    if (out_.is_passed(description->second)) {
      return fail(Error::internal("plan memory",
                                  fmt::format("nobody passes on {}, which is mapped at {:#x}",
                                              description->second.state.value->describe(), mapping.range.begin)));
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

  static std::vector<AddressRange> vdso_block(const model::AddressSpace& space) {
    std::vector<AddressRange> block;
    for (const auto& mapping : space.mappings) {
      if (mapping.backing == model::Backing::vdso || mapping.backing == model::Backing::vvar)
        block.push_back(mapping.range);
    }
    return block;
  }

  bool has(model::Backing backing) const {
    return std::ranges::any_of(plan_.space->mappings, [&](const auto& mapping) { return mapping.backing == backing; });
  }

  /// ARCH_MAP_VDSO_64 maps the whole block, data pages first, at the lowest address. Of a task that has unmapped the
  /// code (Valgrind does) that goes again: the call returns its size (arch/x86/kernel/process_64.c, prctl_map_vdso).
  void map_vdso() {
    const auto block = vdso_block(*plan_.space);
    if (block.empty() || inherits_vdso_) return;
    const uint64_t lowest = std::ranges::min(block).begin;
    Perform map{"vDSO", "", {"CAP_CHECKPOINT_RESTORE"}, {}, {}};
    map.calls.push_back(call(SYS_arch_prctl, arch_map_vdso_64, lowest));
    if (!has(model::Backing::vdso)) {
      const uint64_t code = std::ranges::max(block, {}, &AddressRange::end).end;
      map.calls.push_back(call(SYS_munmap, code, ResultOf{-1}));
    }
    sink().add(std::move(map));
  }

  // ---- contents

  /// Calls `visit` for every stretch of pages of a mapping that has to be read.
  template <typename Visit>
  void each_missing_page(Visit visit) const {
    for (const auto* mapping : mappings_) {
      if (!is_private(*mapping)) continue;
      const auto inherited = inherited_in(mapping->range);
      for (const auto& page : pages_within(pages_, mapping->range)) {
        if (!page.shared_with_parent || inherited.empty())
          visit(*mapping, page);
        else
          each_outside(page, inherited, [&](const PageLocation& part) { visit(*mapping, part); });
      }
    }
  }
  template <typename Visit>
  static void each_outside(const PageLocation& page, const std::vector<Inherited>& inherited, Visit visit) {
    uint64_t at = page.range.begin;
    const auto until = [&](uint64_t end) {
      if (at >= end) return;
      PageLocation part = page;
      part.offset += at - page.range.begin;
      part.range = {at, end};
      visit(part);
    };
    for (const auto& [there, origin] : inherited) {
      if (!there.overlaps(page.range)) continue;
      until(std::min(there.begin, page.range.end));
      at = std::max(at, there.end);
    }
    until(page.range.end);
  }

  Status load() {
    std::vector<PageLocation> needed;
    each_missing_page([&](const model::Mapping& mapping, const PageLocation& page) {
      plan_.lazy->each_needed(*plan_.space, mapping, page, [&](const PageLocation& part) { needed.push_back(part); });
    });
    if (const auto lacking = std::ranges::find_if(needed, &PageLocation::is_elsewhere); lacking != needed.end())
      return refuse_without(*lacking);
    for (const PageLocation& page : needed) {
      // What stasis writes is allocated as it comes: where it is released from the images meanwhile, both together must
      // not become more than they were.
      auto into = sink();
      if (!page.through_stasis) populate(into, page.range);
    }
    PageLoader loader(out_, plan_.pid);
    for (const PageLocation& page : needed) loader.load(page, page.range.begin);
    return {};
  }

  Status refuse_without(const PageLocation& page) const {
    const auto subject = fmt::format("task {}, page {:#x}", plan_.pid, page.range.begin);
    if (out_.options.lazy)
      return fail(Error::invalid("plan memory", "it is in no image, but cannot come later", subject));
    return fail(
        Error::conflict("plan memory", "it is in no image: `dump --lazy-pages` has it", subject)
            .advise("restore with --lazy-pages, beside `stasis lazy-pages --page-server`, while that dump runs"));
  }

  void protect() {
    for (const auto* mapping : mappings_) {
      if (is_private(*mapping) && protection_while_loading(*mapping) != mapping->protection) {
        sink().add(Mprotect{mapping->range.begin, mapping->range.size(), mapping->protection});
      }
    }
  }

  Emission& out_;
  const MemoryPlan& plan_;
  SharedSegments& segments_;
  const OpenNumbers& open_;
  const std::vector<PageLocation>& pages_;
  std::vector<const model::Mapping*> mappings_;  // those of this part
  std::vector<Inherited> inherited_;             // ascending: parts of mappings that stay as they came from the parent
  const std::vector<PageLocation>* parents_pages_ = nullptr;  // where anything is inherited
  bool inherits_vdso_ = false;
  std::map<ObjectId, int> files_, taken_;
};

Status load_segment(Emission& out, Pid pid, const model::SharedMemory& segment, uint64_t at) {
  PageLoader loader(out, pid);
  for (const auto& page : stored_pages(out, segment.id)) {
    if (page.range.end > segment.size)
      return fail(Error::invalid("plan memory", fmt::format("segment {} has pages beyond its end", segment.id)));
    loader.load(page, at + page.range.begin);
  }
  return {};
}

/// The segment is there: made by the supervisor, or found on the system. In one that others use meanwhile is what they
/// have written.
Status fill_system_v(Emission& out, Pid pid, const model::SharedMemory& segment) {
  using Found = model::SystemVSegment::Found;
  const bool is_empty = segment.system_v->found == Found::missing && stored_pages(out, segment.id).empty();
  if (segment.system_v->found == Found::in_use || is_empty) return {};
  const uint64_t scratch = scratch_for(out, segment);
  auto sink = out.process(pid);
  sink.add(AttachSegment{segment.system_v->id, scratch, segment.size, PROT_READ | PROT_WRITE, segment.id});
  if (segment.system_v->found == Found::unused)
    sink.perform("empty the segment", "", {call(SYS_madvise, scratch, segment.size, MADV_REMOVE)});
  TRY(load_segment(out, pid, segment, scratch));
  sink.add(Munmap{scratch, segment.size});
  return {};
}

}  // namespace

SharedSegments::SharedSegments(Emission& out, const std::vector<Pid>& order) {
  std::set<ObjectId> seen;
  for (const Pid pid : order) {
    const auto* task = out.tasks.find(pid);
    if (task == nullptr || task->state == model::TaskState::zombie || !seen.insert(task->address_space).second)
      continue;
    for (const auto& mapping : out.application.address_spaces.at(task->address_space).mappings) {
      if (mapping.backing == model::Backing::shared_anonymous) owners_.emplace(mapping.shared_memory, pid);
    }
  }
}

Status plan_mappings(Emission& out, const MemoryPlan& plan, SharedSegments& segments, const OpenNumbers& open) {
  const int first = out.first_temporary();
  TRY(MappingPlanner(out, plan, segments, open).run());
  // All of its descriptors are closed by now. With a shared table somebody else may be at the same step at the same
  // time.
  if (!out.shares_table(plan.pid)) out.set_first_temporary(first);
  return {};
}

uint64_t scratch_space(const model::SharedMemory& segment) { return segment.size + alignment_of(segment); }

/// The owner maps a whole new segment at a free place, opens it again through its map_files link, fills it and unmaps
/// it.
Status plan_segments(Emission& out, const MemoryPlan& plan, SharedSegments& segments) {
  std::set<ObjectId> made;
  for (const auto& mapping : plan.space->mappings) {
    const ObjectId id = mapping.shared_memory;
    if (mapping.backing != model::Backing::shared_anonymous || !segments.is_owner(id, plan.pid) ||
        !made.insert(id).second)
      continue;
    const auto segment = out.application.shared_memories.find(id);
    if (segment == out.application.shared_memories.end()) {
      return fail(Error::invalid("plan memory", fmt::format("shared segment {} is not in the images", id)));
    }
    if (segment->second.system_v) {
      TRY(fill_system_v(out, plan.pid, segment->second));
      continue;
    }
    const uint64_t size = segment->second.size, scratch = scratch_for(out, segment->second);
    const int fd = out.temporary_fd();
    segments.held_at[id] = fd;
    auto sink = out.process(plan.pid);
    // Ordinary segments may be larger than memory; huge pages on the other hand are promised when they are mapped.
    const bool huge = (segment->second.map_flags & MAP_HUGETLB) != 0;
    const uint32_t flags = segment->second.map_flags | (huge ? 0u : static_cast<uint32_t>(MAP_NORESERVE));
    sink.add(MmapAnon{scratch, size, true, PROT_READ | PROT_WRITE, flags});
    sink.add(Open{fmt::format("/proc/self/map_files/{:x}-{:x}", scratch, scratch + size), O_RDWR | O_CLOEXEC, 0, fd,
                  ObjectId{}});
    TRY(load_segment(out, plan.pid, segment->second, scratch));
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

}  // namespace stasis::plan
