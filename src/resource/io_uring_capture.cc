#include <fmt/format.h>
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <set>

#include "resource/io_uring.h"
#include "resource/kernel_access.h"
#include "resource/mapped_memory.h"

namespace stasis::resource {
namespace {

constexpr std::string_view close_it =
    "have the program close it before the dump, or run it with another way of I/O (for libuv: UV_USE_IO_URING=0)";

/// Looks at one io_uring in the kernel's memory.
class Look {
 public:
  Look(const kernel::KernelMemory& memory, IoUring& ring) : memory_(memory), ring_(ring) {}

  /// Why it cannot be saved; empty: it can.
  Result<std::string> run(int fd) {
    context_ = TRY(memory_.private_data(fd));
    // Which other rings' workers it uses changes nothing that a program could see.
    ring_.setup_flags = static_cast<uint32_t>(TRY(get("flags"))) & ~uring::attach_workers;
    ring_.sq_entries = static_cast<uint32_t>(TRY(get("sq_entries")));
    ring_.cq_entries = static_cast<uint32_t>(TRY(get("cq_entries")));
    if (auto problem = TRY(problem_of_setup()); !problem.empty()) return problem;
    if (auto problem = TRY(problem_of_state()); !problem.empty()) return problem;
    if (auto problem = TRY(look_at_buffers()); !problem.empty()) return problem;
    if (auto problem = TRY(look_at_files()); !problem.empty()) return problem;
    if (const uint64_t registered = TRY(get("io_ev_fd")); registered != 0) {
      ring_.kernel_eventfd = TRY(memory_.get(registered, "io_ev_fd", "cq_ev_fd"));
      ring_.eventfd_async = TRY(memory_.get(registered, "io_ev_fd", "eventfd_async")) != 0;
    }
    return std::string{};
  }

  /// All requests that there are wait to be used again, and all that has completed has been told.
  Result<bool> is_idle() const {
    const uint64_t overflow = TRY(memory_.address(context_, "io_ring_ctx", "cq_overflow_list"));
    if (TRY(memory_.word(overflow)) != overflow) return false;
    const uint64_t requests = TRY(get("nr_req_allocated"));
    const uint64_t state = TRY(memory_.address(context_, "io_ring_ctx", "submit_state"));
    uint64_t unused = 0;
    for (uint64_t at = TRY(memory_.get(state, "io_submit_state", "free_list")); at != 0 && unused <= requests; ++unused)
      at = TRY(memory_.word(at));
    return unused == requests;
  }

  Result<uint64_t> get(std::string_view field) const { return memory_.get(context_, "io_ring_ctx", field); }

 private:
  /// Those of later kernels may be missing.
  Result<uint64_t> get_if_there(std::string_view field, uint64_t otherwise) const {
    return memory_.has("io_ring_ctx", field) ? get(field) : Result<uint64_t>(otherwise);
  }
  Result<bool> is_empty(std::string_view xarray) const {
    if (!memory_.has("io_ring_ctx", xarray)) return true;
    return TRY(memory_.get(TRY(memory_.address(context_, "io_ring_ctx", xarray)), "xarray", "xa_head")) == 0;
  }

  Result<std::string> problem_of_setup() const {
    const uint32_t unknown = ring_.setup_flags & ~uring::known_flags;
    if (unknown != 0) {
      return fmt::format(
          "it was set up with flags {:#x} (polling, a thread of the kernel's, memory of the program's, "
          "disabled): such cannot be made again",
          unknown);
    }
    if ((ring_.setup_flags & uring::single_issuer) == 0) return std::string{};
    const uint64_t issuer = TRY(get("submitter_task"));
    if (issuer != 0 &&
        TRY(memory_.get(issuer, "task_struct", "pid")) != TRY(memory_.get(issuer, "task_struct", "tgid")))
      return std::string("only the thread that has made it may use it, and that is not the first of its process");
    return std::string{};
  }

