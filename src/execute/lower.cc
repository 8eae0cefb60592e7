#include "execute/lower.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/filter.h>
#include <linux/reboot.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <set>

#include "plan/contributor.h"

namespace stasis::execute {
namespace {

using agent::SlotProgram;
using plan::call;
using plan::expecting;
using plan::ResultOf;
using Expected = plan::Expectation::Kind;

/// The end of user addresses with four-level page tables. Mappings beyond it exist only where a program asked for them
/// by address (Documentation/arch/x86/x86_64/5level-paging.rst); stasis never has any.
constexpr uint64_t task_size = 0x7ffffffff000;
constexpr uint64_t largest_transfer = 1ull << 30;  ///< the kernel moves at most 0x7ffff000 bytes per call
constexpr size_t largest_vector = 1024;            ///< UIO_MAXIOV

class Lowering {
 public:
  Lowering(const plan::Program& program, const model::Application& application, const LowerOptions& options)
      : program_(program), application_(application), tasks_(application), options_(options) {
    result_.slots.emplace_back(agent::EndMode::return_to_caller);
    result_.slot_of[{Pid{0}, Tid{0}}] = 0;
  }

  Result<Lowered> run() {
    create_slots();
    for (origin_ = 0; origin_ < program_.commands.size(); ++origin_) {
      const auto& command = program_.commands[origin_];
      const auto slot = result_.slot_of.find(runner_of(command));
      if (slot == result_.slot_of.end()) {
        return fail(Error::invalid(
            "lower the program", fmt::format("command {} is run by {}, which nothing creates", origin_, command.pid)));
      }
      slot_ = slot->second;
      const uint32_t first = now().size();
      TRY(std::visit([&](const auto& action) { return lower(command, action); }, command.action));
      const bool runs_here = !std::holds_alternative<plan::EndRepair>(command.action);
      if (static_cast<int>(origin_) == options_.fail_at_command && runs_here) inject_failure(first);
    }
    result_.counter_count = 1 + static_cast<uint32_t>(counters_.size());
    return std::move(result_);
  }

 private:
  /// Spawns refer to slots of children before any command of theirs has been seen, and posts to what is awaited.
  void create_slots() {
    for (const auto& command : program_.commands) {
      if (const auto child = plan::created_by(command.action)) add_slot({*child, leader_of(*child)});
      if (const auto* thread = std::get_if<plan::StartThread>(&command.action)) add_slot({command.pid, thread->tid});
      if (const auto* await = std::get_if<plan::Await>(&command.action)) {
        const auto known = lowest_awaited_.try_emplace(await->event, await->count).first;
        known->second = std::min(known->second, await->count);
      }
    }
  }
  void add_slot(Runner runner) {
    if (!result_.slot_of.contains(runner)) {
      result_.slot_of[runner] = static_cast<uint32_t>(result_.slots.size());
      result_.slots.emplace_back(agent::EndMode::exit_thread);
    }
  }

  SlotProgram& now() { return result_.slots[slot_]; }
  uint32_t add(const plan::Call& made) { return now().call(made, static_cast<uint32_t>(origin_)); }
  uint32_t counter(const std::string& event) {
    return counters_.try_emplace(event, 1 + static_cast<uint32_t>(counters_.size())).first->second;
  }

  /// The first instruction of the command becomes a call that fails with EBADF. A command that lowers to nothing gets
  /// one.
  void inject_failure(uint32_t first) {
    const auto failing = call(SYS_fsync, -1);
    if (first == now().size()) add(failing);
    auto& instruction = now().instruction(first);
    instruction.operation = agent::Operation::call;
    instruction.number = SYS_fsync;
    instruction.kinds[0] = agent::ArgumentKind::immediate;
    instruction.args[0] = ~0ull;
    instruction.expect = agent::Expect::success;
  }

  // ---- the process tree

