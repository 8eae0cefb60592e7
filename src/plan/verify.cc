#include "plan/verify.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>

#include "plan/verify_attributes.h"
#include "plan/verify_order.h"
#include "plan/verify_pid_namespaces.h"
#include "plan/verify_space.h"

namespace stasis::plan {
namespace {

struct OpenSlot {
  ObjectId description;
  bool close_on_exec = false;
  Pid pidfd_of;            ///< 0: it is none
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
  bool has_death_signal = false;  ///< is sent one when its parent ends
  Stamp born;
  Pid pid_space, childrens_space;   ///< pid namespaces: its own, and where its children are born
  Shared existence;                 ///< born, and not waited for
  Shared identity;                  ///< group and session
  Shared reaper_flag;               ///< subreaper
  Shared parentage;                 ///< parent
  std::map<Tid, Shared> reachable;  ///< whether others may take its descriptors: until a thread's credentials change
  std::shared_ptr<Table> table;
  std::shared_ptr<SpaceModel> space;
  std::shared_ptr<const int> fs, handlers;  ///< only who shares them with whom
  std::set<Tid> threads, ready;
  std::optional<int> leader_status;  ///< it has ended, and others go on
  Shared leader_life;                ///< until then: it is what a pidfd refers to
};

class Interpreter {
 public:
  Interpreter(const Program& program, const model::Application& wanted, Extent extent)
      : program_(program), wanted_(wanted), tasks_wanted_(wanted), extent_(extent), attributes_(wanted) {
    auto& supervisor = processes_[Pid{0}];
    supervisor.table = std::make_shared<Table>();
    supervisor.space = std::make_shared<SpaceModel>(SpaceModel::of_supervisor());
    if (program.images_fd >= 0) supervisor.table->slots[program.images_fd] = {};
    supervisor.threads.insert(Tid{0});
  }

  /// Carries out all commands.
  std::optional<Rejection> interpret() {
    for (index_ = 0; index_ < program_.commands.size(); ++index_) {
      const auto& command = program_.commands[index_];
      step(command);
      if (problem_) return Rejection{index_, command.pid, *problem_};
    }
    return std::nullopt;
  }

  std::optional<Rejection> run() {
    if (auto rejection = interpret()) return rejection;
    compare();
    if (problem_) return Rejection{index_, culprit_, *problem_};
    return std::nullopt;
  }

  /// Who is there in the end; pids ascending.
  std::vector<model::Task> tasks() const {
    std::vector<model::Task> tasks;
    for (const auto& [pid, process] : processes_) {
      if (pid.value == 0 || process.reaped) continue;
      model::Task task;
      task.pid = pid, task.parent = process.parent, task.group = process.group, task.session = process.session;
      task.pid_namespace = process.pid_space, task.nested_pids = spaces_.place_of(pid.value).nested;
      if (process.alive && process.childrens_space != process.pid_space)
        task.childrens_namespace = process.childrens_space;
      task.state = process.zombie ? model::TaskState::zombie : model::TaskState::running;
      task.exit_status = process.status;
      task.child_subreaper = process.subreaper && process.alive;
      for (const Tid tid : process.threads) {
        if (!process.alive) continue;
        model::Thread thread;
        thread.tid = tid, thread.nested_tids = spaces_.place_of(tid.value).nested;
        if (tid == leader_of(pid)) thread.exit_status = process.leader_status;
        task.threads.insert(tid == leader_of(pid) ? task.threads.begin() : task.threads.end(), thread);
      }
      tasks.push_back(std::move(task));
    }
    return tasks;
  }
  /// Of sessions and groups, as far as their members see them.
  std::map<Pid, model::DeadLeader> dead_leaders() const {
    std::map<Pid, model::DeadLeader> leaders;
    for (const auto& [pid, process] : processes_) {
      if (process.pid_space.value == 0 || process.reaped) continue;
      for (const Pid id : {process.group, process.session}) {
        const auto led = processes_.find(id);
        auto seen = spaces_.seen_from(process.pid_space, id.value);
        if (seen.nested.empty() || (led != processes_.end() && !led->second.reaped)) continue;
        auto& leader = leaders[id];
        if (seen.nested.size() > leader.nested_pids.size()) leader = {std::move(seen.nested), seen.space};
      }
    }
    return leaders;
  }

 private:
  // ---- rules

  void reject(std::string rule) {
    if (!problem_) problem_ = std::move(rule);
  }
  template <typename... Args>
  void require(bool holds, fmt::format_string<Args...> rule, Args&&... args) {
    if (!holds) reject(fmt::format(rule, std::forward<Args>(args)...));
  }

  static Tid runner_of(const Command& command) {
    return command.pid.value != 0 && command.tid.value == 0 ? leader_of(command.pid) : command.tid;
  }

