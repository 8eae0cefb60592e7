#include "resource/address_space.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "base/parallel.h"
#include "kernel/extents.h"
#include "resource/aio.h"
#include "resource/descriptors.h"
#include "resource/io_uring.h"
#include "resource/ipc_namespace.h"
#include "resource/kernel_access.h"
#include "resource/memory_mappings.h"
#include "resource/memory_runs.h"
#include "resource/packet_socket.h"
#include "resource/system_v.h"

namespace stasis::resource {

/// A shared anonymous segment, held open through the map_files link of one of its mappers: that reaches all of its
/// pages, also those that nobody maps any more.
struct TreeMemory::Segment {
  UniqueFd fd;
  uint64_t size = 0;
  bool huge = false;
  std::string name;
};

namespace {

constexpr const char* let_go_of_it = "The application has to let go of it before it is dumped";

model::MemoryLayout layout_of(const kernel::StatInfo& stat) {
  model::MemoryLayout layout;
  layout.start_code = stat.start_code;
  layout.end_code = stat.end_code;
  layout.start_data = stat.start_data;
  layout.end_data = stat.end_data;
  layout.start_brk = stat.start_brk;
  layout.start_stack = stat.start_stack;
  layout.arg_start = stat.arg_start;
  layout.arg_end = stat.arg_end;
  layout.env_start = stat.env_start;
  layout.env_end = stat.env_end;
  return layout;
}

std::string subject_of(const model::Task& task, const kernel::MapsEntry& vma) {
  return fmt::format("task {} '{}', mapping {:x}-{:x} {}", task.pid, task.name, vma.range.begin, vma.range.end,
                     vma.path);
}

/// How a mapped file has to be opened: a private mapping needs to be read only, whatever it was opened for.
Result<uint32_t> open_flags(pid_t witness, const kernel::MapsEntry& vma) {
  if (!vma.shared) return O_RDONLY;
  const std::string path = map_files_path(witness, vma.range);
  struct stat link{};
  // The link's own permissions are the access mode of the mapped description (proc_map_files_instantiate,
  // fs/proc/base.c).
  if (lstat(path.c_str(), &link) != 0) return fail_errno("lstat", path);
  return (link.st_mode & S_IWUSR) != 0 ? O_RDWR : O_RDONLY;
}

Status check_requests(CaptureContext& context, const ProcessView& view, AddressRange ring, std::string subject) {
  auto& access = context.kept<KernelAccess>();
  if (!access.memory) {
    context.diagnostics.warn(std::move(subject),
                             told_by_memory_alone("whether requests of it are under way", access.memory.error()),
                             "events of such are lost: dump as root, or while the program does no asynchronous I/O");
  } else if (TRY(is_under_way(*access.memory, *TRY(access.per_cpu()), view.witness(), ring.begin))) {
    context.diagnostics.refuse_for_now(std::move(subject), "requests of it are under way",
                                       "let the program wait for them before it is dumped, or cancel them");
  }
  return {};
}

}  // namespace

TreeMemory::TreeMemory() = default;
TreeMemory::~TreeMemory() = default;

Status TreeMemory::capture(CaptureContext& context, const ProcessView& view, const model::Task& task,
                           std::span<const AddressRange> ours) {
  if (!spaces_.emplace(task.address_space, view.witness()).second) return {};
  without_pages_.push_back(task.address_space);
  auto& space = context.application.address_spaces[task.address_space];
  space.id = task.address_space;
  const auto* facts = TRY(view.facts());
  space.layout = layout_of(facts->stat);
  space.layout.auxv = facts->auxv;
  space.executable = TRY(capture_file_at(context,
                                         {view.witness(), fmt::format("/proc/{}/exe", view.witness()), O_RDONLY,
                                          fmt::format("task {} '{}', executable", task.pid, task.name)},
                                         facts->executable));
  for (const kernel::MapsEntry& vma : facts->mappings) {
    if (std::ranges::any_of(ours, [&](const AddressRange& range) { return vma.range.overlaps(range); })) continue;
    Classified found = classify(vma, trackers_ != nullptr);
    if (trackers_ != nullptr && vma.vm_flags.contains("uw"))
      write_protected_.push_back({task.address_space, vma.range, subject_of(task, vma)});
    if (found.kind == VmaKind::shared_segment && is_open(context, vma)) found.kind = VmaKind::file;
    if (found.kind == VmaKind::unsupported) {
      context.diagnostics.refuse(subject_of(task, vma), found.problem, let_go_of_it);
      continue;
    }
    auto mapping = mapping_of(vma, found.kind);
    if (found.kind == VmaKind::file) mapping.file = TRY(file_of(context, view.witness(), task, vma));
    if (found.kind == VmaKind::shared_segment || found.kind == VmaKind::system_v) {
      mapping.shared_memory = TRY(segment_of(context, view.witness(), vma));
      auto& segment = context.application.shared_memories.at(mapping.shared_memory);
      if (found.kind == VmaKind::system_v && !segment.system_v)
        TRY_IN("look at " + subject_of(task, vma), in_ipc_namespace_of(view.witness(), [&]() -> Status {
                 segment.system_v = TRY(look_at_segment(static_cast<int>(vma.inode)));
                 segment.system_v->huge_page_order = segment.map_flags >> MAP_HUGE_SHIFT & MAP_HUGE_MASK;
                 return {};
               }));
    }
    if (found.kind == VmaKind::io_uring) {
      const auto ring = find_io_uring(context, makedev(vma.device_major, vma.device_minor), vma.inode);
      if (!ring)
        context.diagnostics.refuse(subject_of(task, vma), "the io_uring that these queues are of nobody has open",
                                   let_go_of_it);
      mapping.file = ring.value_or(ObjectId{});
    }
    if (found.kind == VmaKind::packet_rings) mapping.file = find_packet_rings(context, vma, subject_of(task, vma));
    if (found.kind == VmaKind::aio_ring) {
      TRY_IN("look at " + subject_of(task, vma), check_requests(context, view, vma.range, subject_of(task, vma)));
      space.aio.push_back(TRY_IN("look at " + subject_of(task, vma), look_at_aio(view.witness(), vma.range)));
    }
    space.mappings.push_back(std::move(mapping));
  }
  return {};
}

bool TreeMemory::is_open(const CaptureContext& context, const kernel::MapsEntry& vma) {
  if (!open_files_) {
    open_files_.emplace();
    for (const auto& [id, identity] : context.identities) {
      if (identity.type == S_IFREG) open_files_->emplace(identity.device, identity.inode);
    }
  }
  return open_files_->contains({makedev(vma.device_major, vma.device_minor), vma.inode});
}

/// All processes of a tree mostly map the same few files, and following a link of map_files is slow.
Result<ObjectId> TreeMemory::file_of(CaptureContext& context, pid_t witness, const model::Task& task,
                                     const kernel::MapsEntry& vma) {
  const uint32_t flags = TRY(open_flags(witness, vma));
  ObjectId& file = files_[{vma.device_major, vma.device_minor, vma.inode, flags, vma.path}];
  if (file.value != 0) return file;
  const auto path = map_files_path(witness, vma.range);
  return file = TRY(capture_file_at(context, {witness, path, flags, subject_of(task, vma)}, TRY(read_file_link(path))));
}

Result<ObjectId> TreeMemory::segment_of(CaptureContext& context, pid_t witness, const kernel::MapsEntry& vma) {
  bool fresh = false;
  const ObjectId id =
      context.object(fmt::format("segment:{}:{}:{}", vma.device_major, vma.device_minor, vma.inode), fresh);
  if (!fresh) return id;
  auto segment = std::make_unique<Segment>();
  segment->name = map_files_path(witness, vma.range);
  segment->fd = UniqueFd(open(segment->name.c_str(), O_RDONLY | O_CLOEXEC));
  if (!segment->fd.valid()) {
    auto error = Error::system("open shared memory", errno, segment->name);
    return fail(std::move(error).advise("map_files needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN"));
  }
  struct stat status{};
  if (fstat(segment->fd.get(), &status) != 0) return fail_errno("fstat", segment->name);
  segment->size = static_cast<uint64_t>(status.st_size);
  segment->huge = vma.vm_flags.contains("ht");
  const auto mapping = mapping_of(vma, VmaKind::shared_segment);
  constexpr uint32_t of_the_segment = MAP_HUGETLB | (MAP_HUGE_MASK << MAP_HUGE_SHIFT);
  const uint64_t whole_pages = (segment->size + page_size - 1) / page_size * page_size;
  context.application.shared_memories[id] = {id, whole_pages, mapping.map_flags & of_the_segment, {}};
  segments_.emplace(id, std::move(segment));
  return id;
}

Status TreeMemory::look_ahead(const std::map<ObjectId, pid_t>& witnesses) {
  std::vector<std::pair<pid_t, std::vector<kernel::PageScan>*>> wanted;
  for (const auto& [space, witness] : witnesses) wanted.emplace_back(witness, &scans_[space]);
  return parallel_for(wanted.size(), [&](size_t index) -> Status {
    *wanted[index].second = TRY(scan_own_pages(wanted[index].first));
    return {};
  });
}

Result<OwnPages> TreeMemory::own_pages(model::AddressSpace& space) const {
  const auto scan = scans_.find(space.id);
  const bool is_low = std::ranges::all_of(space.mappings, [](const model::Mapping& mapping) {
    return mapping.range.end <= end_of_scan || mapping.backing == model::Backing::vsyscall;
  });
  if (scan == scans_.end() || !is_low) return find_own_pages(spaces_.at(space.id), space.mappings);
  return own_pages_in(space.mappings, scan->second);
}

Status TreeMemory::finish(CaptureContext& context) {
  auto& application = context.application;
  for (const ObjectId id : without_pages_) tracked_[id] = {};
  TRY(parallel_for(without_pages_.size(), [&](size_t index) -> Status {
    auto& space = application.address_spaces.at(without_pages_[index]);
    auto own = TRY(own_pages(space));
    space.pages = std::move(own.runs);
    tracked_.at(space.id) = {nullptr, std::move(own.unchanged), own.tracked};
    space.mappings = coalesce(std::move(space.mappings));
    return {};
  }));
  without_pages_.clear();
  scans_.clear();
  TRY_IN("find out what has been written", find_trackers(context));
  std::vector<std::pair<ObjectId, ObjectId>> pairs;  // child, parent
  std::set<ObjectId> done;
  const model::TaskIndex tasks(application);
  for (const model::Task& task : application.tasks) {
    const model::Task* parent = tasks.find(task.parent);
    if (parent == nullptr || !spaces_.contains(task.address_space) || !spaces_.contains(parent->address_space))
      continue;
    if (parent->address_space != task.address_space && done.insert(task.address_space).second)
      pairs.emplace_back(task.address_space, parent->address_space);
  }
  // Only the child's pages are changed, and of the parent only the mappings are read.
  return parallel_for(pairs.size(), [&](size_t index) {
    const auto [child, parent] = pairs[index];
    return mark_shared_pages(spaces_.at(child), application.address_spaces.at(child), spaces_.at(parent),
                             application.address_spaces.at(parent));
  });
}

/// One after the other: a tracker is recognised by what it does, and it must not do it at two places at once.
Status TreeMemory::find_trackers(CaptureContext& context) {
  if (trackers_ == nullptr) return {};
  const auto owners = address_space_owners(context.application);
  for (auto& [id, tracked] : tracked_) {
    tracked.tracker = TRY(
        recognise(*trackers_, spaces_.at(id), tracked.page, std::to_string(owners.at(id).value), tracked.unchanged));
  }
  for (const auto& [space, range, subject] : write_protected_) {
    using Registration = kernel::Userfaultfd::Registration;
    const auto* tracker = tracked_.at(space).tracker;
    if (tracker == nullptr || TRY(tracker->descriptor.register_range(range)) != Registration::registered)
      context.diagnostics.refuse(subject, write_protected_problem, let_go_of_it);
  }
  return {};
}

const memory::Tracker* TreeMemory::tracker_of(ObjectId address_space) const {
  const auto found = tracked_.find(address_space);
  return found == tracked_.end() ? nullptr : found->second.tracker;
}

std::vector<AddressRange> TreeMemory::unchanged(ObjectId address_space) {
  const auto found = tracked_.find(address_space);
  return found == tracked_.end() ? std::vector<AddressRange>{} : found->second.unchanged;
}

Status TreeMemory::protect(const CaptureContext& context, ObjectId id, const kernel::Userfaultfd& tracker) {
  const auto& space = context.application.address_spaces.at(id);
  return resource::protect(tracker, spaces_.at(id), mappings_with_own_pages(space.mappings, space.pages),
                           tracked_.at(id).unchanged);
}
void TreeMemory::let_go() { segments_.clear(); }

Result<std::unique_ptr<memory::PageSource>> TreeMemory::address_space(ObjectId id) {
  const auto found = spaces_.find(id);
  if (found == spaces_.end())
    return fail(Error::internal("read memory", fmt::format("address space {} was not captured", id)));
  if (const auto kept = kept_.find(id); kept != kept_.end() && kept->second) return std::move(kept->second);
  return std::make_unique<memory::ProcessPages>(found->second);
}

Result<std::unique_ptr<memory::PageSource>> TreeMemory::shared_memory(ObjectId id) {
  const auto found = segments_.find(id);
  if (found == segments_.end())
    return fail(Error::internal("read memory", fmt::format("segment {} was not captured", id)));
  return std::make_unique<memory::FilePages>(found->second->fd.get(), found->second->name);
}

Result<std::vector<model::PageRun>> TreeMemory::shared_memory_runs(const model::SharedMemory& memory) {
  const auto found = segments_.find(memory.id);
  if (found == segments_.end())
    return fail(Error::internal("read memory", fmt::format("segment {} was not captured", memory.id)));
  const Segment& segment = *found->second;
  if (segment.huge) return ApplicationMemory::shared_memory_runs(memory);  // hugetlbfs does not tell holes from data
  std::vector<model::PageRun> runs;
  for (const auto& range : TRY(kernel::data_pages(segment.fd.get(), segment.size, segment.name)))
    runs.push_back({range});
  return runs;
}

}  // namespace stasis::resource
