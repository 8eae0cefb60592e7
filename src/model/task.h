// Tasks and threads: the state that the kernel keeps per process and per thread.
//
// "Process" is a thread group (signal_struct), "thread" a task_struct. What may be shared between tasks independently
// of the tree (descriptor table, fs context, signal handlers, address space) is an object of its own, referred to by
// id.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/types.h"

namespace stasis::model {

/// General registers (struct user_regs_struct order is the architecture's own) and the extended state as the kernel's
/// standard (uncompacted) XSAVE format gives it through NT_X86_XSTATE. Both are opaque outside arch folders.
struct Registers {
  Bytes general;   ///< NT_PRSTATUS register set
  Bytes extended;  ///< NT_X86_XSTATE
  friend bool operator==(const Registers&, const Registers&) = default;
};

/// credentials(7), per thread. Capability sets are 64-bit masks.
struct Credentials {
  uint32_t uid = 0, euid = 0, suid = 0, fsuid = 0;
  uint32_t gid = 0, egid = 0, sgid = 0, fsgid = 0;
  std::vector<uint32_t> groups;
  uint64_t inheritable = 0, permitted = 0, effective = 0, bounding = 0, ambient = 0;
  uint32_t securebits = 0;
  bool no_new_privs = false;
  friend bool operator==(const Credentials&, const Credentials&) = default;
};

/// One filter program of a chain (an array of struct sock_filter) with its SECCOMP_FILTER_FLAG_* bits.
struct SeccompFilter {
  Bytes program;
  uint32_t flags = 0;
  friend bool operator==(const SeccompFilter&, const SeccompFilter&) = default;
};

struct Seccomp {
  enum class Mode : uint8_t { disabled = 0, strict = 1, filter = 2 };
  Mode mode = Mode::disabled;
  std::vector<SeccompFilter> filters;  ///< oldest first: the order of installation
  friend bool operator==(const Seccomp&, const Seccomp&) = default;
};

/// sched_setattr(2) and what goes with it.
struct Scheduling {
  uint32_t policy = 0;
  uint64_t flags = 0;
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime = 0, deadline = 0, period = 0;
  std::vector<uint32_t> cpus;  ///< affinity: allowed CPU numbers, ascending
  int io_priority = 0;         ///< ioprio_get(2)
  uint64_t timer_slack_ns = 50000;
  friend bool operator==(const Scheduling&, const Scheduling&) = default;
};

/// sigaltstack(2)
struct AlternateStack {
  uint64_t address = 0;
  uint64_t size = 0;
  uint32_t flags = 2;  ///< SS_DISABLE
  friend bool operator==(const AlternateStack&, const AlternateStack&) = default;
};

/// A queued signal with its siginfo_t (128 bytes), oldest first in its queue.
using PendingSignal = Bytes;
/// si_signo, which comes first.
inline int signal_of(const PendingSignal& info) {
  int number = 0;
  std::memcpy(&number, info.data(), std::min(sizeof number, info.size()));
  return number;
}

struct RestartableSequence {  ///< rseq(2)
  uint64_t address = 0;
  uint32_t size = 0, signature = 0, flags = 0;
  friend bool operator==(const RestartableSequence&, const RestartableSequence&) = default;
};

/// A system call that slept for a duration when the thread was stopped. The registers stand before it, ready to make it
/// again from the start; this is what remained.
struct InterruptedCall {
  uint32_t number = 0;
  uint64_t remaining_ns = 0;
  friend bool operator==(const InterruptedCall&, const InterruptedCall&) = default;
};

/// Thread::childrens_namespace: one that nobody has been born in yet (unshare).
inline constexpr Pid empty_namespace{-1};

struct Thread {
  Tid tid;  ///< in the tree's namespace
  /// Of a leader that has ended while other threads of its process go on: as wait(2) would give it. Nothing else of it
  /// is left but its ids, name, credentials and scheduling, and of its mask what the kernel still asks for
  /// (resource/signals.cc). Any other thread that ends is gone.
  std::optional<int> exit_status;
  std::vector<pid_t> nested_tids;  ///< ids in deeper pid namespaces, outermost first; empty if there are none
  /// The init of the pid namespace that its children are born in, if that is another; 0: it is not.
  Pid childrens_namespace;
  std::string name;  ///< comm, at most 15 bytes
  Registers registers;
  std::optional<InterruptedCall> interrupted_call;
  Credentials credentials;
  Seccomp seccomp;
  Scheduling scheduling;
  uint64_t blocked_signals = 0;
  std::vector<PendingSignal> pending;  ///< sent to this thread
  AlternateStack alternate_stack;
  uint64_t robust_list = 0, robust_list_length = 0;
  RestartableSequence rseq;
  uint64_t clear_child_tid = 0;
  int parent_death_signal = 0;
  uint32_t personality = 0;  ///< personality(2)
  bool has_ended() const { return exit_status.has_value(); }
  friend bool operator==(const Thread&, const Thread&) = default;
};

/// struct sigaction as the kernel has it.
struct SignalAction {
  uint64_t handler = 0, flags = 0, restorer = 0, mask = 0;
  friend bool operator==(const SignalAction&, const SignalAction&) = default;
};

/// sighand_struct, shared by CLONE_SIGHAND. Index 0 is signal 1.
struct SignalHandlers {
  ObjectId id;
  std::array<SignalAction, 64> actions{};
  friend bool operator==(const SignalHandlers&, const SignalHandlers&) = default;
};

struct IntervalTimer {  ///< getitimer(2); microseconds
  uint64_t interval_us = 0, remaining_us = 0;
  friend bool operator==(const IntervalTimer&, const IntervalTimer&) = default;
};

struct PosixTimer {  ///< timer_create(2)
  int32_t id = 0;
  int32_t clock = 0;
  int32_t notification = 0;  ///< SIGEV_*
  int32_t signal = 0;
  uint64_t value = 0;                          ///< sigev_value
  Tid notified_thread;                         ///< SIGEV_THREAD_ID
  uint64_t interval_ns = 0, remaining_ns = 0;  ///< remaining 0: disarmed
  int32_t overrun = 0;
  friend bool operator==(const PosixTimer&, const PosixTimer&) = default;
};

struct ResourceLimit {
  uint64_t soft = 0, hard = 0;  ///< RLIM_INFINITY is ~0
  friend bool operator==(const ResourceLimit&, const ResourceLimit&) = default;
};

enum class TaskState : uint8_t { running, stopped, zombie };

/// A process.
struct Task {
  Pid pid, parent, group, session;  ///< parent 0: outside the tree. Ids in the tree's namespace
  std::vector<pid_t> nested_pids;   ///< its ids in deeper pid namespaces, outermost first: 1 is the init of the last
  Pid pid_namespace;                ///< the init of the innermost one (itself, if it is that); 0: the tree's own
  /// Of an init: the namespace that its own lies in, where that is further inside than its parent lives. 0: it is not.
  Pid outer_namespace;
  /// Which of the parent's threads it is the child of: whose end sends it its death signal (prctl(2),
  /// PR_SET_PDEATHSIG), and who waits for it with __WNOTHREAD. 0: the first of them that lives.
  Tid parent_thread;
  TaskState state = TaskState::running;
  int exit_status = 0;                                ///< zombie: as wait(2) gives it
  int stop_signal = 0;                                ///< stopped: the signal that stopped it
  ObjectId descriptors, fs, handlers, address_space;  ///< 0 for a zombie
  bool child_subreaper = false;
  int32_t oom_score_adj = 0;
  std::array<ResourceLimit, 16> limits{};
  std::array<IntervalTimer, 3> interval_timers{};  ///< ITIMER_REAL, _VIRTUAL, _PROF
  std::vector<PosixTimer> posix_timers;            ///< ascending ids
  int32_t next_posix_timer_id = 0;                 ///< from /proc/PID/timers position, if known
  std::vector<PendingSignal> pending;              ///< sent to the process
  std::vector<Thread> threads;                     ///< leader first; empty for a zombie except its name
  std::string name;                                ///< a zombie's comm (a live task's is its leader's)
  uint64_t controlling_terminal = 0;               ///< device number, 0: none
  /// The leader, unless that has ended. nullptr: of a zombie.
  const Thread* first_living() const {
    return threads.size() > leader_has_ended() ? &threads[leader_has_ended()] : nullptr;
  }
  Thread* first_living() { return const_cast<Thread*>(std::as_const(*this).first_living()); }
  /// Where the children of that one are born, if that is another pid namespace. 0: it is not.
  Pid childrens_namespace() const { return first_living() == nullptr ? Pid{} : first_living()->childrens_namespace; }
  bool leader_has_ended() const { return !threads.empty() && threads.front().has_ended(); }
  friend bool operator==(const Task&, const Task&) = default;
};

}  // namespace stasis::model