  void step(const Command& command) {
    const auto found = processes_.find(command.pid);
    if (found == processes_.end()) return reject("the process does not exist yet (ESRCH)");
    now_ = &found->second;
    tid_ = runner_of(command);
    require(now_->alive, "the process has ended (ESRCH)");
    require(now_->threads.contains(tid_), "the thread {} does not exist (ESRCH)", tid_);
    require(!now_->ready.contains(tid_), "the thread is READY: it runs nothing any more");
    require(!now_->leader_status || tid_ != leader_of(now_->pid), "the thread has ended (ESRCH)");
    if (problem_) return;
    runner_ = &runners_[tid_.value];
    ++runner_->steps;
    std::visit([this](const auto& action) { apply(action); }, command.action);
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
  /// Whether what happened at `then` is certain to have happened before now, whatever the scheduler does.
  bool is_before(const Stamp& then) {
    if (then.tid == tid_.value || (then.tid == 0 && then.step == 0)) return true;
    return runner_->knowledge.reaches(then.tid, then.step);
  }
  void learn(std::shared_ptr<const Snapshot> snapshot) {
    runner_->knowledge.learn(std::move(snapshot), tid_.value, runner_->steps);
  }
  /// Everything that the runner has done and knows, as others may learn it.
  std::shared_ptr<const Snapshot> snapshot() const {
    const auto sum = runner_->knowledge.all();
    sum->steps[tid_.value] = runner_->steps;
    return sum;
  }
  /// A new runner knows what its creator knows.
  void begin_runner(pid_t tid) {
    auto& made = runners_[tid];  // a number that was used before goes on counting: old stamps must not look new
    made.knowledge = runner_->knowledge.inherited(made.steps);
    made.knowledge.learn(std::make_shared<Snapshot>(Snapshot{{{tid_.value, runner_->steps}}, nullptr}), tid,
                         made.steps);
  }

  // ---- the process tree

  bool number_is_free(pid_t number) const {
    const auto uses = numbers_.find(number);
    return uses == numbers_.end() || uses->second == 0;
  }
  /// An id is in use as long as anybody has it as a pid, tid, group or session: with it all its nested numbers.
  void count_use(pid_t id, int change) {
    if ((numbers_[id] += change) != 0 || change > 0) return;
    released_[id] = stamp();
    spaces_.release(id, stamp());
  }
  /// Every number that a process occupies, entered (1) or struck out (-1).
  void occupy(const Process& process, int change) {
    count_use(process.pid.value, change);
    count_use(process.session.value, change);
    occupy_group(process.group, process.pid, change);
    for (const Tid tid : process.threads) {
      if (tid != leader_of(process.pid)) count_use(tid.value, change);
    }
  }
  void occupy_group(Pid group, Pid member, int change) {
    count_use(group.value, change);
    if (change > 0)
      group_members_[group].insert(member);
    else
      group_members_[group].erase(member);
  }

  /// The slots; who uses them is the new table's own history.
  std::shared_ptr<Table> copied_table() {
    touch_table();
    auto copy = std::make_shared<Table>();
    for (const auto& [fd, slot] : now_->table->slots) {
      // Of what is stasis' own the executor keeps the images, and what is given.
      if (now_->pid.value != 0 || fd == program_.images_fd || slot.inherited) copy->slots[fd] = slot;
    }
    return copy;
  }

  bool has_live_init(Pid space) const { return space.value == 0 || processes_.at(space).alive; }

  /// `space` is where the child lives: where the runner's children do, or a namespace that begins with it.
  template <typename Birth>
  void create(const Birth& birth, Pid parent, Pid space) {
    const Pid pid = birth.child_pid;
    require(pid.value > 0, "pid {} is out of range (EINVAL)", pid);
    require(number_is_free(pid.value), "{} is in use as a pid, tid, group or session (EEXIST)", pid);
    const auto released = released_.find(pid.value);
    require(released == released_.end() || is_before(released->second), "{} may still be in use (EEXIST)", pid);
    require(!birth.share_handlers || birth.share_memory, "handlers are shared only with the memory (EINVAL)");
    require(space == pid || has_live_init(space), "the init of its pid namespace, {}, has ended (ENOMEM)", space);
    if (problem_) return;
    if (space == pid) spaces_.begin(pid, now_->pid_space);
    claim(pid.value, space, birth.nested_pids);
    if (problem_) return;
    Process child;
    child.pid = pid, child.parent = parent;
    child.pid_space = child.childrens_space = space;
    child.existence.write(stamp(), certain());
    child.group = now_->group, child.session = now_->session;
    child.born = stamp();
    reads(now_->identity, "its own group and session");
    child.identity.write(stamp(), certain());
    child.parentage.write(stamp(), certain());
    child.table = birth.share_files ? now_->table : copied_table();
    child.space = birth.share_memory ? now_->space : std::make_shared<SpaceModel>(*now_->space);
    child.fs = birth.share_fs ? now_->fs : std::make_shared<int>();
    child.handlers = birth.share_handlers ? now_->handlers : std::make_shared<int>();
    child.threads.insert(leader_of(pid));
    child.reachable[leader_of(pid)];
    begin_runner(pid.value);
    occupy(child, 1);
    children_[parent].insert(pid);
    processes_[pid] = std::move(child);
    now_ = &processes_.at(program_.commands[index_].pid);
  }
  void claim(pid_t id, Pid space, const std::vector<pid_t>& nested) {
    obey(spaces_.claim(id, space, nested, certain()));
  }
  void apply(const Fork& fork) {
    const bool is_root = now_->pid.value == 0;
    require(!is_root || fork.new_pid_namespace == wanted_.root_is_namespace_init,
            "the root must be the init of a pid namespace if, and only if, the tree has one of its own");
    require(!fork.new_pid_namespace || now_->pid_space == now_->childrens_space,
            "its children are born in another pid namespace: it cannot begin one (EINVAL)");
    require(!is_root || !(fork.share_files || fork.share_fs || fork.share_handlers || fork.share_memory),
            "the root shares nothing with stasis");
    const bool begins = fork.new_pid_namespace && !is_root;  // the root's is the tree's own
    if (!problem_) create(fork, now_->pid, begins ? fork.child_pid : now_->childrens_space);
  }
  void apply(const Clone& clone) {
    require(now_->parent.value != 0 && !spaces_.is_init(now_->pid),
            "neither the root nor the init of a pid namespace can create siblings (EINVAL)");
    if (!problem_) create(clone, now_->parent, now_->childrens_space);
  }
  void apply(const EnterPidNamespace& enter) {
    auto* target = named(enter.target);
    if (target == nullptr) return;
    // The namespaces are looked up at the leader (kernel/nsproxy.c, validate_nsset).
    require(!target->leader_status, "the first thread of {} has ended (ESRCH)", enter.target);
    reads(target->leader_life, "the first thread of {}", enter.target);
    now_->childrens_space = target->pid_space;
  }
  /// A living process that the runner can name.
  Process* named(Pid pid) {
    const auto found = processes_.find(pid);
    require(found != processes_.end() && found->second.alive && spaces_.sees(now_->pid_space, pid.value),
            "{} does not exist, or is outside of its pid namespace (ESRCH)", pid);
    if (problem_) return nullptr;
    reads(found->second.existence, "{}", pid);
    return problem_ ? nullptr : &found->second;
  }
  void apply(const StartThread& thread) {
    require(number_is_free(thread.tid.value), "{} is in use as a pid, tid, group or session (EEXIST)", thread.tid);
    require(now_->pid_space == now_->childrens_space, "its children are born in another pid namespace (EINVAL)");
    if (problem_) return;
    claim(thread.tid.value, now_->pid_space, thread.nested_tids);
    if (problem_) return;
    now_->threads.insert(thread.tid);
    now_->reachable[thread.tid];
    count_use(thread.tid.value, 1);
    begin_runner(thread.tid.value);
  }
  void apply(const ExitThread& exit) {
    require(tid_ == leader_of(now_->pid), "nothing is left of a thread that ends, unless it is the leader");
    require(now_->threads.size() > 1, "it is the only thread: the whole process would end");
    // The thread is the parent; those who wait for its end are told at once (kernel/exit.c, reparent_leader).
    for (const Pid child : children_[now_->pid]) {
      const auto* task = wanted_.find(child);
      const bool waits = task != nullptr && std::ranges::any_of(task->threads, &model::Thread::parent_death_signal);
      require(!waits, "its child {} would be sent its parent-death signal", child);
    }
    now_->leader_status = exit.status;
    writes(now_->leader_life, "its first thread");
    // With its descriptor table: whoever takes descriptors names the process, and finds the leader.
    writes(now_->reachable[tid_], "the right to take its descriptors");
  }
  void apply(const SetChildReaper& set) {
    now_->subreaper = set.value;
    writes(now_->reaper_flag, "its subreaper flag");
  }
  void apply(const SetSid&) {
    require(now_->session != now_->pid, "it leads a session already (EPERM)");
    const auto members = group_members_.find(now_->pid);
    require(members == group_members_.end() || members->second.empty(),
            "the group {} exists: setsid is refused (EPERM)", now_->pid);
    if (problem_) return;
    leaves_group(*now_);
    count_use(now_->pid.value, 1);
    occupy_group(now_->pid, now_->pid, 1);
    occupy_group(now_->group, now_->pid, -1);
    count_use(now_->session.value, -1);
    now_->session = now_->group = now_->pid;
    writes(now_->identity, "its group");
  }
  void apply(const SetPgid& set) {
    const auto target = processes_.find(set.target);
    require(target != processes_.end() && (set.target == now_->pid || target->second.parent == now_->pid),
            "{} is neither itself nor its child (ESRCH)", set.target);
    if (problem_) return;
    auto& changed = target->second;
    require(changed.session != changed.pid, "{} leads a session (EPERM)", set.target);
    require(changed.session == now_->session, "{} is in another session (EPERM)", set.target);
    if (set.target != now_->pid) reads(changed.parentage, "its child");
    require(spaces_.sees(now_->pid_space, set.pgid.value), "group {} is led from outside of its pid namespace (EPERM)",
            set.pgid);
    if (set.pgid != set.target) rely_on_member(set.pgid);
    if (problem_) return;
    writes(changed.identity, "the group of the target");
    if (set.pgid == changed.group) return;
    leaves_group(changed);
    occupy_group(set.pgid, set.target, 1);
    occupy_group(changed.group, set.target, -1);
    changed.group = set.pgid;
  }

  /// To join a group somebody must be in it, whatever the scheduler does: one whose coming is certain, and whose going
  /// is certain to be later.
  void rely_on_member(Pid group) {
    Reliance reliance{stamp(), now_->pid, {}};
    for (const Pid pid : group_members_[group]) {
      auto& member = processes_.at(pid);
      if (member.session == now_->session && is_before(member.identity.written())) reliance.members.insert(pid);
    }
    require(!reliance.members.empty(), "no process of its session is certain to be in group {} (EPERM)", group);
    if (!problem_) reliances_[group].push_back(std::move(reliance));
  }
  void leaves_group(const Process& leaver) {
    const auto relying = reliances_.find(leaver.group);
    if (relying == reliances_.end()) return;
    for (auto& reliance : relying->second) {
      if (is_before(reliance.when)) continue;
      reliance.members.erase(leaver.pid);
      require(!reliance.members.empty(), "group {} may be empty by the time that {} joins it (EPERM)", leaver.group,
              reliance.joiner);
    }
  }

  /// The nearest living subreaper above in the same pid namespace, or that namespace's init; the root is that of the
  /// tree's own, or its own parent takes over.
  Pid reaper_of(Process& dying) {
    reads(dying.parentage, "its parent");
    for (Pid at = dying.parent; at.value != 0; at = processes_.at(at).parent) {
      auto& above = processes_.at(at);
      if (above.pid_space != dying.pid_space) break;
      reads(above.reaper_flag, "a subreaper above");
      reads(above.parentage, "the line of its ancestors");
      if (above.alive && (above.subreaper || (at == wanted_.root && wanted_.root_is_namespace_init))) return at;
    }
    return dying.pid_space;
  }
  /// An init that ends kills all in its namespace, and waits until they are gone (kernel/pid_namespace.c,
  /// zap_pid_ns_processes).
  void end_namespace() {
    for (auto& [pid, process] : processes_) {
      if (process.reaped || pid == now_->pid || !spaces_.contains(now_->pid, process.pid_space)) continue;
      require(spaces_.contains(now_->pid, processes_.at(process.parent).pid_space),
              "{} in its pid namespace must be waited for by {}, which is outside, before it can end", pid,
              process.parent);
      for (const Tid tid : process.threads) {
        require(is_before({tid.value, runners_[tid.value].steps}), "its end kills {}, which may not be done by then",
                pid);
      }
      if (problem_) return;
      leaves_group(process);
      process.alive = process.zombie = false, process.reaped = true;
      process.table = std::make_shared<Table>();
      children_[process.parent].erase(pid);
      occupy(process, -1);
    }
  }
  void apply(const Exit& exit) {
    if (spaces_.is_init(now_->pid)) end_namespace();
    std::optional<Pid> reaper;
    for (const Pid pid : std::exchange(children_[now_->pid], {})) {
      auto& child = processes_.at(pid);
      if (!reaper) reaper = reaper_of(*now_);
      require(reaper->value != 0, "its child {} would leave the tree", pid);
      require(!child.has_death_signal, "its child {} would be sent its parent death signal", pid);
      child.parent = *reaper;
      children_[*reaper].insert(pid);
      writes(child.parentage, "the parent of its child");
    }
    now_->alive = false, now_->zombie = true, now_->status = exit.status;
    now_->table = std::make_shared<Table>();
    ends_[now_->pid] = snapshot();
  }
  void apply(const Wait& wait) {
    const auto child = processes_.find(wait.child_pid);
    require(child != processes_.end() && child->second.parent == now_->pid, "{} is not its child (ECHILD)",
            wait.child_pid);
    require(problem_ || child->second.zombie, "{} does not end before it is waited for: a deadlock", wait.child_pid);
    if (problem_) return;
    reads(child->second.parentage, "its child");
    learn(ends_.at(wait.child_pid));
    leaves_group(child->second);
    child->second.zombie = false, child->second.reaped = true;
    writes(child->second.existence, "the pid of its child");
    children_[now_->pid].erase(wait.child_pid);
    occupy(child->second, -1);
  }
  void apply(const Post& post) {
    auto& event = posts_[post.event];
    if (++event.count == 1) {
      event.all = snapshot();
      return;
    }
    if (event.count == 2) Knowledge::merge(event.all, event.sum, event.merged);
    event.all.reset();
    runner_->knowledge.merge_into(event.sum, event.merged);
    auto& known = event.sum[tid_.value];
    known = std::max(known, runner_->steps);
  }
  void apply(const Await& await) {
    const auto found = posts_.find(await.event);
    const uint32_t count = found == posts_.end() ? 0 : found->second.count;
    // In this order the wait never ends; in any other that the program allows it does not either.
    require(count >= await.count, "it waits for {} posts of '{}', of which only {} can have come: a deadlock",
            await.count, await.event, count);
    if (found != posts_.end()) found->second.awaited = std::max(found->second.awaited, await.count);
    // Posts beyond the awaited ones may be any: only a wait for all of them orders.
    if (problem_ || count != await.count || count == 0) return;
    auto& event = found->second;
    if (!event.all) event.all = std::make_shared<Snapshot>(Snapshot{event.sum, nullptr});
    learn(event.all);
  }

  // ---- descriptors

  void touch_table() {
    if (now_->table.use_count() > 1) writes(now_->table->turn, "the descriptor table that it shares");
  }
  OpenSlot* open_slot(int fd) {
    const auto found = now_->table->slots.find(fd);
    require(found != now_->table->slots.end(), "descriptor {} is not open (EBADF)", fd);
    return problem_ ? nullptr : &found->second;
  }
  void put(int fd, OpenSlot slot) {
    require(fd >= 0, "descriptor {} is out of range (EBADF)", fd);
    touch_table();
    writes(now_->table->uses[fd], "descriptor {}", fd);
    require(!now_->table->slots.contains(fd), "descriptor {} is open already and would be closed silently", fd);
    if (!problem_) now_->table->slots[fd] = slot;
  }
  /// Where a descriptor of the supervisor takes the place of a description, nothing else may.
  void makes(ObjectId id) {
    const auto description = wanted_.descriptions.find(id);
    const bool is_given = description != wanted_.descriptions.end() && description->second.given >= 0;
    require(!is_given, "a descriptor of stasis is to take the place of {}, which is made anew", id);
  }
  void apply(const InheritFd& inherit) {
    const auto description = wanted_.descriptions.find(inherit.description);
    require(now_->pid.value == 0, "only stasis itself can give a descriptor of its own");
    require(inherit.own_fd >= 0, "descriptor {} is out of range (EBADF)", inherit.own_fd);
    require(description != wanted_.descriptions.end() && description->second.given == inherit.own_fd,
            "descriptor {} of stasis is not to take the place of {}", inherit.own_fd, inherit.description);
    if (!problem_) put(inherit.fd, {.description = inherit.description, .inherited = true});
  }
  void apply(const Open& open) {
    makes(open.description);
    if (now_->pid.value != 0) reads(files_, "what the supervisor makes in the file system");
    put(open.fd, {open.description, (open.flags & O_CLOEXEC) != 0});
  }
  void apply(const Close& close) {
    if (open_slot(close.fd) == nullptr) return;
    touch_table();
    writes(now_->table->uses[close.fd], "descriptor {}", close.fd);
    now_->table->slots.erase(close.fd);
  }
  static OpenSlot copied(OpenSlot slot, bool close_on_exec) {
    slot.close_on_exec = close_on_exec;
    return slot;
  }
  void apply(const Dup2& dup) {
    require(dup.old_fd != dup.new_fd, "dup3 refuses equal numbers (EINVAL)");
    if (const auto* slot = open_slot(dup.old_fd)) put(dup.new_fd, copied(*slot, dup.close_on_exec));
  }
  void apply(const SetCloseOnExec& set) {
    if (auto* slot = open_slot(set.fd)) slot->close_on_exec = set.value;
  }
  void apply(const Lseek& seek) {
    if (const auto* slot = open_slot(seek.fd)) positions_[slot->description] = seek.offset;
  }
  void apply(const TransferFd& transfer) {
    const auto from = processes_.find(transfer.from_pid);
    require(transfer.to_pid == now_->pid, "only the receiver can take a descriptor");
    require(from != processes_.end() && from->second.alive && !from->second.leader_status,
            "{} does not exist, or its first thread has ended (ESRCH)", transfer.from_pid);
    require(problem_ || spaces_.sees(now_->pid_space, transfer.from_pid.value),
            "{} is outside of its pid namespace (ESRCH)", transfer.from_pid);
    if (!problem_) take(from->second, transfer.fd, transfer.target_fd, transfer.close_on_exec);
  }
  void apply(const OpenPidfd& open) {
    if (named(open.target) != nullptr) put(open.fd, {.pidfd_of = open.target});
  }
  void apply(const TakeFd& take_fd) {
    const auto* pidfd = open_slot(take_fd.pidfd);
    require(pidfd == nullptr || pidfd->pidfd_of.value != 0, "descriptor {} is no pidfd (EBADF)", take_fd.pidfd);
    if (problem_) return;
    auto& from = processes_.at(pidfd->pidfd_of);
    require(from.alive && !from.leader_status, "{} does not exist any more, or its first thread has ended (ESRCH)",
            from.pid);
    if (!problem_) take(from, take_fd.fd, take_fd.target_fd, take_fd.close_on_exec);
  }
  void take(Process& from, int fd, int target_fd, bool close_on_exec) {
    const auto slot = from.table->slots.find(fd);
    require(slot != from.table->slots.end(), "{} has no descriptor {} (EBADF)", from.pid, fd);
    if (problem_) return;
    reads(from.table->uses[fd], "descriptor {} of {}", fd, from.pid);
    for (auto& [tid, state] : from.reachable) reads(state, "access to the descriptors of {}", from.pid);
    if (!problem_) put(target_fd, copied(slot->second, close_on_exec));
  }

  using Watches = std::map<std::pair<ObjectId, int>, std::pair<uint32_t, uint64_t>>;  ///< target, number → events, data

  void apply(const EpollAdd& add) {
    const auto *epoll = open_slot(add.epoll_fd), *target = open_slot(add.fd);
    if (problem_) return;
    require(epoll->description != target->description, "an epoll cannot wait for itself (EINVAL)");
    require(!leads_to(target->description, epoll->description), "epolls would wait for each other (ELOOP)");
    auto& watches = watches_[epoll->description];
    const bool fresh = watches.emplace(std::pair(target->description, add.fd), std::pair(add.events, add.data)).second;
    require(fresh, "the epoll waits for descriptor {} already (EEXIST)", add.fd);
    const bool in_order = !has_fired(add.events) ||
                          std::ranges::all_of(watches, [](const auto& other) { return has_fired(other.second.first); });
    require(in_order, "what is waited for already could fire in its place");
  }
  bool leads_to(ObjectId from, ObjectId to) const {
    std::set<ObjectId> seen;
    for (std::vector<ObjectId> open{from}; !open.empty();) {
      const auto watches = watches_.find(open.back());
      open.pop_back();
      if (watches == watches_.end()) continue;
      for (const auto& [target, what] : watches->second) {
        if (target.first == to) return true;
        if (seen.insert(target.first).second) open.push_back(target.first);
      }
    }
    return false;
  }

  // ---- memory

  /// The kernel's rules about mappings; those about the agent are ours.
  void obey(const Broken& broken) {
    if (broken) reject(*broken);
  }
  bool spares_agent(uint64_t begin, uint64_t length) {
    const bool touched = AddressRange{begin, begin + length}.overlaps(program_.agent_area);
    require(!touched, "it would touch the agent at {:#x}", program_.agent_area.begin);
    return !problem_;
  }
  void map(uint64_t begin, uint64_t length, uint32_t prot, bool shared) {
    if (spares_agent(begin, length)) obey(now_->space->map(begin, length, prot, shared));
  }
  void apply(const Mmap& mmap) {
    if (open_slot(mmap.fd) != nullptr) map(mmap.addr, mmap.length, mmap.prot, mmap.is_shared);
  }
  void apply(const MmapAnon& mmap) { map(mmap.addr, mmap.length, mmap.prot, mmap.is_shared); }
  void apply(const Mremap& remap) {
    if (spares_agent(remap.new_addr, remap.length)) obey(now_->space->move(remap.addr, remap.length, remap.new_addr));
  }
  void apply(const Munmap& unmapped) {
    if (spares_agent(unmapped.addr, unmapped.length)) obey(now_->space->unmap(unmapped.addr, unmapped.length));
  }
  void apply(const Mprotect& protect) { obey(now_->space->protect(protect.addr, protect.length, protect.prot)); }
  void apply(const DropPages& drop) { obey(now_->space->drop(drop.addr, drop.length)); }
  void apply(const ClearMemory&) {
    require(!program_.agent_area.empty(), "there is no agent area to keep");
    *now_->space = SpaceModel();  // also for those who share it
  }
  void apply(const LoadPages& load) {
    require(load.runs.size() % 2 == 0, "its runs are not pairs of address and length");
    require(load.fd != program_.images_fd, "descriptor {} is the images' directory (EISDIR)", load.fd);
    const auto* slot = open_slot(load.fd);
    if (problem_) return;
    require(slot->description.value == 0, "descriptor {} is the application's own file {}, not one of pages", load.fd,
            slot->description);
    for (size_t i = 0; i + 1 < load.runs.size(); i += 2)
      obey(now_->space->fill({load.runs[i], load.runs[i] + load.runs[i + 1]}));
  }

  void apply(const Perform& perform) {
    for (const Pid pid : perform.processes) {
      const auto needed = processes_.find(pid);
      require(needed != processes_.end() && !needed->second.reaped && is_before(needed->second.born),
              "process {} is not certain to be there (ESRCH)", pid);
    }
    for (const auto& created : perform.creates) {
      makes(created.description);
      put(created.fd, {created.description});
    }
    for (const auto& completed : perform.completes) complete(completed);
    for (const auto& started : perform.starts) {
      const auto* slot = open_slot(started.fd);
      require(slot == nullptr || slot->description == started.description, "descriptor {} is not what it starts",
              started.fd);
      require(started_.insert(started.description).second, "{} is started already", started.description);
    }
    if (!problem_ && extent_ == Extent::whole) obey(attributes_.record(now_->pid, tid_, perform));
    // Both take away the right to reach into the process (kernel/ptrace.c, ptrace_may_access).
    if (perform.attribute == "credentials" || perform.attribute == "attributes.dumpable")
      writes(now_->reachable[tid_], "the right to take its descriptors");
    if (perform.attribute == "attributes.dumpable") set_death_signal();
    // What the supervisor makes and removes in the file system, others open.
    if (now_->pid.value == 0)
      writes(files_, "what it makes or removes");
    else if (!perform.creates.empty())
      reads(files_, "what the supervisor makes in the file system");
  }
  /// From here on it must keep its parent (kernel/exit.c, reparent_leader and forget_original_parent).
  void set_death_signal() {
    const auto* task = tasks_wanted_.find(now_->pid);
    const auto sends = [](const model::Thread& thread) { return thread.parent_death_signal != 0; };
    if (task == nullptr || std::ranges::none_of(task->threads, sends)) return;
    reads(now_->parentage, "its parent");
    now_->has_death_signal = true;
  }
  void apply(const Ready&) { now_->ready.insert(tid_); }

  /// A description gets what it carries: all of that is open here.
  void complete(const Created& completed) {
    const auto* slot = open_slot(completed.fd);
    if (slot == nullptr) return;
    reads(now_->table->uses[completed.fd], "descriptor {}", completed.fd);
    require(slot->description == completed.description, "descriptor {} refers to {} instead of {}", completed.fd,
            slot->description, completed.description);
    const auto description = wanted_.descriptions.find(completed.description);
    require(description != wanted_.descriptions.end() && !description->second.carries.empty(),
            "{} carries nothing to complete it with", completed.description);
    require(completed_.insert(completed.description).second, "{} is complete already", completed.description);
    if (problem_) return;
    for (const ObjectId carried : description->second.carries) {
      const auto open =
          std::ranges::find(now_->table->slots, carried, [](const auto& entry) { return entry.second.description; });
      require(open != now_->table->slots.end(), "{}, which {} carries, is not open here (EBADF)", carried,
              completed.description);
      if (!problem_) reads(now_->table->uses[open->first], "descriptor {}", open->first);
    }
  }

  // ---- the outcome

  void compare() {
    for (const auto& [name, event] : posts_) {
      require(event.awaited == 0 || event.count == event.awaited,
              "'{}' is posted {} times, awaited {} times: whom the waits wait for is open", name, event.count,
              event.awaited);
    }
    for (const auto& [pid, process] : processes_) {
      culprit_ = pid;
      if (pid.value == 0) compare_given(*process.table);
      if (pid.value == 0 || process.reaped) continue;
      require(tasks_wanted_.find(pid) != nullptr, "it is not part of the application, and nothing ends it");
      if (problem_) return;
    }
    require(dead_leaders() == wanted_.dead_leaders, "dead leaders have other ids in nested pid namespaces");
    for (const auto& task : wanted_.tasks) {
      culprit_ = task.pid;
      const auto found = processes_.find(task.pid);
      require(found != processes_.end() && !found->second.reaped, "nothing creates it");
      if (!problem_) compare(task, found->second);
      if (problem_) return;
    }
    if (extent_ == Extent::whole) compare_descriptions();
  }

  /// Whoever is at the other end of what stasis gives must not wait for stasis.
  void compare_given(const Table& own) {
    for (const auto& [fd, slot] : own.slots) require(!slot.inherited, "descriptor {} of stasis is left open", fd);
  }

  void compare_descriptions() {
    for (const auto& [id, description] : wanted_.descriptions) {
      require(!description.starts_last || started_.contains(id), "nothing starts {}", id);
      Watches watches;
      for (const auto& watch : description.watches)
        watches.emplace(std::pair(watch.target, watch.fd), std::pair(watch.events, watch.data));
      require(watches == std::exchange(watches_[id], {}), "{} does not wait for what it should", id);
    }
    for (const auto& [id, watches] : watches_) require(watches.empty(), "{} waits for what it should not", id);
    for (const ObjectId id : started_) {
      const auto known = wanted_.descriptions.find(id);
      require(known != wanted_.descriptions.end() && known->second.starts_last, "{} has nothing to start", id);
    }
  }

  void compare(const model::Task& task, const Process& made) {
    if (task.pid != wanted_.root)
      require(made.parent == task.parent, "its parent becomes {} instead of {}", made.parent, task.parent);
    const bool led_outside =
        task.session == wanted_.find(wanted_.root)->session && wanted_.find(task.session) == nullptr;
    if (!led_outside || made.session.value != 0)
      require(made.session == task.session, "its session becomes {} instead of {}", made.session, task.session);
    if (!led_outside || made.group.value != 0)
      require(made.group == task.group, "its group becomes {} instead of {}", made.group, task.group);
    require(made.pid_space == task.pid_namespace && spaces_.place_of(task.pid.value).nested == task.nested_pids,
            "its place in nested pid namespaces is another");
    if (task.state == model::TaskState::zombie) {
      require(made.zombie, "it should be a zombie");
      require(made.status == task.exit_status, "it ends with {:#x} instead of {:#x}", made.status, task.exit_status);
      return;
    }
    require(made.alive, "it should be alive");
    require(made.subreaper == task.child_subreaper, "its subreaper flag becomes {}", made.subreaper);
    std::set<Tid> threads;
    for (const auto& thread : task.threads) threads.insert(thread.tid);
    require(made.threads == threads, "it has {} threads instead of {}", made.threads.size(), threads.size());
    compare_leader(task, made);
    for (const auto& thread : task.threads) {
      require(problem_ || spaces_.place_of(thread.tid.value).nested == thread.nested_tids,
              "its thread {} has other ids in nested pid namespaces", thread.tid);
    }
    const Pid childrens = task.childrens_namespace.value != 0 ? task.childrens_namespace : task.pid_namespace;
    require(made.childrens_space == childrens, "its children would be born in the pid namespace of {} instead of {}",
            made.childrens_space, childrens);
    if (extent_ == Extent::tree) return;
    if (task.leader_has_ended()) threads.erase(leader_of(task.pid));
    require(made.ready == threads, "only {} of its {} threads are READY", made.ready.size(), threads.size());
    compare_sharing(task, made);
    compare_table(task, *made.table);
    if (!problem_) obey(made.space->compare(wanted_.address_spaces.at(task.address_space)));
    if (!problem_) obey(attributes_.compare(task));
  }

  void compare_leader(const model::Task& task, const Process& made) {
    require(made.leader_status.has_value() == task.leader_has_ended(), "its first thread should {}",
            task.leader_has_ended() ? "have ended" : "live");
    if (problem_ || !made.leader_status) return;
    const int status = *task.threads.front().exit_status;
    require(*made.leader_status == status, "its first thread ends with {:#x} instead of {:#x}", *made.leader_status,
            status);
  }

  /// Two tasks have the same object if and only if the Application says so.
  void compare_sharing(const model::Task& task, const Process& made) {
    const std::tuple<const void*, ObjectId, std::string_view> objects[] = {
        {made.table.get(), task.descriptors, "descriptor table"},
        {made.space.get(), task.address_space, "memory"},
        {made.fs.get(), task.fs, "working directory"},
        {made.handlers.get(), task.handlers, "signal handlers"}};
    for (const auto& [object, id, what] : objects) {
      const auto [by_id, first_of_id] = object_of_.emplace(std::pair(what, id), object);
      const auto [by_object, first_of_object] = id_of_.emplace(std::pair(what, object), id);
      require(by_id->second == object, "it does not share its {} with whom it should", what);
      require(by_object->second == id, "it shares its {} with whom it should not", what);
    }
  }

  void compare_table(const model::Task& task, const Table& made) {
    const auto& table = wanted_.descriptor_tables.at(task.descriptors).slots;
    for (const auto& [fd, slot] : table) {
      const auto found = made.slots.find(fd);
      require(found != made.slots.end(), "descriptor {} is not opened", fd);
      if (problem_) return;
      require(found->second.description == slot.description, "descriptor {} refers to {} instead of {}", fd,
              found->second.description, slot.description);
      require(found->second.close_on_exec == slot.close_on_exec, "descriptor {} has the wrong close-on-exec flag", fd);
      compare_carried(slot.description);
      const auto description = wanted_.descriptions.find(slot.description);
      const bool stays = description == wanted_.descriptions.end() || description->second.given >= 0;
      const uint64_t position = stays ? 0 : description->second.position;
      const auto reached = positions_.find(slot.description);
      require((reached == positions_.end() ? 0 : reached->second) == position, "descriptor {} is not at offset {}", fd,
              position);
    }
    for (const auto& [fd, slot] : made.slots) require(table.contains(fd), "descriptor {} is left open", fd);
  }

  /// What is carried may carry something itself.
  void compare_carried(ObjectId id) {
    std::vector<ObjectId> open{id};
    while (!open.empty() && !problem_) {
      const auto description = wanted_.descriptions.find(open.back());
      open.pop_back();
      if (description == wanted_.descriptions.end() || description->second.carries.empty()) continue;
      if (!compared_.insert(description->first).second) continue;
      require(completed_.contains(description->first), "{} does not get what it carries", description->first);
      open.insert(open.end(), description->second.carries.begin(), description->second.carries.end());
    }
  }

  /// Somebody has joined a group because of these members.
  struct Reliance {
    Stamp when;
    Pid joiner;
    std::set<Pid> members;
  };
  struct Event {
    uint32_t count = 0, awaited = 0;
    Clock sum;  ///< of several: what all who have posted it know
    Merged merged;
    std::shared_ptr<const Snapshot> all;  ///< the same, shared, as long as nobody else posts
  };

  const Program& program_;
  const model::Application& wanted_;
  const model::TaskIndex tasks_wanted_;
  Extent extent_;
  AttributeLedger attributes_;
  std::unordered_map<ObjectId, uint64_t> positions_;  ///< of open file descriptions
  std::set<ObjectId> completed_, compared_;           ///< those that carry something
  std::unordered_map<ObjectId, Watches> watches_;     ///< of epolls
  std::set<ObjectId> started_;                        ///< open file descriptions
  size_t index_ = 0;
  Process* now_ = nullptr;
  Tid tid_;
  Pid culprit_;
  std::map<Pid, Process> processes_;
  NamespaceModel spaces_;
  Runner* runner_ = nullptr;
  std::unordered_map<pid_t, Runner> runners_;
  std::map<Pid, std::shared_ptr<const Snapshot>> ends_;
  std::unordered_map<std::string, Event> posts_;
  Shared files_;  ///< what the supervisor makes in the file system for others to open
  std::unordered_map<Pid, std::vector<Reliance>> reliances_;
  std::unordered_map<pid_t, Stamp> released_;                        ///< numbers: when the last to use them was reaped
  std::unordered_map<Pid, std::set<Pid>> group_members_, children_;  // until they are reaped
  std::unordered_map<pid_t, int> numbers_;  ///< how often an id is in use as a pid, tid, group or session
  std::map<std::pair<std::string_view, ObjectId>, const void*> object_of_;
  std::map<std::pair<std::string_view, const void*>, ObjectId> id_of_;
  std::optional<std::string> problem_;
};

}  // namespace

std::string Rejection::message(const Program& program) const {
  if (command >= program.commands.size()) return fmt::format("in the end, task {}: {}", pid, rule);
  return fmt::format("command {} ({} by {}): {}", command, name_of(program.commands[command].action), pid, rule);
}

std::optional<Rejection> verify(const Program& program, const model::Application& wanted, Extent extent) {
  return Interpreter(program, wanted, extent).run();
}

Outcome outcome_of(const Program& program) {
  Outcome outcome;
  for (const auto& command : program.commands) {
    const auto* fork = std::get_if<Fork>(&command.action);
    if (fork == nullptr || command.pid.value != 0) continue;
    outcome.tree.root = fork->child_pid;
    outcome.tree.root_is_namespace_init = fork->new_pid_namespace;
    break;
  }
  Interpreter interpreter(program, outcome.tree, Extent::tree);
  outcome.rejection = interpreter.interpret();
  outcome.tree.tasks = interpreter.tasks();
  outcome.tree.dead_leaders = interpreter.dead_leaders();
  return outcome;
}

}  // namespace stasis::plan
