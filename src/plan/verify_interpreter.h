// The verifier's interpreter: a model of the kernel that carries out one command after the other.
//
// Its rules stand in a file for each subject: processes (verify_processes.cc), sessions and groups (verify_groups.cc),
// terminals (verify_terminals.cc), descriptors (verify_descriptors.cc), mappings (verify_memory.cc), what orders
// commands and what rooms perform (verify.cc), and the comparison with the Application (verify_outcome.cc).
#pragma once

#include <fmt/format.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "model/application.h"
#include "plan/program.h"
#include "plan/verify.h"
#include "plan/verify_attributes.h"
#include "plan/verify_locks.h"
#include "plan/verify_order.h"
#include "plan/verify_pid_namespaces.h"
#include "plan/verify_space.h"

namespace stasis::plan::verifier {

struct OpenSlot {
  ObjectId description;
  bool close_on_exec = false;
  Pid pidfd_of;            ///< 0: it is none
  uint64_t terminal = 0;   ///< likewise
  bool is_master = false;  ///< its master side
  bool inherited = false;  ///< the supervisor has it for those whom it creates
};
struct Table {
  std::map<int, OpenSlot> slots;
  std::map<int, Shared> uses;  ///< of each number, open or not
  Shared turn;                 ///< of the processes that share it: for a moment any number may be in use
};

struct Process {
  Pid pid, parent, group, session;
  bool alive = true, zombie = false, reaped = false;
  int status = 0;
  bool subreaper = false;
  uint64_t terminal = 0;                               ///< that controls it; 0: none
  Tid parent_thread;                                   ///< of the parent's
  bool has_death_signal = false;                       ///< is sent one when that ends
  std::shared_ptr<const Snapshot> parent_threads_end;  ///< of the one before, if that has passed it on
  Stamp born;
  Pid pid_space;                        ///< its pid namespace
  std::map<Tid, Pid> childrens_spaces;  ///< where those of threads are born that have entered others
  Shared existence;                     ///< born, and not waited for
  Shared identity;                      ///< group and session
  Shared control;                       ///< terminal
  Shared reaper_flag;                   ///< subreaper
  Shared parentage;                     ///< parent
  Shared parents_life;                  ///< of the thread that is its parent
  std::map<Tid, Shared> reachable;  ///< whether others may take its descriptors: until a thread's credentials change
  std::shared_ptr<Table> table;
  std::shared_ptr<SpaceModel> space;
  std::shared_ptr<const int> fs, handlers;  ///< only who shares them with whom
  std::set<Tid> threads, ready;
  std::vector<Tid> in_order;         ///< its threads, as they were started
  std::optional<int> leader_status;  ///< it has ended, and others go on
  Shared leader_life;                ///< until then: it is what a pidfd refers to

  Pid childrens_space(Tid tid) const {
    const auto entered = childrens_spaces.find(tid);
    return entered == childrens_spaces.end() ? pid_space : entered->second;
  }
  /// kernel/exit.c, find_alive_thread.
  Tid first_living() const {
    const size_t first = leader_status ? 1 : 0;
    return first < in_order.size() ? in_order[first] : Tid{};  // stasis' own
  }
};

struct TerminalState {
  Pid session, foreground;
  bool slave_opened = false;
  std::string path;
  Shared control;  ///< session and foreground
};

/// Somebody has joined a group because of one of its members.
struct Reliance {
  Stamp when;
  Pid joiner, session;
  Knowledge knowledge;  ///< the joiner's at that time
};

class Interpreter {
 public:
  Interpreter(const Program& program, const model::Application& wanted, Extent extent);
  /// Carries out all commands.
  std::optional<Rejection> interpret();
  std::optional<Rejection> run();
  /// Who is there in the end; pids ascending.
  std::vector<model::Task> tasks() const;
  /// Of sessions and groups, as far as their members see them.
  std::map<Pid, model::DeadLeader> dead_leaders() const;
  std::map<uint64_t, model::Terminal> terminals() const;

 private:
  // ---- rules

  void reject(std::string rule) {
    if (!problem_) problem_ = std::move(rule);
  }
  template <typename... Args>
  void require(bool holds, fmt::format_string<Args...> rule, Args&&... args) {
    if (!holds) reject(fmt::format(rule, std::forward<Args>(args)...));
  }
  /// A rule that a part of the model has found broken.
  void obey(const Broken& broken) {
    if (broken) reject(*broken);
  }
  Stamp stamp() const { return {tid_.value, runner_->steps}; }
  auto certain() {
    return [this](const Stamp& then) { return is_before(then); };
  }
  /// What is read or written is named only if it has to be: most commands are in order.
  template <typename... Args>
  void reads(Shared& state, fmt::format_string<Args...> what, Args&&... args) {
    if (problem_ || state.read(stamp(), certain())) return;
    reject(
        fmt::format("nothing makes sure that {} is settled by then", fmt::format(what, std::forward<Args>(args)...)));
  }
  template <typename... Args>
  void writes(Shared& state, fmt::format_string<Args...> what, Args&&... args) {
    if (problem_ || state.write(stamp(), certain())) return;
    reject(fmt::format("{} may be in use by another process at that time",
                       fmt::format(what, std::forward<Args>(args)...)));
  }

