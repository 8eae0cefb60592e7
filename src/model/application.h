// An Application: everything a process tree is. Plain data, comparable, free of system calls and of image formats.
#pragma once

#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/files.h"
#include "model/memory.h"
#include "model/task.h"

namespace stasis::model {

/// Whose number is still that of a session or group. Whoever lives in the same nested pid namespace sees the nested
/// ids.
struct DeadLeader {
  std::vector<pid_t> nested_pids;
  Pid pid_namespace;
  friend bool operator==(const DeadLeader&, const DeadLeader&) = default;
};

/// A pseudo-terminal whose master side is held by the tree, or one of the machine (a virtual terminal, a serial line)
/// that controls a session of the tree. Its name is its device number, of a pair that of the slave side
/// (Task::controlling_terminal).
struct Terminal {
  ObjectId master;            ///< the one description of its master side; 0: of a bare tree, or there is none
  Pid session;                ///< that it controls; 0: none
  Pid foreground;             ///< the group in its foreground; 0: nobody is in it, or it controls no session
  bool slave_opened = false;  ///< somebody has opened its slave side: the master sees when all have closed it
  std::string path = {};      ///< of one of the machine; empty: a pseudo-terminal
  friend bool operator==(const Terminal&, const Terminal&) = default;
};
/// Of /dev/pts/INDEX (kernel/drivers/tty/pty.c: 136 is the first of eight major numbers, the only one in use).
inline constexpr uint64_t first_terminal = 136 << 8, last_terminal_index = (1 << 20) - 1;
constexpr uint64_t terminal_with_index(uint32_t index) {
  return first_terminal | (index & 0xff) | static_cast<uint64_t>(index & ~0xffu) << 12;
}
constexpr uint32_t index_of_terminal(uint64_t device) {
  return static_cast<uint32_t>((device & 0xff) | (device >> 12 & 0xfff00));
}

constexpr bool is_pseudo_terminal(uint64_t device) { return device == terminal_with_index(index_of_terminal(device)); }
/// "/dev/pts/7", or the number of another.
std::string terminal_name(uint64_t device);

/// What is there for the time of a restore alone: no part of what is restored, and not compared.
struct Scaffold {
  std::set<std::string> directories;  ///< above files that are made to be opened, and gone since the dump
  friend bool operator==(const Scaffold&, const Scaffold&) { return true; }
};

struct Application {
  Pid root;
  bool root_is_namespace_init = false;     ///< the tree owns a pid namespace and `root` is its pid 1
  bool shell_job = false;                  ///< session and terminal belong to somebody outside
  bool compare_build_ids = true;           ///< of its files, before a restore; false: sizes alone are compared
  std::vector<Task> tasks;                 ///< a parent stands before its children
  std::map<Pid, DeadLeader> dead_leaders;  ///< those of nested pid namespaces
  std::map<uint64_t, Terminal> terminals;  ///< by device number
  std::map<ObjectId, DescriptorTable> descriptor_tables;
  std::map<ObjectId, FsContext> fs_contexts;
  std::map<ObjectId, SignalHandlers> signal_handlers;
  std::map<ObjectId, AddressSpace> address_spaces;
  std::map<ObjectId, SharedMemory> shared_memories;
  std::map<ObjectId, OpenDescription> descriptions;
  /// Objects behind descriptions that several of them share (a pipe's buffer, an unlinked file's content): each is
  /// known to its room only.
  std::map<ObjectId, KindState> objects;
  Scaffold scaffold;

  const Task* find(Pid pid) const;
  Task* find(Pid pid);
  friend bool operator==(const Application&, const Application&) = default;
};

/// What of the terminals no kernel leads to; empty: nothing.
std::string problem_with_terminals(const Application&);

/// Tasks by their pids, for as long as nobody changes the list: find looks at one after the other.
class TaskIndex {
 public:
  explicit TaskIndex(const Application&);
  const Task* find(Pid pid) const {
    const auto found = tasks_.find(pid);
    return found == tasks_.end() ? nullptr : found->second;
  }

 private:
  std::unordered_map<Pid, const Task*> tasks_;
};

/// The thread that has to take a signal of the timer for its overruns to be counted again: the one that is notified, or
/// the leader where any may be. 0: there are none, or nobody is notified any more.
Tid overruns_belong_to(const Task&, const PosixTimer&);

}  // namespace stasis::model
