// What the parts of the planner share while they write one Program.
#pragma once

#include <fmt/format.h>

#include <map>
#include <set>
#include <string>

#include "model/application.h"
#include "model/pid_namespaces.h"
#include "plan/carried.h"
#include "plan/contributor.h"
#include "plan/planner.h"

namespace stasis::plan {

/// Of a pid namespace: those that no process, thread or leader of the tree has.
class FreeNumbers {
 public:
  void take(pid_t number) { taken_.insert(number); }
  void begin_at(pid_t number) { next_ = number; }
  pid_t take_one() {
    if (next_ == 0) next_ = taken_.empty() ? 2 : *taken_.rbegin() + 1;
    while (!taken_.insert(next_).second) ++next_;
    return next_++;
  }

 private:
  std::set<pid_t> taken_;
  pid_t next_ = 0;  ///< 0: after the highest
};

class Emission {
 public:
  Emission(const model::Application& application, const Contributors& contributors, const PlanOptions& options)
      : application(application),
        tasks(application),
        spaces(application),
        contributors(contributors),
        options(options) {
    for (const auto& task : application.tasks) {
      if (task.state != model::TaskState::zombie) ++tables_[task.descriptors].users;
    }
  }

  const model::Application& application;
  const model::TaskIndex tasks;
  const model::PidNamespaces spaces;
  const Contributors& contributors;
  const PlanOptions& options;
  Program program;
  std::map<std::string, uint32_t> posted;  ///< how often an event is posted so far
  /// Tasks that have or had children that ended meanwhile: SIGCHLD is pending for them and must be dropped.
  std::set<Pid> bereaved;
  /// By parents: tasks that are sent a signal when a thread of their parent ends, and have come to the first of these
  /// threads, which has ended in the Application. They go on to the next with its end.
  std::map<Pid, std::set<Pid>> passed_on;
  /// What processes have that is not theirs, as long as they have it.
  Carried carried;
  /// The descriptor table that it has, or is to be born with: its own, one that it carries, or none that is known.
  ObjectId table_of(Pid pid) const {
    if (const auto found = carried.files.find(pid); found != carried.files.end()) return found->second;
    const auto* task = tasks.find(pid);
    return task == nullptr || task->state == model::TaskState::zombie ? ObjectId{} : task->descriptors;
  }

  /// START_THREAD of all but the leader, or those up to `last`, that are not there yet. In their order: children of one
  /// that ends go to the first that lives.
  void start_threads(const model::Task& task, Tid last = {}) {
    for (const auto& thread : task.threads) {
      if (thread.tid != leader_of(task.pid) && started_.insert(thread.tid).second)
        process(task.pid).add(StartThread{thread.tid, thread.nested_tids});
      if (thread.tid == last) return;
    }
  }

  bool has_started(Tid thread) const { return started_.contains(thread); }

  /// Which of its parent's threads has to create a task. Where the leader has ended, those who are sent a signal when
  /// the thread that is their parent ends cannot be the leader's.
  Tid parent_thread(const model::Task& task) const;
  /// By the leader, or by another thread between two commands of the leader's.
  void add_by(Pid pid, Tid tid, Action action);

  /// Once it creates nobody any more, and the other namespace's init is there.
  void enter_childrens_namespace(const model::Task& task, const model::Thread& thread) {
    const Pid init = thread.childrens_namespace;
    if (init.value == 0) return;
    auto sink = this->thread(task.pid, thread.tid);
    if (init == model::empty_namespace) return sink.add(Unshare{.pid_namespace = true});
    sink.add(EnterPidNamespace{init});
    if (tasks.find(init)->leader_has_ended()) post(sink, entered(init));
  }

  /// The last word of a thread. All who enter a pid namespace have done so.
  void end(const model::Task& task, const model::Thread& thread) {
    auto sink = this->thread(task.pid, thread.tid);
    if (!thread.has_ended()) return sink.add(Ready{});
    await_all(sink, entered(task.pid));
    sink.add(ExitThread{*thread.exit_status});
    const auto children = passed_on.find(task.pid);
    if (children == passed_on.end()) return;
    auto heir = this->thread(task.pid, task.first_living()->tid);
    for (const Pid child : children->second) heir.add(AwaitChild{child});
    post(heir, children_passed_on(task.pid));
  }
  /// Before its death signal is set, which the end of its parent's first thread would send.
  void await_passing_on(const model::Task& task) {
    const auto children = passed_on.find(task.parent);
    if (children == passed_on.end() || !children->second.contains(task.pid)) return;
    for (const auto& thread : task.threads)
      await_all(this->thread(task.pid, thread.tid), children_passed_on(task.parent));
  }

  /// With another task that lives in the end.
  bool shares_table(Pid pid) const { return tables_.at(tasks.find(pid)->descriptors).users > 1; }

  Sink process(Pid pid) { return {program, pid, pid.value == 0 ? Tid{0} : leader_of(pid)}; }
  Sink thread(Pid pid, Tid tid) { return {program, pid, tid}; }