  Result<std::string> problem_of_state() const {
    constexpr uint64_t napi_inactive = 255;  // IO_URING_NAPI_TRACKING_INACTIVE
    if (TRY(get("restricted")) != 0) return std::string("it is restricted (IORING_REGISTER_RESTRICTIONS)");
    if (!TRY(is_empty("io_bl_xa"))) return std::string("buffers are provided to it (IORING_OP_PROVIDE_BUFFERS, rings)");
    if (!TRY(is_empty("personalities"))) return std::string("credentials are registered with it");
    if (!TRY(is_empty("zcrx_ctxs"))) return std::string("a queue of a network device is registered with it");
    if (TRY(get_if_there("iowq_limits_set", 0)) != 0) return std::string("the number of its workers is limited");
    if (TRY(get_if_there("clockid", CLOCK_MONOTONIC)) != CLOCK_MONOTONIC)
      return std::string("another clock is registered with it");
    if ((TRY(get_if_there("napi_track_mode", napi_inactive)) & 0xff) != napi_inactive)
      return std::string("it polls network devices (IORING_REGISTER_NAPI)");
    if (memory_.has("io_ring_ctx", "param_region") &&
        TRY(memory_.get(TRY(memory_.address(context_, "io_ring_ctx", "param_region")), "io_mapped_region",
                        "nr_pages")) != 0)
      return std::string("memory for parameters is registered with it");
    for (const uint64_t task : TRY(users())) {
      if (TRY(has_registered_rings(task))) return std::string("a thread has registered it (IORING_REGISTER_RING_FDS)");
    }
    return std::string{};
  }

  Result<bool> has_registered_rings(uint64_t task) const {
    constexpr uint64_t most = 16;  // IO_RINGFD_REG_MAX
    const uint64_t state = TRY(memory_.get(task, "task_struct", "io_uring"));
    if (state == 0) return false;
    const uint64_t rings = TRY(memory_.address(state, "io_uring_task", "registered_rings"));
    for (uint64_t i = 0; i < most; ++i) {
      if (TRY(memory_.word(rings + i * sizeof(uint64_t))) != 0) return true;
    }
    return false;
  }

  /// The threads that have used it.
  Result<std::vector<uint64_t>> users() const {
    std::vector<uint64_t> found;
    const uint64_t head = TRY(memory_.address(context_, "io_ring_ctx", "tctx_list"));
    for (const uint64_t node : TRY(memory_.listed(head, "io_tctx_node", "ctx_node")))
      found.push_back(TRY(memory_.get(node, "io_tctx_node", "task")));
    return found;
  }

  Result<std::vector<uint64_t>> nodes(uint64_t table) const {
    const uint64_t count = TRY(memory_.get(table, "io_rsrc_data", "nr"));
    const uint64_t array = TRY(memory_.get(table, "io_rsrc_data", "nodes"));
    std::vector<uint64_t> found;
    for (uint64_t i = 0; i < count; ++i) found.push_back(TRY(memory_.word(array + i * sizeof(uint64_t))));
    return found;
  }

  Result<std::string> look_at_buffers() {
    for (const uint64_t node : TRY(nodes(TRY(memory_.address(context_, "io_ring_ctx", "buf_table"))))) {
      auto& buffer = ring_.buffers.emplace_back();
      if (node == 0) continue;
      const uint64_t mapped = TRY(memory_.get(node, "io_rsrc_node", "buf"));
      if (TRY(memory_.get(node, "io_rsrc_node", "tag")) != 0) return std::string("its registered buffers have tags");
      if (memory_.has("io_mapped_ubuf", "is_kbuf") && TRY(memory_.get(mapped, "io_mapped_ubuf", "is_kbuf")) != 0)
        return std::string("a buffer of the kernel's is registered with it");
      buffer = {TRY(memory_.get(mapped, "io_mapped_ubuf", "ubuf")), TRY(memory_.get(mapped, "io_mapped_ubuf", "len"))};
    }
    return std::string{};
  }

  Result<std::string> look_at_files() {
    constexpr uint64_t hints = 7;  // FFS_NOWAIT and its like, in the pointer's lowest bits
    const uint64_t table =
        TRY(memory_.address(TRY(memory_.address(context_, "io_ring_ctx", "file_table")), "io_file_table", "data"));
    for (const uint64_t node : TRY(nodes(table))) {
      if (node != 0 && TRY(memory_.get(node, "io_rsrc_node", "tag")) != 0)
        return std::string("its registered files have tags");
      ring_.kernel_files.push_back(node == 0 ? 0 : TRY(memory_.get(node, "io_rsrc_node", "file_ptr")) & ~hints);
    }
    return std::string{};
  }

