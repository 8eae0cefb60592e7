// The commands of a Program: what one process does, one step at a time.
//
// Every action is a plain struct with a name and a `fields` function that lists its fields once; JSON, text, schema
// check and equality are all derived from that list. docs/plan-language.md gives preconditions, effects, the error
// Linux would answer with, and the lowering of each.
//
// `pid` 0 is the supervisor: stasis itself, before and beside the processes being built.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/types.h"
#include "plan/call.h"

namespace stasis::plan {

// ---- the process tree

/// The runner creates `child_pid`. What is not shared is copied, as fork does.
struct Fork {
  static constexpr std::string_view name = "FORK";
  Pid child_pid;
  std::vector<pid_t> nested_pids;  ///< ids in deeper pid namespaces, outermost first
  bool new_pid_namespace = false;
  bool share_files = false, share_fs = false, share_handlers = false, share_memory = false;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("child_pid", s.child_pid);
    v("nested_pids", s.nested_pids);
    v("new_pid_namespace", s.new_pid_namespace);
    v("share_files", s.share_files);
    v("share_fs", s.share_fs);
    v("share_handlers", s.share_handlers);
    v("share_memory", s.share_memory);
  }
};
/// The runner creates a sibling of itself (CLONE_PARENT). What is not shared is copied.
struct Clone {
  static constexpr std::string_view name = "CLONE";
  Pid child_pid;
  std::vector<pid_t> nested_pids;
  bool new_pid_namespace = false;
  bool share_files = false, share_fs = false, share_handlers = false, share_memory = false;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("child_pid", s.child_pid);
    v("nested_pids", s.nested_pids);
    v("new_pid_namespace", s.new_pid_namespace);
    v("share_files", s.share_files);
    v("share_fs", s.share_fs);
    v("share_handlers", s.share_handlers);
    v("share_memory", s.share_memory);
  }
};
struct StartThread {
  static constexpr std::string_view name = "START_THREAD";
  Tid tid;
  std::vector<pid_t> nested_tids;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("tid", s.tid);
    v("nested_tids", s.nested_tids);
  }
};
/// The runner is the leader: it ends with this wait(2) status, alone. Its process goes on with the other threads.
struct ExitThread {
  static constexpr std::string_view name = "EXIT_THREAD";
  int status = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("status", s.status);
  }
};
/// The runner's children are born in the pid namespace that `target` lives in, until it enters another: its own, or one
/// below it (setns). START_THREAD needs its own.
struct EnterPidNamespace {
  static constexpr std::string_view name = "ENTER_PID_NAMESPACE";
  Pid target;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("target", s.target);
  }
};
/// The runner has a descriptor table, or a working directory, root and umask, of its own: a copy of what it shared. Or
/// its next child begins a pid namespace, which is there from now on, and empty.
struct Unshare {
  static constexpr std::string_view name = "UNSHARE";
  bool files = false, fs = false, pid_namespace = false;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("files", s.files);
    v("fs", s.fs);
    v("pid_namespace", s.pid_namespace);
  }
};
/// Until the child is that of this very thread: one that comes to the process is the first thread's, and goes on to the
/// next when that ends.
struct AwaitChild {
  static constexpr std::string_view name = "AWAIT_CHILD";
  Pid child_pid;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("child_pid", s.child_pid);
  }
};
struct SetChildReaper {
  static constexpr std::string_view name = "SET_CHILD_REAPER";
  bool value = false;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("value", s.value);
  }
};
struct SetSid {
  static constexpr std::string_view name = "SET_SID";
  template <typename S, typename V>
  static void fields(S&, V&&) {}
};
/// setpgid(target, pgid); target is the runner or a child of it.
struct SetPgid {
  static constexpr std::string_view name = "SET_PGID";
  Pid target;
  Pid pgid;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("target", s.target);
    v("pgid", s.pgid);
  }
};
/// The runner ends with this wait(2) status.
struct Exit {
  static constexpr std::string_view name = "EXIT";
  static constexpr std::string_view optional_field = "status";  ///< the published language has none: 0
  int status = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("status", s.status);
  }
};
/// The runner reaps a child that has ended or will.
struct Wait {
  static constexpr std::string_view name = "WAIT";
  Pid child_pid;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("child_pid", s.child_pid);
  }
};
/// Waits until the event has been posted `count` times, by whomever.
struct Await {
  static constexpr std::string_view name = "AWAIT";
  std::string event;
  uint32_t count = 1;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("event", s.event);
    v("count", s.count);
  }
};
struct Post {
  static constexpr std::string_view name = "POST";
  std::string event;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("event", s.event);
  }
};

// ---- descriptors. `description` names the open file description of the Application that the step makes or moves;
// 0: a passing one that must be closed before the end.