  /// Commands name processes as the tree's own pid namespace does; system calls want the numbers of the runner's.
  Result<pid_t> seen_by(const plan::Command& command, Pid pid) const {
    const auto runner = nested_pids_.find(command.pid), named = nested_pids_.find(pid);
    const size_t level = runner == nested_pids_.end() ? 0 : runner->second.size();
    if (level == 0) return pid.value;
    if (named != nested_pids_.end() && named->second.size() >= level) return named->second[level - 1];
    return fail(Error::invalid("lower the program", fmt::format("command {}: {} is outside of the pid namespace of {}",
                                                                origin_, pid, command.pid)));
  }

  std::vector<int32_t> ids(int32_t outermost, const std::vector<pid_t>& nested) const {
    std::vector<int32_t> innermost_first(nested.rbegin(), nested.rend());
    innermost_first.push_back(outermost);
    return innermost_first;
  }

  void spawn(uint64_t flags, uint64_t exit_signal, const std::vector<int32_t>& set_tid, uint32_t child) {
    result_.births[child] = {slot_, now().size()};
    now().spawn(flags, exit_signal, set_tid, child, static_cast<uint32_t>(origin_));
  }

  /// Of a FORK or CLONE.
  static uint64_t sharing_flags(const auto& birth) {
    uint64_t flags = 0;
    if (birth.share_files) flags |= CLONE_FILES;
    if (birth.share_fs) flags |= CLONE_FS;
    if (birth.share_handlers) flags |= CLONE_SIGHAND;
    if (birth.share_memory) flags |= CLONE_VM;
    return flags;
  }

  Status lower(const plan::Command& command, const plan::Fork& fork) {
    uint64_t flags = sharing_flags(fork);
    if (fork.new_pid_namespace) flags |= CLONE_NEWPID;
    const bool is_root = command.pid.value == 0;
    const bool sibling = is_root && options_.sibling;
    if (sibling) flags |= CLONE_PARENT;
    const uint32_t child = result_.slot_of.at({fork.child_pid, leader_of(fork.child_pid)});
    if (!fork.nested_pids.empty()) nested_pids_[fork.child_pid] = fork.nested_pids;
    // Handlers of stasis and of its C library point into memory that goes away.
    if (is_root) flags |= CLONE_CLEAR_SIGHAND;
    if (is_root) result_.root_spawn = now().size();
    spawn(flags, sibling ? 0 : SIGCHLD, ids(fork.child_pid.value, fork.nested_pids), child);
    if (is_root) begin_root(result_.slots[child]);
    born_to_[fork.child_pid] = command.pid;
    if (!is_root && stays_child(fork.child_pid, command.pid, runner_of(command).second)) outlives_nobody(child);
    return {};
  }

  /// Like the root it ends at once with its parent, and so with stasis: until its own death signal is set, last of all.
  /// Who comes too late to ask for it, or cannot have it, sees the end of stasis by himself (agent::Supervision).
  void outlives_nobody(uint32_t slot) {
    result_.slots[slot].call(call(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL), static_cast<uint32_t>(origin_));
  }

  /// Alive in the end, and with the same parent: nobody whom it depends on ends before. A death signal comes when the
  /// *thread* ends that is the parent (kernel/exit.c, forget_original_parent).
  bool stays_child(Pid child, Pid creator, Tid thread) const {
    const auto* task = tasks_.find(child);
    const auto* parent = tasks_.find(creator);
    const bool loses_parent = parent != nullptr && parent->leader_has_ended() && thread == leader_of(creator);
    return task != nullptr && task->state != model::TaskState::zombie && task->parent == creator && !loses_parent;
  }

  /// The root starts as a copy of stasis: it ends with it, and keeps none of its descriptors but the images and
  /// what is given.
  void begin_root(SlotProgram& root) {
    const auto origin = static_cast<uint32_t>(origin_);
    root.call(call(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL), origin);
    auto kept = inherited_;
    if (program_.images_fd >= 0) kept.insert(program_.images_fd);
    int next = 0;
    for (const int fd : kept) {
      if (fd > next) root.call(call(SYS_close_range, next, fd - 1, 0), origin);
      next = fd + 1;
    }
    root.call(call(SYS_close_range, next, ~0u, 0), origin);
    // What stasis was started with as ignored survives CLONE_CLEAR_SIGHAND (kernel/signal.c, flush_signal_handlers).
    constexpr std::array<uint64_t, 4> default_action{};
    for (const int signal : options_.ignored_signals) {
      root.call(call(SYS_rt_sigaction, signal, plan::struct_in(default_action), 0, sizeof(uint64_t)), origin);
    }
  }