  const kernel::KernelMemory& memory_;
  IoUring& ring_;
  uint64_t context_ = 0;
};

/// Where things are in the queues: one of the same kind is told when it is made.
Result<io_uring_params> layout_of(const IoUring& ring) {
  io_uring_params parameters{};
  parameters.flags = ring.setup_flags;
  parameters.cq_entries = ring.cq_entries;
  const UniqueFd alike(static_cast<int>(syscall(SYS_io_uring_setup, ring.sq_entries, &parameters)));
  if (!alike.valid()) return fail_errno("make an io_uring like it");
  return parameters;
}

Status read_queues(IoUring& ring, int fd) {
  const auto layout = TRY(layout_of(ring));
  auto& stands = ring.stands;
  stands.sqes_size = static_cast<uint32_t>(ring.sq_entries * uring::entry_size(ring.setup_flags));
  stands.cqes_size = static_cast<uint32_t>(ring.cq_entries * uring::completion_size(ring.setup_flags));
  stands.array_size = static_cast<uint32_t>(uring::array_size(ring.setup_flags, ring.sq_entries));
  const uint64_t size = std::max<uint64_t>(layout.cq_off.cqes + stands.cqes_size,
                                           stands.array_size == 0 ? 0 : layout.sq_off.array + stands.array_size);
  const std::string map_them = "map the queues of an io_uring";
  const auto queues = TRY(MappedMemory::of(fd, size, 0, map_them));
  const auto entries = TRY(MappedMemory::of(fd, stands.sqes_size, uring::offset_of_entries, map_them));
  stands.sq_head = queues.word(layout.sq_off.head), stands.sq_tail = queues.word(layout.sq_off.tail);
  stands.sq_dropped = queues.word(layout.sq_off.dropped), stands.sq_flags = queues.word(layout.sq_off.flags);
  stands.cq_head = queues.word(layout.cq_off.head), stands.cq_tail = queues.word(layout.cq_off.tail);
  stands.cq_overflow = queues.word(layout.cq_off.overflow), stands.cq_flags = queues.word(layout.cq_off.flags);
  ring.sqes = entries.part(0, stands.sqes_size);
  ring.cqes = queues.part(layout.cq_off.cqes, stands.cqes_size);
  ring.sq_array = queues.part(layout.sq_off.array, stands.array_size);
  return {};
}

/// What the kernel goes by and what it shows is the same where it is idle, and as far as a restore can come.
Result<std::string> problem_of_queues(const IoUring& ring, const Look& look) {
  const auto& stands = ring.stands;
  if (TRY(look.get("cached_sq_head")) != stands.sq_head || TRY(look.get("cached_cq_tail")) != stands.cq_tail)
    return std::string("its queues have been changed by the program where only the kernel may");
  if (stands.sq_tail - stands.sq_head > ring.sq_entries || stands.cq_tail - stands.cq_head > ring.cq_entries)
    return std::string("its queues hold more than they have room for");
  if (stands.cq_tail > stands.sq_head)
    return std::string("it has told of more than it was given (multishot requests, messages of other rings)");
  return std::string{};
}

}  // namespace

Result<std::shared_ptr<IoUring>> capture_io_uring(CaptureContext& context, const DescriptorProbe& probe) {
  auto ring = std::make_shared<IoUring>();
  const auto refuse = [&](const std::string& problem) {
    context.diagnostics.refuse(probe.subject, "it is an io_uring: " + problem, std::string(close_it));
  };
  const auto& memory = context.kept<KernelAccess>().memory;
  if (!memory) {
    refuse(told_by_memory_alone("what it is like", memory.error()));
    return ring;
  }
  const int fd = TRY(probe.duplicate());
  Look look(*memory, *ring);
  const auto looked = [&]() -> Result<std::string> {
    if (auto problem = TRY(look.run(fd)); !problem.empty()) return problem;
    if (!TRY(look.is_idle())) {
      context.diagnostics.refuse_for_now(probe.subject, "it is an io_uring with requests that are under way",
                                         std::string(close_it));
      return std::string{};
    }
    TRY(read_queues(*ring, fd));
    return problem_of_queues(*ring, look);
  }();
  if (!looked)
    refuse(looked.error().message());
  else if (!looked->empty())
    refuse(*looked);
  return ring;
}

namespace {

/// Whose descriptors an io_uring is among.
std::vector<const model::Task*> holders(const CaptureContext& context, ObjectId id) {
  std::vector<const model::Task*> found;
  for (const auto& task : context.application.tasks) {
    const auto table = context.application.descriptor_tables.find(task.descriptors);
    if (task.state == model::TaskState::zombie || table == context.application.descriptor_tables.end()) continue;
    const auto has = [&](const auto& slot) { return slot.second.description == id; };
    if (std::ranges::any_of(table->second.slots, has)) found.push_back(&task);
  }
  return found;
}

/// The descriptions behind the descriptors of those who hold it, by what the kernel has for them.
class KnownFiles {
 public:
  static Result<KnownFiles> of(const CaptureContext& context, const kernel::KernelMemory& memory,
                               std::span<const model::Task* const> tasks) {
    KnownFiles known;
    for (const auto* task : tasks) {
      for (const auto& [fd, slot] : context.application.descriptor_tables.at(task->descriptors).slots) {
        DescriptorProbe probe;
        probe.witness = context.witness(*task), probe.fd = fd;
        const uint64_t file = TRY(memory.file(TRY(probe.duplicate())));
        known.files_[file] = slot.description;
        const auto& state = context.application.descriptions.at(slot.description).state;
        if (state.value && state.value->kind() == "eventfd")
          known.eventfds_[TRY(memory.get(file, "file", "private_data"))] = slot.description;
      }
    }
    return known;
  }