/// A path that begins with this leads to the supervisor's own entries in procfs: what the supervisor holds open, every
/// process can open anew. The pid in its place is known only when the program runs.
inline constexpr std::string_view supervisor_directory = "/proc/supervisor/";

struct Open {
  static constexpr std::string_view name = "OPEN";
  std::string path;
  uint32_t flags = 0;
  uint32_t mode = 0;
  int fd = 0;
  ObjectId description;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("path", s.path);
    v("flags", s.flags);
    v("mode", s.mode);
    v("fd", s.fd);
    v("description", s.description);
  }
};
struct Close {
  static constexpr std::string_view name = "CLOSE";
  int fd = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("fd", s.fd);
  }
};
struct Dup2 {
  static constexpr std::string_view name = "DUP2";
  int old_fd = 0, new_fd = 0;
  bool close_on_exec = false;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("old_fd", s.old_fd);
    v("new_fd", s.new_fd);
    v("close_on_exec", s.close_on_exec);
  }
};
struct SetCloseOnExec {
  static constexpr std::string_view name = "SET_CLOSE_ON_EXEC";
  int fd = 0;
  bool value = false;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("fd", s.fd);
    v("value", s.value);
  }
};
struct Lseek {
  static constexpr std::string_view name = "LSEEK";
  int fd = 0;
  uint64_t offset = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("fd", s.fd);
    v("offset", s.offset);
  }
};
/// The runner is `to_pid` and takes descriptor `fd` of `from_pid` by pidfd_getfd.
struct TransferFd {
  static constexpr std::string_view name = "TRANSFER_FD";
  Pid from_pid, to_pid;
  int fd = 0, target_fd = 0;
  bool close_on_exec = false;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("from_pid", s.from_pid);
    v("to_pid", s.to_pid);
    v("fd", s.fd);
    v("target_fd", s.target_fd);
    v("close_on_exec", s.close_on_exec);
  }
};
/// A pidfd of `target` at `fd`. Children inherit it, also those who cannot name the process: it is outside of their pid
/// namespace.
struct OpenPidfd {
  static constexpr std::string_view name = "OPEN_PIDFD";
  Pid target;
  int fd = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("target", s.target);
    v("fd", s.fd);
  }
};
/// The supervisor has a descriptor of its own, `own_fd`, take the place of a description, under a number that whoever
/// it creates afterwards inherits.
struct InheritFd {
  static constexpr std::string_view name = "INHERIT_FD";
  int own_fd = 0, fd = 0;
  ObjectId description;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("own_fd", s.own_fd);
    v("fd", s.fd);
    v("description", s.description);
  }
};
/// The runner takes descriptor `fd` of the process that its own descriptor `pidfd` stands for.
struct TakeFd {
  static constexpr std::string_view name = "TAKE_FD";
  int pidfd = 0, fd = 0, target_fd = 0;
  bool close_on_exec = false;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("pidfd", s.pidfd);
    v("fd", s.fd);
    v("target_fd", s.target_fd);
    v("close_on_exec", s.close_on_exec);
  }
};

/// A lock or lease of the file behind `fd`, without waiting for anybody: model::FileLock says what the fields mean.
/// What is `breaking` was a read lease where the file is open for reading only, otherwise a write lease. Nobody is sent
/// a signal by a lease that has just been taken: its owner is set afterwards.
struct Lock {
  static constexpr std::string_view name = "LOCK";
  int fd = 0;
  std::string kind;  ///< "posix", "flock", "ofd" or "lease"
  std::string type;  ///< "read", "write" or "none"
  bool breaking = false, read_only = false;
  uint64_t start = 0, length = 0;
  std::string path;  ///< for people
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("fd", s.fd);
    v("kind", s.kind);
    v("type", s.type);
    v("breaking", s.breaking);
    v("read_only", s.read_only);
    v("start", s.start);
    v("length", s.length);
    v("path", s.path);
  }
};

/// What is left of the events of a one-shot that has fired (fs/eventpoll.c, EP_PRIVATE_BITS): EPOLLWAKEUP,
/// EPOLLONESHOT, EPOLLET and EPOLLEXCLUSIVE.
inline constexpr uint32_t kept_by_one_shot = 1u << 29 | 1u << 30 | 1u << 31 | 1u << 28;
inline constexpr bool has_fired(uint32_t events) { return (events & ~kept_by_one_shot) == 0; }
// ---- terminals. They are named by their device numbers (model::Terminal).