  Status lower(const plan::Command& command, const plan::Clone& clone) {
    const uint32_t child = result_.slot_of.at({clone.child_pid, leader_of(clone.child_pid)});
    // clone3 with CLONE_PARENT takes no exit signal: the child gets that of its new parent's kind (kernel/fork.c).
    if (!clone.nested_pids.empty()) nested_pids_[clone.child_pid] = clone.nested_pids;
    const uint64_t flags = CLONE_PARENT | (clone.new_pid_namespace ? CLONE_NEWPID : 0);
    spawn(flags | sharing_flags(clone), 0, ids(clone.child_pid.value, clone.nested_pids), child);
    // The parent may be one that only passes its children on.
    const Pid parent = born_to_[command.pid];
    born_to_[clone.child_pid] = parent;
    if (stays_child(clone.child_pid, parent, leader_of(parent))) outlives_nobody(child);
    return {};
  }
  Status lower(const plan::Command& command, const plan::StartThread& thread) {
    constexpr uint64_t flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    spawn(flags, 0, ids(thread.tid.value, thread.nested_tids), result_.slot_of.at({command.pid, thread.tid}));
    return {};
  }
  /// Like those that are parked: the tree is not complete before this thread is at its end, too.
  void count_as_ready() {
    constexpr uint32_t nobody_waits = ~0u;
    now().post(agent::ready_counter, 1, nobody_waits, static_cast<uint32_t>(origin_));
    ++result_.ready_threads;
  }
  Status lower(const plan::Command&, const plan::ExitThread& exit) {
    count_as_ready();
    constexpr uint64_t one_thread = 2;
    now().exit(one_thread, static_cast<uint64_t>(WEXITSTATUS(exit.status)), static_cast<uint32_t>(origin_));
    return {};
  }
  Status lower(const plan::Command&, const plan::Unshare& unshare) {
    add(call(SYS_unshare, (unshare.files ? CLONE_FILES : 0) | (unshare.fs ? CLONE_FS : 0) |
                              (unshare.pid_namespace ? CLONE_NEWPID : 0)));
    return {};
  }
  Status lower(const plan::Command& command, const plan::AwaitChild& await) {
    now().await_child(TRY(seen_by(command, await.child_pid)), static_cast<uint32_t>(origin_));
    return {};
  }
  Status lower(const plan::Command&, const plan::SetChildReaper& reaper) {
    add(call(SYS_prctl, PR_SET_CHILD_SUBREAPER, reaper.value));
    return {};
  }
  Status lower(const plan::Command&, const plan::SetSid&) {
    add(call(SYS_setsid));
    return {};
  }
  Status lower(const plan::Command& command, const plan::SetPgid& group) {
    add(call(SYS_setpgid, TRY(seen_by(command, group.target)), TRY(seen_by(command, group.pgid))));
    return {};
  }
  Status lower(const plan::Command& command, const plan::EnterPidNamespace& enter) {
    add(call(SYS_pidfd_open, TRY(seen_by(command, enter.target)), 0));
    add(call(SYS_setns, ResultOf{-1}, CLONE_NEWPID));
    add(call(SYS_close, ResultOf{-2}));
    return {};
  }
  Status lower(const plan::Command& command, const plan::Exit& exit) {
    const auto origin = static_cast<uint32_t>(origin_);
    count_as_ready();
    if (!WIFSIGNALED(exit.status)) {
      now().exit(0, static_cast<uint64_t>(WEXITSTATUS(exit.status)), origin);
      return {};
    }
    const rlimit none{0, 0};  // the core was written in the first life
    add(call(SYS_prlimit64, 0, RLIMIT_CORE, plan::struct_in(none), 0));
    const auto nested = nested_pids_.find(command.pid);
    const bool is_init = nested != nested_pids_.end() && nested->second.back() == 1;
    if (is_init)
      end_init(WTERMSIG(exit.status), origin);
    else
      now().exit(1, static_cast<uint64_t>(WTERMSIG(exit.status)), origin);
    return {};
  }
  /// It is shielded from signals of its own (kernel/signal.c, SIGNAL_UNKILLABLE), but not from what a fault or a filter
  /// brings about, and reboot(2) is its end (kernel/pid_namespace.c, reboot_pid_ns).
  void end_init(int signal, uint32_t origin) {
    constexpr uint64_t forbidden_call = 3, fault = 4;
    if (signal == SIGHUP || signal == SIGINT) {
      add(call(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2,
               signal == SIGHUP ? LINUX_REBOOT_CMD_RESTART : LINUX_REBOOT_CMD_HALT, 0));
    } else if (signal == SIGKILL) {
      add(call(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
      now().exit(forbidden_call, 0, origin);
    } else if (signal == SIGSYS) {
      const sock_filter kill = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
      const auto filter = plan::struct_pointing_to(sock_fprog{.len = 1, .filter = nullptr},
                                                   offsetof(sock_fprog, filter), bytes_of(kill));
      add(call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
      add(call(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter));
      now().exit(forbidden_call, 0, origin);
    } else {
      now().exit(fault, static_cast<uint64_t>(signal), origin);
    }
  }
  Status lower(const plan::Command& command, const plan::Wait& wait) {
    const pid_t child = TRY(seen_by(command, wait.child_pid));
    add(expecting(call(SYS_wait4, child, 0, __WALL, 0), Expected::exactly, child));
    return {};
  }
  Status lower(const plan::Command&, const plan::Await& await) {
    if (slot_ == 0) result_.last_wait = now().size();
    now().wait(counter(await.event), await.count, static_cast<uint32_t>(origin_));
    return {};
  }
  Status lower(const plan::Command&, const plan::Post& post) {
    const auto awaited = lowest_awaited_.find(post.event);
    const uint32_t wake_from = awaited == lowest_awaited_.end() ? ~0u : awaited->second;
    now().post(counter(post.event), 1, wake_from, static_cast<uint32_t>(origin_));
    return {};
  }

  // ---- descriptors

  Status lower(const plan::Command&, const plan::Open& open) {
    std::string path = open.path;
    if (path.starts_with(plan::supervisor_directory)) {
      path.replace(0, plan::supervisor_directory.size(), fmt::format("/proc/{}/", getpid()));
    }
    add(call(plan::Call::open_at, plan::text(path), open.flags, open.mode, open.fd));
    return {};
  }
  Status lower(const plan::Command&, const plan::Close& close) {
    add(call(SYS_close, close.fd));
    return {};
  }
  Status lower(const plan::Command&, const plan::Dup2& dup) {
    add(call(SYS_dup3, dup.old_fd, dup.new_fd, dup.close_on_exec ? O_CLOEXEC : 0));
    return {};
  }
  Status lower(const plan::Command&, const plan::SetCloseOnExec& set) {
    add(call(SYS_fcntl, set.fd, F_SETFD, set.value ? FD_CLOEXEC : 0));
    return {};
  }
  Status lower(const plan::Command&, const plan::Lseek& seek) {
    add(expecting(call(SYS_lseek, seek.fd, seek.offset, SEEK_SET), Expected::exactly,
                  static_cast<int64_t>(seek.offset)));
    return {};
  }
  /// MAP_DROPPABLE is a type of its own beside shared and private (mmap(2)).
  static uint64_t type_of(const auto& map) {
    if (map.is_shared) return MAP_SHARED;
    return (map.flags & model::map_droppable) != 0 ? 0 : MAP_PRIVATE;
  }
  Status lower(const plan::Command& command, const plan::TransferFd& transfer) {
    add(call(SYS_pidfd_open, TRY(seen_by(command, transfer.from_pid)), 0));
    add(call(SYS_pidfd_getfd, ResultOf{-1}, transfer.fd, 0));
    add(call(SYS_close, ResultOf{-2}));  // before the move: it may have the number that is wanted
    add(call(plan::Call::move_fd, ResultOf{-2}, transfer.target_fd, transfer.close_on_exec ? O_CLOEXEC : 0));
    return {};
  }
  Status lower(const plan::Command& command, const plan::OpenPidfd& open) {
    add(call(SYS_pidfd_open, TRY(seen_by(command, open.target)), 0));
    add(call(plan::Call::move_fd, ResultOf{-1}, open.fd, 0));
    return {};
  }
  Status lower(const plan::Command&, const plan::TakeFd& take) {
    add(call(SYS_pidfd_getfd, take.pidfd, take.fd, 0));
    add(call(plan::Call::move_fd, ResultOf{-1}, take.target_fd, take.close_on_exec ? O_CLOEXEC : 0));
    return {};
  }

  Status lower(const plan::Command&, const plan::InheritFd& inherit) {
    add(expecting(call(SYS_fcntl, inherit.own_fd, F_DUPFD, inherit.fd), Expected::exactly, inherit.fd));
    inherited_.insert(inherit.fd);
    return {};
  }

  // ---- terminals

  Status lower(const plan::Command&, const plan::OpenTerminal& open) {
    constexpr uint32_t peer_flags = O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC;
    if (!open.path.empty()) {  // a serial line waits for its carrier otherwise
      add(call(plan::Call::open_at, plan::text(open.path), peer_flags, 0, open.slave_fd));
      return {};
    }
    const uint32_t index = model::index_of_terminal(open.terminal);
    add(call(plan::Call::open_terminal, index, open.flags, plan::Out{4ull * index}));
    add(call(plan::Call::move_fd, ResultOf{-1}, open.master_fd, open.flags & O_CLOEXEC, 1));
    add(call(SYS_ioctl, open.master_fd, TIOCSPTLCK, plan::struct_in(0)));
    if (open.slave_fd < 0) return {};
    add(call(SYS_ioctl, open.master_fd, TIOCGPTPEER, peer_flags));
    add(call(plan::Call::move_fd, ResultOf{-1}, open.slave_fd, O_CLOEXEC, 1));
    return {};
  }
  Status lower(const plan::Command&, const plan::SetControllingTerminal& set) {
    add(call(SYS_ioctl, set.fd, TIOCSCTTY, 0));
    return {};
  }
  Status lower(const plan::Command&, const plan::LeaveTerminal& leave) {
    add(call(SYS_ioctl, leave.fd, TIOCNOTTY));
    return {};
  }
  Status lower(const plan::Command& command, const plan::SetForegroundGroup& set) {
    add(call(SYS_ioctl, set.fd, TIOCSPGRP, plan::struct_in(TRY(seen_by(command, set.pgid)))));
    return {};
  }

  Status lower(const plan::Command&, const plan::EpollAdd& add_it) {
    epoll_event event{add_it.events, {.u64 = add_it.data}};
    if (!plan::has_fired(add_it.events)) {
      add(call(SYS_epoll_ctl, add_it.epoll_fd, EPOLL_CTL_ADD, add_it.fd, plan::struct_in(event)));
      return {};
    }
    const auto kept = plan::struct_in(event);
    constexpr uint32_t all = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLRDNORM | EPOLLRDBAND |
                             EPOLLWRNORM | EPOLLWRBAND | EPOLLMSG | EPOLLRDHUP;
    event.events |= all;
    add(call(plan::Call::epoll_add_fired, add_it.epoll_fd, add_it.fd, plan::struct_in(event), kept));
    return {};
  }

  Status lower(const plan::Command&, const plan::Lock& lock) {
    const bool writes = lock.type == "write";
    if (lock.kind == "flock") {
      add(call(SYS_flock, lock.fd, (writes ? LOCK_EX : LOCK_SH) | LOCK_NB));
    } else if (lock.kind == "lease") {
      lease(lock);
    } else {
      struct flock range{};
      range.l_type = static_cast<short>(writes ? F_WRLCK : F_RDLCK), range.l_whence = SEEK_SET;
      range.l_start = static_cast<off_t>(lock.start), range.l_len = static_cast<off_t>(lock.length);
      add(call(SYS_fcntl, lock.fd, lock.kind == "ofd" ? F_OFD_SETLK : F_SETLK, plan::struct_in(range)));
    }
    return {};
  }
  void lease(const plan::Lock& lock) {
    const bool writes = lock.breaking ? !lock.read_only || lock.type == "read" : lock.type == "write";
    add(call(SYS_fcntl, lock.fd, F_SETLEASE, writes ? F_WRLCK : F_RDLCK));
    add(call(SYS_fcntl, lock.fd, F_SETOWN, 0));  // F_SETLEASE makes the caller the owner where there is none
    if (!lock.breaking) return;
    const int how = lock.type == "none" ? O_WRONLY : O_RDONLY;
    add(expecting(call(SYS_openat, AT_FDCWD, plan::text(fmt::format("/proc/self/fd/{}", lock.fd)),
                       how | O_NONBLOCK | O_CLOEXEC, 0),
                  Expected::exactly, -EWOULDBLOCK));
  }

  // ---- memory

  Status lower(const plan::Command&, const plan::Mmap& map) {
    const uint64_t flags = map.flags | type_of(map) | MAP_FIXED_NOREPLACE;
    add(expecting(call(SYS_mmap, map.addr, map.length, map.prot, flags, map.fd, map.offset), Expected::exactly,
                  static_cast<int64_t>(map.addr)));
    return {};
  }
  Status lower(const plan::Command&, const plan::MmapAnon& map) {
    const uint64_t flags = map.flags | MAP_ANONYMOUS | type_of(map) | MAP_FIXED_NOREPLACE;
    add(expecting(call(SYS_mmap, map.addr, map.length, map.prot, flags, -1, 0), Expected::exactly,
                  static_cast<int64_t>(map.addr)));
    return {};
  }
  Status lower(const plan::Command&, const plan::Mremap& remap) {
    add(expecting(
        call(SYS_mremap, remap.addr, remap.length, remap.length, MREMAP_MAYMOVE | MREMAP_FIXED, remap.new_addr),
        Expected::exactly, static_cast<int64_t>(remap.new_addr)));
    return {};
  }
  Status lower(const plan::Command&, const plan::Munmap& unmap) {
    add(call(SYS_munmap, unmap.addr, unmap.length));
    return {};
  }
  Status lower(const plan::Command&, const plan::Mprotect& protect) {
    add(call(SYS_mprotect, protect.addr, protect.length, protect.prot));
    return {};
  }
  Status lower(const plan::Command&, const plan::DropPages& drop) {
    add(call(SYS_madvise, drop.addr, drop.length, MADV_DONTNEED));
    return {};
  }
  Status lower(const plan::Command&, const plan::ClearMemory&) {
    // The kernel writes to a registered rseq area whenever it preempts us: unregister it before it is unmapped.
    constexpr int unregister = 1, signature = 0x53053053;
    if (!options_.rseq_area.empty()) {
      add(expecting(call(SYS_rseq, options_.rseq_area.begin, options_.rseq_area.size(), unregister, signature),
                    Expected::anything));
    }
    add(call(SYS_munmap, 0, program_.agent_area.begin));
    add(call(SYS_munmap, program_.agent_area.end, task_size - program_.agent_area.end));
    return {};
  }

  Status lower(const plan::Command&, const plan::AttachSegment& attach) {
    const int flags =
        ((attach.prot & PROT_WRITE) == 0 ? SHM_RDONLY : 0) | ((attach.prot & PROT_EXEC) != 0 ? SHM_EXEC : 0);
    add(expecting(call(SYS_shmat, attach.id, attach.addr, flags), Expected::exactly,
                  static_cast<int64_t>(attach.addr)));
    return {};
  }

  Status lower(const plan::Command&, const plan::LoadPages& load) {
    std::vector<iovec> batch;
    uint64_t bytes = 0, offset = load.offset;
    const auto flush = [&] {
      if (batch.empty()) return;
      plan::In vector;
      const auto* first = reinterpret_cast<const uint8_t*>(batch.data());
      vector.bytes.assign(first, first + batch.size() * sizeof(iovec));
      add(expecting(call(SYS_preadv, load.fd, std::move(vector), batch.size(), offset, 0), Expected::exactly,
                    static_cast<int64_t>(bytes)));
      offset += bytes;
      bytes = 0;
      batch.clear();
    };
    if (load.runs.size() % 2 != 0) return fail(Error::invalid("lower LOAD_PAGES", "runs are not pairs"));
    for (size_t i = 0; i < load.runs.size(); i += 2) {
      uint64_t address = load.runs[i], left = load.runs[i + 1];
      while (left > 0) {
        if (batch.size() == largest_vector || bytes == largest_transfer) flush();
        const uint64_t part = std::min(left, largest_transfer - bytes);
        batch.push_back({reinterpret_cast<void*>(address), part});
        address += part;
        left -= part;
        bytes += part;
      }
    }
    flush();
    return {};
  }

  Status lower(const plan::Command&, const plan::DecodePages&) { return ask(result_.decodings, "decode"); }
  Status lower(const plan::Command&, const plan::DecodeFile&) { return ask(result_.decodings, "decode"); }
  Status lower(const plan::Command&, const plan::OwePages& owe) {
    add(call(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
    add(call(plan::Call::move_fd, ResultOf{-1}, owe.fd, O_CLOEXEC, 1));
    TRY(ask(result_.owings, "owe"));
    add(call(SYS_close, owe.fd));
    return {};
  }
  Status ask(Requests& requests, std::string_view what) {
    const auto origin = static_cast<uint32_t>(origin_);
    // Names that no event of a program has.
    const Request request{origin, counter(fmt::format("\nasked {}", origin)),
                          counter(fmt::format("\ndone {}", origin))};
    requests.all.push_back(request);
    requests.asked = counter(fmt::format("\n{}", what));
    now().post(request.asked, 1, ~0u, origin);
    now().post(requests.asked, 1, 1, origin);
    now().wait(request.done, 1, origin);
    return {};
  }

  // ---- everything else

  Status lower(const plan::Command&, const plan::Perform& perform) {
    if (perform.attribute == plan::only_on_failure) return {};
    for (const auto& one : perform.calls) add(one);
    return {};
  }

  /// Not by the agent: all threads have been seized by then (end_repair.h).
  Status lower(const plan::Command&, const plan::EndRepair&) { return {}; }

  Status lower(const plan::Command& command, const plan::Ready&) {
    // What a seccomp filter lets through is not ours to guess: such a thread waits without system calls.
    const bool filtered = has_seccomp(runner_of(command));
    now().set_end_mode(filtered ? agent::EndMode::park_spinning : agent::EndMode::park);
    ++result_.ready_threads;
    return {};
  }

  bool has_seccomp(Runner runner) const {
    const auto* task = tasks_.find(runner.first);
    if (task == nullptr) return false;
    const auto thread = std::ranges::find(task->threads, runner.second, &model::Thread::tid);
    return thread != task->threads.end() && thread->seccomp.mode != model::Seccomp::Mode::disabled;
  }

  const plan::Program& program_;
  const model::Application& application_;
  const model::TaskIndex tasks_;
  const LowerOptions& options_;
  Lowered result_;
  std::map<std::string, uint32_t> counters_, lowest_awaited_;
  std::map<Pid, Pid> born_to_;                     ///< the parent at birth, which for a sibling is its creator's
  std::set<int> inherited_;                        ///< what the supervisor gives to the root
  std::map<Pid, std::vector<pid_t>> nested_pids_;  ///< of those in nested pid namespaces
  uint32_t slot_ = 0;
  size_t origin_ = 0;
};

}  // namespace

Runner runner_of(const plan::Command& command) {
  return {command.pid, command.pid.value != 0 && command.tid.value == 0 ? leader_of(command.pid) : command.tid};
}

Result<Lowered> lower(const plan::Program& program, const model::Application& application,
                      const LowerOptions& options) {
  return Lowering(program, application, options).run();
}

}  // namespace stasis::execute
