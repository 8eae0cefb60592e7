#include "capture/freezer.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "kernel/proc.h"
#include "kernel/process.h"

namespace stasis::capture {
namespace {

constexpr uint64_t kernel_thread_flag = 0x00200000;  // PF_KTHREAD
constexpr uint64_t exiting_flag = 4;                 // PF_EXITING
constexpr auto a_moment = std::chrono::milliseconds(5);

std::string subject(pid_t pid) {
  const auto stat = kernel::read_stat(pid);
  return stat ? fmt::format("task {} '{}'", pid, stat->comm) : fmt::format("task {}", pid);
}

}  // namespace

int FrozenProcess::stop_signal() const {
  for (const auto& thread : threads) {
    if (thread.group_stop_signal() != 0) return thread.group_stop_signal();
  }
  return 0;
}

Status Freezer::check_root(pid_t root) const {
  const auto stat = kernel::read_stat(root);
  if (!stat) {
    return fail(Error::conflict("seize the tree", "there is no such process", fmt::format("task {}", root))
                    .advise("check the pid given with --tree"));
  }
  if ((stat->flags & kernel_thread_flag) != 0) {
    return fail(Error::unsupported("seize the tree", "it is a kernel thread", subject(root)));
  }
  if (stat->is_dead() && !stat->has_left_threads()) {
    return fail(Error::conflict("seize the tree", "it has ended and waits to be reaped", subject(root)));
  }
  for (pid_t ancestor = getpid(); ancestor > 0;) {
    if (ancestor == root) {
      return fail(Error::conflict("seize the tree", "stasis itself runs inside this tree", subject(root))
                      .advise("start stasis from outside, for example with setsid from another session"));
    }
    const auto next = kernel::read_stat(ancestor);
    ancestor = next ? next->ppid : 0;
  }
  return {};
}

Result<std::vector<FrozenProcess>> Freezer::freeze(pid_t root) {
  TRY(check_root(root));
  at_point_("seizing");
  processes_.push_back({.host_pid = root});
  known_pids_.insert(root);
  do {
    while (TRY(look())) TRY(settle_all());
  } while (TRY(look_for_orphans()));
  if (processes_.empty() || processes_.front().host_pid != root || processes_.front().zombie) {
    return fail(Error::gone("seize the tree", fmt::format("task {}", root)));
  }
  at_point_("seized");
  return std::move(processes_);
}

/// One walk over the tree as it is known, which grows on the way. true: something was found, or must be looked for
/// again.
Result<bool> Freezer::look() {
  if (std::exchange(somebody_died_, false)) {
    for (auto& process : processes_) process.whole = false;
  }
  bool found = false;
  for (size_t index = 0; index < processes_.size(); ++index) {
    if (!processes_[index].zombie && !processes_[index].whole) found |= TRY(complete(index));
  }
  return found || somebody_died_;
}

/// One more look at the children of all, now that everybody known stands still. The children of a process that ends
/// pass to a subreaper or the init of its pid namespace, which may have had none (kernel/exit.c, find_new_reaper); if
/// it ended before we had found it, nothing tells us that they did. They come to the first thread that lives. true:
/// there were some.
Result<bool> Freezer::look_for_orphans() {
  bool found = false;
  for (size_t index = processes_.size(); index-- > 0;) {
    if (processes_[index].refused || processes_[index].threads.empty()) continue;
    const pid_t heir = processes_[index].threads.front().tid();
    found |= TRY(adopt_children(index, {&heir, 1}));
  }
  return found;
}

/// Seizes the threads of a process, or, when it has no more than those that are stopped, takes up its children.
Result<bool> Freezer::complete(size_t index) {
  const auto& threads = processes_[index].threads;
  const bool stands_still = !threads.empty() && std::ranges::all_of(threads, &Tracee::stopped);
  // Whose threads are all stopped starts no other: if it has no more than those, there is nothing to list.
  const size_t known = threads.size() + (processes_[index].leader_ended ? 1 : 0);
  const bool is_all = stands_still && kernel::count_threads(processes_[index].host_pid) == known;
  if (!is_all && TRY(adopt_threads(index))) return true;
  if (processes_[index].zombie) return false;
  std::vector<pid_t> tids;
  for (const auto& thread : processes_[index].threads) tids.push_back(thread.tid());
  const bool found = TRY(adopt_children(index, tids));
  processes_[index].whole = stands_still || processes_[index].refused;
  return found || !processes_[index].whole;
}

Result<bool> Freezer::adopt_threads(size_t index) {
  bool found = false;
  const pid_t pid = processes_[index].host_pid;
  const auto tids = kernel::list_threads(pid);
  if (!tids && tids.error().code() == ErrorCode::gone) return false;
  if (!tids) return fail(tids.error());
  for (const pid_t tid : *tids) {
    if (known_tids_.contains(tid)) continue;
    auto tracee = Tracee::seize(pid, tid);
    if (!tracee) {
      if (tracee.error().code() == ErrorCode::gone) continue;
      TRY(cannot_seize(index, tid, tracee.error()));
      continue;
    }
    known_tids_.insert(tid);
    // A thread that ends before it stops is noticed when it is waited for.
    (void)tracee->interrupt();
    processes_[index].threads.push_back(std::move(*tracee));
    at_point_("task-seized");
    found = true;
  }
  return found;
}

Result<bool> Freezer::adopt_children(size_t index, std::span<const pid_t> tids) {
  const auto children = kernel::list_children(processes_[index].host_pid, tids);
  if (!children && children.error().code() == ErrorCode::gone) return false;
  if (!children) return fail(children.error());
  bool found = false;
  for (const auto& [child, thread] : *children) {
    if (!known_pids_.insert(child).second) {
      if (processes_[index].threads.size() == 1) continue;
      // Whose thread has ended since belongs to another thread now.
      const auto known = std::ranges::find(processes_, child, &FrozenProcess::host_pid);
      if (known != processes_.end()) known->parent_thread = thread;
      continue;
    }
    if (child == getpid()) return fail(Error::conflict("seize the tree", "stasis itself runs inside this tree"));
    processes_.push_back({.host_pid = child, .parent_thread = thread});
    found = true;
  }
  return found;
}

/// Why a seize was refused: the task has ended, or belongs to another tracer, or we lack the right.
Status Freezer::cannot_seize(size_t index, pid_t tid, const Error& reason) {
  auto& process = processes_[index];
  const pid_t pid = process.host_pid;
  const auto status = kernel::read_thread_status(pid, tid);
  const auto stat = kernel::read_stat(pid);
  if (!status && status.error().code() == ErrorCode::gone) return {};
  if (!status) return fail(status.error());
  known_tids_.insert(tid);
  if (status->tracer != 0) {
    process.refused = true;
    diagnostics_.refuse(subject(pid), fmt::format("is traced by {}", subject(status->tracer)),
                        "End the debugger or strace first: a task has one tracer only");
  } else if (status->state == 'Z' || status->state == 'X') {
    if (tid != pid) return {};
    if (stat && !stat->is_dead()) {
      // A thread that has called execve took its place between the two looks.
      known_tids_.erase(pid);
      return {};
    }
    process.leader_ended = stat && stat->has_left_threads();
    process.zombie = !process.leader_ended;
    somebody_died_ = somebody_died_ || process.zombie;
  } else {
    process.refused = true;
    diagnostics_.refuse(subject(pid), fmt::format("cannot be traced: {}", reason.message()),
                        "Run as root, or with CAP_SYS_PTRACE (and kernel.yama.ptrace_scope below 3)");
  }
  return {};
}

Status Freezer::settle_all() {
  for (size_t index = 0; index < processes_.size(); ++index) {
    for (auto& thread : processes_[index].threads) {
      if (!thread.alive() || thread.stopped()) continue;
      TRY(settle(index, thread));
      if (thread.has_executed()) TRY(follow_execve(index, thread));
    }
  }
  forget_the_dead();
  return {};
}

Status Freezer::follow_execve(size_t index, Tracee& thread) {
  auto& process = processes_[index];
  for (auto& other : process.threads) {
    if (&other != &thread) other.give_up();
  }
  process.leader_ended = false;
  TRY(thread.follow_execve());
  return settle(index, thread);
}

Status Freezer::settle(size_t index, Tracee& thread) {
  if (TRY(thread.settle(waiting_, Clock::now() + a_moment))) return {};
  return settle_slow(index, thread);
}

/// Whoever calls execve waits until the threads that it has ended are gone, and those that are traced are when their
/// tracer has been told.
Result<bool> Freezer::settle_by_deadline(size_t index, Tracee& slow) {
  while (Clock::now() < deadline_) {
    for (auto& other : processes_[index].threads) {
      if (&other == &slow || !other.alive() || other.tid() == other.pid()) continue;
      if (other.stopped()) {
        (void)other.has_ended(true);
      } else {
        TRY(other.settle(waiting_, Clock::now()));
      }
    }
    if (TRY(slow.settle(waiting_, std::min(deadline_, Clock::now() + a_moment)))) return true;
  }
  return false;
}

/// A task that does not stop at once sleeps uninterruptibly. If that is because it waits for its vfork child, which we
/// have stopped, then the child runs until it lets go of its parent.
Status Freezer::settle_slow(size_t index, Tracee& slow) {
  const auto stat = kernel::read_thread_stat(slow.pid(), slow.tid());
  if (stat && stat->has_left_threads() && slow.pid() == slow.tid()) {
    // It has ended between our seizing it and its stop, of which nobody is told before the other threads have.
    slow.give_up();
    processes_[index].leader_ended = true;
    return {};
  }
  if (stat && stat->state == 'D') {
    bool settled = false;
    Status failure;
    TRY(run_vfork_child_of(slow, [&] {
      const auto done = slow.settle(waiting_, Clock::now() + a_moment);
      if (!done) failure = fail(done.error());
      settled = !done || *done;
      return settled;
    }));
    if (!failure) return failure;
    if (settled) return {};
  }
  if (TRY(settle_by_deadline(index, slow))) return {};
  processes_[index].refused = true;
  if (stat && (stat->flags & exiting_flag) != 0) {
    // An init waits until no ids but its own are in use in its pid namespace (zap_pid_ns_processes).
    diagnostics_.refuse(subject(slow.pid()),
                        "is ending, and does not end: processes of its pid namespace are left, or members of a group "
                        "that was led from there",
                        "End those, or make them leave the group (setpgid), and dump the tree without it");
    slow.give_up();
    return {};
  }
  const auto where = kernel::read_proc(processes_[index].host_pid, fmt::format("task/{}/wchan", slow.tid()));
  diagnostics_.refuse(
      subject(slow.pid()),
      fmt::format("thread {} does not stop: it sleeps uninterruptibly in the kernel{}", slow.tid(),
                  where && *where != "0" && !where->empty() ? fmt::format(" ({})", *where) : ""),
      "Try again later, or with a longer --timeout; a parent in vfork stops when its child has executed a program");
  return {};
}

Status Freezer::run_vfork_child_of(const Tracee& parent, const std::function<bool()>& until) {
  std::vector<Tracee*> running;
  for (auto& process : processes_) {
    if (process.threads.empty() || process.host_pid == parent.pid()) continue;
    const auto stat = kernel::read_stat(process.host_pid);
    const auto same = kernel::kcmp(parent.tid(), process.witness(), kernel::KcmpType::vm);
    if (!stat || stat->ppid != parent.pid() || !same || *same != std::strong_ordering::equal) continue;
    for (auto& thread : process.threads) running.push_back(&thread);
    process.whole = false;
  }
  if (running.empty()) return {};
  while (Clock::now() < deadline_) {
    // They are stopped, or about to be, by our own interrupt, which may have been asked for more than once.
    for (auto* thread : running) {
      if (!thread->alive() || (!thread->stopped() && !TRY(thread->settle(waiting_, Clock::now())))) continue;
      if (thread->stopped()) TRY(thread->let_go_on());
    }
    if (until()) break;
  }
  for (auto* thread : running) {
    if (!thread->alive()) continue;
    (void)thread->interrupt();
    if (!TRY(thread->settle(waiting_, deadline_))) {
      for (auto& process : processes_) process.refused = process.refused || process.host_pid == thread->pid();
      diagnostics_.refuse(subject(thread->pid()), "does not stop", "Try again later");
    }
  }
  return {};
}

/// Threads that have ended go; a process without threads has become a zombie or is gone altogether.
void Freezer::forget_the_dead() {
  for (auto& process : processes_) {
    if (std::erase_if(process.threads, [](const Tracee& thread) { return !thread.alive(); }) > 0) somebody_died_ = true;
    if (process.zombie || process.refused || !process.threads.empty()) continue;
    somebody_died_ = true;
    const auto stat = kernel::read_stat(process.host_pid);
    if (stat && stat->has_left_threads()) continue;  // they have just begun to end, or have not been listed yet
    if (stat && !stat->is_dead()) {
      // A thread that was not seized yet has called execve, and has the id of the one that was (fs/exec.c, de_thread).
      known_tids_.erase(process.host_pid);
      process.leader_ended = process.whole = false;
      continue;
    }
    process.zombie = stat.has_value();
    if (!process.zombie) process.host_pid = 0;
  }
  std::erase_if(processes_, [](const FrozenProcess& process) { return process.host_pid == 0; });
}

}  // namespace stasis::capture