/// The pseudo-terminal with just that index, unlocked; or one of the machine.
struct OpenTerminal {
  static constexpr std::string_view name = "OPEN_TERMINAL";
  static constexpr std::string_view optional_field = "path";
  uint64_t terminal = 0;
  ObjectId description;  ///< of the master side
  uint32_t flags = 2;    ///< that one's, as for open
  int master_fd = 0;
  int slave_fd = -1;      ///< -1: nobody has opened its slave side yet
  std::string path = {};  ///< of one of the machine, which has no master side (-1); empty: a pseudo-terminal
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("terminal", s.terminal);
    v("description", s.description);
    v("flags", s.flags);
    v("master_fd", s.master_fd);
    v("slave_fd", s.slave_fd);
    v("path", s.path);
  }
};
/// The runner, which leads a session, acquires the terminal that is open under `fd`. Children that are born from now on
/// have it, too.
struct SetControllingTerminal {
  static constexpr std::string_view name = "SET_CONTROLLING_TERMINAL";
  int fd = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("fd", s.fd);
  }
};
/// The runner, which leads no session, has no controlling terminal any more. It is open under `fd`.
struct LeaveTerminal {
  static constexpr std::string_view name = "LEAVE_TERMINAL";
  int fd = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("fd", s.fd);
  }
};
/// tcsetpgrp(3), by a process that the terminal controls and that is in its foreground so far.
struct SetForegroundGroup {
  static constexpr std::string_view name = "SET_FOREGROUND_GROUP";
  int fd = 0;
  Pid pgid;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("fd", s.fd);
    v("pgid", s.pgid);
  }
};

/// epoll_ctl(2), EPOLL_CTL_ADD. What has fired is made to fire again, and what that takes must not be of other targets:
/// such are added before all others.
struct EpollAdd {
  static constexpr std::string_view name = "EPOLL_ADD";
  int epoll_fd = 0, fd = 0;
  uint32_t events = 0;
  uint64_t data = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("epoll_fd", s.epoll_fd);
    v("fd", s.fd);
    v("events", s.events);
    v("data", s.data);
  }
};

// ---- memory. prot and flags are PROT_* and MAP_* beyond what the command itself says.

struct Mmap {
  static constexpr std::string_view name = "MMAP";
  uint64_t addr = 0, length = 0;
  int fd = -1;
  uint64_t offset = 0;
  bool is_shared = false;
  uint32_t prot = 3, flags = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("addr", s.addr);
    v("length", s.length);
    v("fd", s.fd);
    v("offset", s.offset);
    v("is_shared", s.is_shared);
    v("prot", s.prot);
    v("flags", s.flags);
  }
};
struct MmapAnon {
  static constexpr std::string_view name = "MMAP_ANON";
  uint64_t addr = 0, length = 0;
  bool is_shared = false;
  uint32_t prot = 3, flags = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("addr", s.addr);
    v("length", s.length);
    v("is_shared", s.is_shared);
    v("prot", s.prot);
    v("flags", s.flags);
  }
};
struct Mremap {
  static constexpr std::string_view name = "MREMAP";
  static constexpr std::string_view optional_field = "length";  ///< the published language has none: plan::completed
  uint64_t addr = 0, length = 0, new_addr = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("addr", s.addr);
    v("length", s.length);
    v("new_addr", s.new_addr);
  }
};
struct Munmap {
  static constexpr std::string_view name = "MUNMAP";
  static constexpr std::string_view optional_field = "length";  ///< likewise
  uint64_t addr = 0, length = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("addr", s.addr);
    v("length", s.length);
  }
};
struct Mprotect {
  static constexpr std::string_view name = "MPROTECT";
  uint64_t addr = 0, length = 0;
  uint32_t prot = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("addr", s.addr);
    v("length", s.length);
    v("prot", s.prot);
  }
};
/// Unmaps everything but the agent area: the new process is an empty address space from here on.
struct ClearMemory {
  static constexpr std::string_view name = "CLEAR_MEMORY";
  template <typename S, typename V>
  static void fields(S&, V&&) {}
};
/// Private pages become what they were before anybody wrote to them.
struct DropPages {
  static constexpr std::string_view name = "DROP_PAGES";
  uint64_t addr = 0, length = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("addr", s.addr);
    v("length", s.length);
  }
};
/// Fills `runs` (address, length pairs, flattened) from consecutive bytes of a file.
struct LoadPages {
  static constexpr std::string_view name = "LOAD_PAGES";
  int fd = 0;
  uint64_t offset = 0;
  std::vector<uint64_t> runs;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("fd", s.fd);
    v("offset", s.offset);
    v("runs", s.runs);
  }
};
/// Stasis fills `runs` (as in LOAD_PAGES) from consecutive bytes of a pages file that is stored in blocks, which it
/// decodes; the runner waits for it.
struct DecodePages {
  static constexpr std::string_view name = "DECODE_PAGES";
  std::string file;
  uint64_t offset = 0;
  std::vector<uint64_t> runs;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("file", s.file);
    v("offset", s.offset);
    v("runs", s.runs);
  }
};
/// Pages of `runs` (as in LOAD_PAGES) come when they are used, or some time later: the runner makes a userfaultfd under
/// the passing number `fd`, which stasis takes, has it watch `mappings` (address, length pairs, flattened), and gives
/// to whoever serves their pages, `stasis lazy-pages`. The last command that touches that memory from outside.
struct OwePages {
  static constexpr std::string_view name = "OWE_PAGES";
  int fd = 0;
  std::vector<uint64_t> mappings, runs;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("fd", s.fd);
    v("mappings", s.mappings);
    v("runs", s.runs);
  }
};
/// Stasis writes `length` bytes of an image, which may be compressed or encrypted, to `position` of a descriptor of the
/// runner, which waits for it, or of the file at `path` (then fd is -1). The file may be one of huge pages.
struct DecodeFile {
  static constexpr std::string_view name = "DECODE_FILE";
  std::string file;
  uint64_t offset = 0, length = 0;
  int fd = -1;
  std::string path;
  uint64_t position = 0;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("file", s.file);
    v("offset", s.offset);
    v("length", s.length);
    v("fd", s.fd);
    v("path", s.path);
    v("position", s.position);
  }
};