  void post(Sink sink, const std::string& event) {
    ++posted[event];
    sink.add(Post{event});
  }
  /// Waits for all posts of the event so far; nothing to do if there are none.
  void await_all(Sink sink, const std::string& event) {
    if (const auto found = posted.find(event); found != posted.end()) sink.add(Await{event, found->second});
  }

  /// Called before a process opens, closes or copies descriptors. Those who share a table take turns: what one opens
  /// for a moment under the lowest free number may be the number that another's dup3 wants (which replaces it, or is
  /// refused with EBUSY, fs/file.c), and a child copies whatever is open at its birth.
  void take_table(Pid pid) {
    const ObjectId id = table_of(pid);
    if (id.value == 0) return;
    auto& table = tables_.at(id);
    if (table.users < 2 || table.last == pid) return;
    free_table(table, id);
    if (table.turns != 0) await_all(process(pid), is_free(id, table.turns));
    table.last = pid;
  }
  /// It has another one from here on, or ends: then it could not say later that it has done with this one.
  void leave_table(Pid pid) {
    const ObjectId id = table_of(pid);
    if (id.value != 0 && tables_.at(id).last == pid) free_table(tables_.at(id), id);
    carried.files.erase(pid);
  }

  /// Numbers that processes, threads and leaders of the tree have; those who pass take others, from `first` on (0: from
  /// the highest on).
  void reserve_numbers(const std::set<pid_t>& taken, pid_t first);
  /// A child of `creator`, or somebody in a pid namespace, who ends before the program does.
  Fork transient(Pid creator) { return transient_in(spaces.of(creator)); }
  Fork transient_in(Pid space);

  /// A descriptor number that no table of the tree uses, different each time.
  int temporary_fd() { return next_temporary_++; }
  Placement placement(const model::OpenDescription& description, int fd) {
    const int scratch = next_temporary_;
    next_temporary_ += Placement::scratch_numbers;
    const auto master = masters_.find(description.id);
    return {.description = &description,
            .fd = fd,
            .scratch = scratch,
            .inherited = master == masters_.end() ? -1 : master->second};
  }
  void set_first_temporary(int fd) { next_temporary_ = fd; }

  /// `to` takes a descriptor of another process.
  void transfer(Pid from, Pid to, int fd, int target, bool close_on_exec);
  /// For those in nested pid namespaces who have to take descriptors of processes that they cannot name: they inherit a
  /// pidfd of the root, and take from there a pidfd of the other. Numbers from `first_fd` on are used for them, one
  /// more than there are tasks. Nothing to do in trees without such namespaces.
  void open_root_pidfd(int first_fd);
  void close_pidfds(Pid);
  /// Terminals are opened by the root before it creates anybody: processes are born with the terminal that controls
  /// them. Numbers from `first_fd` on are used for them, two for each.
  void open_terminals(int first_fd);
  /// The passing number of its slave side, in every process.
  int terminal_fd(uint64_t terminal) const { return terminals_.at(terminal).slave; }
  void close_terminals(Pid);
  /// Numbers taken since `first_temporary` was read may be given again: whatever had them is closed by now.
  int first_temporary() const { return next_temporary_; }

  /// Descriptions that descriptors of the supervisor take the place of: everybody has them from birth, under numbers
  /// from `first_fd` on.
  void inherit_given(int first_fd);
  void close_given(Pid);
  const std::map<ObjectId, int>& given() const { return given_; }
  /// No path leads to it: whoever needs it has it passed to him.
  bool is_passed(const model::OpenDescription& description) const {
    const auto* made_by = maker(description);
    return given_.contains(description.id) || (made_by != nullptr && !made_by->reopenable());
  }

  const DescriptionMaker* maker(const model::OpenDescription& description) const {
    for (const auto* made : contributors.makers) {
      if (description.state.value && made->kind() == description.state.value->kind()) return made;
    }
    return nullptr;
  }

 private:
  struct Table {
    unsigned users = 0, turns = 0;
    Pid last;  ///< whose turn it is
  };
  static std::string is_free(ObjectId table, unsigned turn) { return fmt::format("table {} is free, {}", table, turn); }
  void free_table(Table& table, ObjectId id) {
    if (table.last.value != 0) post(process(table.last), is_free(id, ++table.turns));
    table.last = {};
  }
  static std::string entered(Pid init) { return fmt::format("the pid namespace of {} is entered", init); }
  static std::string children_passed_on(Pid parent) {
    return fmt::format("the first thread of {} has passed its children on", parent);
  }
  int pidfd_in_root(Pid);

  std::set<Tid> started_;
  unsigned turns_ = 0;  ///< of threads
  std::map<ObjectId, Table> tables_;
  int next_temporary_ = 0;
  std::map<Pid, FreeNumbers> numbers_;  ///< by pid namespace
  struct TerminalNumbers {
    int master = -1, slave = -1;
  };
  std::map<uint64_t, TerminalNumbers> terminals_;
  std::map<ObjectId, int> masters_;  ///< their descriptions
  int root_pidfd_ = -1;
  std::map<ObjectId, int> given_;  ///< their numbers in every process
  std::map<Pid, int> pidfds_;      ///< of other processes, in the root
};

}  // namespace stasis::plan