  ObjectId file(uint64_t file) const { return find(files_, file); }
  ObjectId eventfd(uint64_t object) const { return find(eventfds_, object); }

 private:
  static ObjectId find(const std::map<uint64_t, ObjectId>& where, uint64_t what) {
    const auto found = where.find(what);
    return found == where.end() ? ObjectId{} : found->second;
  }
  std::map<uint64_t, ObjectId> files_, eventfds_;
};

Status find_registered_with(CaptureContext& context, ObjectId id, IoUring& ring) {
  const auto tasks = holders(context, id);
  const auto subject = fmt::format("{} of task {}", ring.describe(), tasks.empty() ? Pid{} : tasks.front()->pid);
  const auto refuse = [&](std::string problem) {
    context.diagnostics.refuse(subject, std::move(problem), std::string(close_it));
  };
  if (tasks.size() != 1 && (!ring.buffers.empty() || (ring.setup_flags & uring::single_issuer) != 0))
    refuse("several processes have it open, and nobody tells which of them its buffers are of, or may use it");
  const auto is_file = [](uint64_t file) { return file != 0; };
  if (std::ranges::none_of(ring.kernel_files, is_file) && ring.kernel_eventfd == 0) {
    ring.files.resize(ring.kernel_files.size());
    return {};
  }
  const auto known = TRY(KnownFiles::of(context, *context.kept<KernelAccess>().memory, tasks));
  std::set<ObjectId> carried;
  for (const uint64_t file : ring.kernel_files) {
    const ObjectId found = ring.files.emplace_back(file == 0 ? ObjectId{} : known.file(file));
    if (found.value != 0) carried.insert(found);
    if (file != 0 && found.value == 0) refuse("a file is registered with it that nobody has open any more");
  }
  ring.eventfd = ring.kernel_eventfd == 0 ? ObjectId{} : known.eventfd(ring.kernel_eventfd);
  if (ring.eventfd.value != 0) carried.insert(ring.eventfd);
  if (ring.kernel_eventfd != 0 && ring.eventfd.value == 0)
    refuse("an eventfd is registered with it that nobody has open any more");
  context.application.descriptions.at(id).carries.assign(carried.begin(), carried.end());
  return {};
}

}  // namespace

Status find_registered(CaptureContext& context) {
  for (auto& [id, description] : context.application.descriptions) {
    const auto* captured = description.state.as<IoUring>();
    if (captured == nullptr) continue;
    auto ring = std::make_shared<IoUring>(*captured);
    TRY(find_registered_with(context, id, *ring));
    description.state = {std::move(ring)};
  }
  return {};
}

std::optional<ObjectId> find_io_uring(const CaptureContext& context, dev_t device, ino_t inode) {
  for (const auto& [id, description] : context.application.descriptions) {
    const auto identity = context.identities.find(id);
    const bool same =
        identity != context.identities.end() && identity->second.device == device && identity->second.inode == inode;
    if (same && description.state.as<IoUring>() != nullptr) return id;
  }
  return std::nullopt;
}

}  // namespace stasis::resource