  // ---- one command, and what orders those of several threads

  void step(const Command& command);
  /// Whether what happened at `then` is certain to have happened before now, whatever the scheduler does.
  bool is_before(const Stamp& then);
  void learn(std::shared_ptr<const Snapshot> snapshot);
  /// Everything that the runner has done and knows, as others may learn it.
  std::shared_ptr<const Snapshot> snapshot() const;
  /// A new runner knows what its creator knows.
  void begin_runner(pid_t tid);
  void apply(const Post& post);
  void apply(const Await& await);
  void apply(const Perform& perform);
  /// From here on it must keep its parent (kernel/exit.c, reparent_leader and forget_original_parent).
  void set_death_signal();
  void apply(const Ready&);
  /// Everybody is READY: nobody but the supervisor runs anything any more.
  void expect_all_ready();
  void apply(const EndRepair& end);

  // ---- processes

  bool number_is_free(pid_t number) const;
  /// An id is in use as long as anybody has it as a pid, tid, group or session: with it all its nested numbers.
  void count_use(pid_t id, int change);
  /// Every number that a process occupies, entered (1) or struck out (-1).
  void occupy(const Process& process, int change);
  void occupy_group(Pid group, Pid member, int change);
  bool has_live_init(Pid space) const { return space.value == 0 || processes_.at(space).alive; }
  /// `space` is where the child lives: where the runner's children do, or a namespace that begins with it.
  template <typename Birth>
  void create(const Birth& birth, Pid parent, Tid parent_thread, Pid space);
  /// The pid namespace that the child lives in.
  template <typename Birth>
  Pid birthplace(const Birth& birth);
  void claim(pid_t id, Pid space, const std::vector<pid_t>& nested);
  void apply(const Fork& fork);
  void apply(const Clone& clone);
  void apply(const EnterPidNamespace& enter);
  void apply(const Unshare& unshare);
  /// What makes a pid namespace, or enters one, does not wait until rights and filters are final.
  void require_admin();
  void apply(const AwaitChild& await);
  /// A living process that the runner can name.
  Process* named(Pid pid);
  void apply(const StartThread& thread);
  void apply(const ExitThread& exit);
  void apply(const SetChildReaper& set);
  /// The nearest living subreaper above in the same pid namespace, or that namespace's init; the root is that of the
  /// tree's own, or its own parent takes over.
  Pid reaper_of(Process& dying);
  /// An init that ends kills all in its namespace, and waits until no ids but its own are in use there
  /// (kernel/pid_namespace.c, zap_pid_ns_processes). A group of somebody who lived there keeps its id as long as it has
  /// members: outside, or the init itself.
  void end_namespace();
  /// The init of a pid namespace is shielded from signals, but not from all.
  void check_end_of_init(int status);
  void apply(const Exit& exit);
  void apply(const Wait& wait);

  // ---- sessions and groups

  void apply(const SetSid&);
  void apply(const SetPgid& set);
  /// To join a group somebody must be in it, whatever the scheduler does: one whose coming is certain, and whose going
  /// is certain to be later.
  void rely_on_member(Pid group);
  Pid certain_member(Pid group, const Reliance& reliance, Pid leaver);
  void leaves_group(const Process& leaver);

  // ---- terminals

  void apply(const OpenTerminal& open);
  void apply(const SetControllingTerminal& set);
  void apply(const LeaveTerminal& leave);
  void apply(const SetForegroundGroup& set);
  /// The terminal that is open under `fd`; 0 (and a broken rule): there is none.
  uint64_t terminal_under(int fd);
  void hang_up();
  Pid foreground_of(const TerminalState& terminal) const;

  // ---- descriptors