/// shmat(2): the whole System V segment, which is there. The kernel numbers segments; `id` is what it calls this one.
struct AttachSegment {
  static constexpr std::string_view name = "ATTACH_SEGMENT";
  int id = 0;
  uint64_t addr = 0, length = 0;
  uint32_t prot = 3;
  ObjectId segment;
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("id", s.id);
    v("addr", s.addr);
    v("length", s.length);
    v("prot", s.prot);
    v("segment", s.segment);
  }
};

// ---- everything else

/// A room's own system calls. What the verifier has to know of them is declared: the attribute of the task they
/// establish, descriptors that appear or are started, capabilities and processes they need.
/// A descriptor and the open file description that is behind it.
struct Created {
  int fd = 0;
  ObjectId description;
  friend bool operator==(const Created&, const Created&) = default;
};
struct Perform {
  static constexpr std::string_view name = "PERFORM";
  std::string purpose;    ///< "posix timer 3", for people
  std::string attribute;  ///< "timers.posix": what of the Application this makes true; empty: nothing by itself
  std::vector<std::string> needs;  ///< "CAP_SYS_ADMIN" …
  std::vector<Created> creates;
  Calls calls;
  std::vector<Created> completes = {};  ///< get here what they carry (model::OpenDescription::carries)
  std::vector<Created> starts = {};     ///< what goes on in them begins (model::OpenDescription::starts_last)
  std::vector<Pid> processes = {};      ///< that have to be there: those that a pidfd is opened for
  /// Purposes of the supervisor's commands before whose first call makes what is removed here. A restore that fails
  /// removes nothing that it has not made: the name may be somebody else's.
  std::vector<std::string> undoes = {};
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("purpose", s.purpose);
    v("attribute", s.attribute);
    v("needs", s.needs);
    v("creates", s.creates);
    v("completes", s.completes);
    v("starts", s.starts);
    v("processes", s.processes);
    v("undoes", s.undoes);
    v("calls", s.calls);
  }
};
/// The runner's thread is complete and waits for its final registers.
struct Ready {
  static constexpr std::string_view name = "READY";
  template <typename S, typename V>
  static void fields(S&, V&&) {}
};
/// The supervisor ends the repair mode of the TCP connection behind `fd` of `task`: it sends and answers from now on.
/// All threads are READY and seized; others begin to notice.
struct EndRepair {
  static constexpr std::string_view name = "END_REPAIR";
  Pid task;
  int fd = 0;
  ObjectId description;
  bool reuse_address = false;  ///< SO_REUSEADDR, which goes with repair mode
  template <typename S, typename V>
  static void fields(S& s, V&& v) {
    v("task", s.task);
    v("fd", s.fd);
    v("description", s.description);
    v("reuse_address", s.reuse_address);
  }
};

using Action =
    std::variant<Fork, Clone, StartThread, ExitThread, EnterPidNamespace, Unshare, AwaitChild, SetChildReaper, SetSid,
                 SetPgid, Exit, Wait, Await, Post, Open, Close, Dup2, SetCloseOnExec, Lseek, TransferFd, OpenPidfd,
                 TakeFd, InheritFd, OpenTerminal, SetControllingTerminal, LeaveTerminal, SetForegroundGroup, EpollAdd,
                 Lock, Mmap, MmapAnon, Mremap, Munmap, Mprotect, ClearMemory, DropPages, LoadPages, DecodePages,
                 OwePages, DecodeFile, AttachSegment, Perform, Ready, EndRepair>;

struct Command {
  Pid pid;  ///< the process that runs it; 0: the supervisor
  Tid tid;  ///< the thread of it that runs it (leader: same number)
  Action action;
};

std::string_view name_of(const Action& action);
/// The process that a FORK or CLONE begins.
std::optional<Pid> created_by(const Action& action);

}  // namespace stasis::plan