  /// The slots; who uses them is the new table's own history.
  std::shared_ptr<Table> copied_table();
  void touch_table();
  /// What the runner uses: it is open, and stays so for as long.
  OpenSlot* open_slot(int fd);
  void put(int fd, OpenSlot slot);
  /// Where a descriptor of the supervisor takes the place of a description, nothing else may.
  void makes(ObjectId id);
  void apply(const Open& open);
  void apply(const Close& close);
  void apply(const Dup2& dup);
  void apply(const SetCloseOnExec& set);
  void apply(const Lseek& seek);
  void apply(const TransferFd& transfer);
  void apply(const OpenPidfd& open);
  void apply(const InheritFd& inherit);
  void apply(const TakeFd& take_fd);
  void take(Process& from, int fd, int target_fd, bool close_on_exec);
  void apply(const EpollAdd& add);
  void apply(const Lock& lock);
  bool leads_to(ObjectId from, ObjectId to) const;
  /// A description gets what it carries: all of that is open here.
  void complete(const Created& completed);

  // ---- mappings

  bool spares_agent(uint64_t begin, uint64_t length);
  void map(uint64_t begin, uint64_t length, uint32_t prot, bool shared, uint32_t flags = 0);
  void apply(const Mmap& mmap);
  void apply(const MmapAnon& mmap);
  void apply(const Mremap& remap);
  void apply(const Munmap& unmapped);
  void apply(const Mprotect& protect);
  void apply(const DropPages& drop);
  void apply(const ClearMemory&);
  void apply(const LoadPages& load);
  void apply(const DecodePages& decode);
  void apply(const OwePages& owe);
  /// A whole mapping that a userfaultfd can watch for missing pages, and in which nothing needs them before.
  void require_patient(AddressRange mapping);
  void apply(const DecodeFile& decode);
  void fill(const std::vector<uint64_t>& runs);
  void apply(const AttachSegment& attach);

  // ---- the outcome

  /// Of an init: the namespace that its own lies in, if that is further inside than its parent lives.
  Pid outer_space(const Process& process) const;
  void compare();
  void compare_terminals();
  void compare_descriptions();
  /// Whoever is at the other end of what stasis gives must not wait for stasis.
  void compare_given(const Table& own);
  void compare(const model::Task& task, const Process& made);
  void compare_parent_thread(const model::Task& task, const Process& made);
  void compare_leader(const model::Task& task, const Process& made);
  /// Two tasks have the same object if and only if the Application says so.
  void compare_sharing(const model::Task& task, const Process& made);
  void compare_table(const model::Task& task, const Table& made);
  /// What is carried may carry something itself.
  void compare_carried(ObjectId id);

  using Watches = std::map<std::pair<ObjectId, int>, std::pair<uint32_t, uint64_t>>;  ///< target, number → events, data
  struct Event {
    uint32_t count = 0, awaited = 0;
    std::shared_ptr<const Snapshot> first;  ///< what the first to post it knows
    Clock sum;                              ///< and what the others know beyond that
    Merged merged;
    std::shared_ptr<const Snapshot> all;  ///< all of it, as long as nobody else posts
  };

  const Program& program_;
  const model::Application& wanted_;
  const model::TaskIndex tasks_wanted_;
  Extent extent_;
  AttributeLedger attributes_;
  std::set<ObjectId> given_;                          ///< descriptions that descriptors of stasis take the place of
  std::unordered_map<ObjectId, uint64_t> positions_;  ///< of open file descriptions
  std::set<ObjectId> completed_, compared_;           ///< those that carry something
  std::unordered_map<ObjectId, Watches> watches_;     ///< of epolls
  std::set<ObjectId> started_;                        ///< open file descriptions
  std::map<std::string, int> supervised_;             ///< how many commands of the supervisor have had a purpose
  std::set<ObjectId> repaired_;                       ///< connections that have left repair mode
  LockLedger locks_;
  std::vector<Stamp> leases_;  ///< when leases were taken
  size_t index_ = 0;
  Process* now_ = nullptr;
  Tid tid_;
  Pid culprit_;
  std::map<Pid, Process> processes_;
  NamespaceModel spaces_;
  std::map<uint64_t, TerminalState> terminals_;
  Runner* runner_ = nullptr;
  std::unordered_map<pid_t, Runner> runners_;
  std::map<Pid, std::shared_ptr<const Snapshot>> ends_;
  std::unordered_map<std::string, Event> posts_;
  Shared files_;  ///< what the supervisor makes in the file system for others to open
  std::map<std::pair<Pid, Pid>, std::vector<Reliance>> reliances_;   ///< by group, and the member of it
  std::unordered_map<pid_t, Stamp> released_;                        ///< numbers: when the last to use them was reaped
  std::unordered_map<Pid, std::set<Pid>> group_members_, children_;  // until they are reaped
  std::unordered_map<pid_t, int> numbers_;  ///< how often an id is in use as a pid, tid, group or session
  std::map<std::pair<std::string_view, ObjectId>, const void*> object_of_;
  std::map<std::pair<std::string_view, const void*>, ObjectId> id_of_;
  std::optional<std::string> problem_;
};

}  // namespace stasis::plan::verifier
