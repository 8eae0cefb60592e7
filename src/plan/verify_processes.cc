// Processes and threads: ids, births, ends, and who takes over the children of whom (kernel/fork.c, kernel/exit.c).
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "plan/verify_interpreter.h"

namespace stasis::plan::verifier {

bool Interpreter::number_is_free(pid_t number) const {
  const auto uses = numbers_.find(number);
  return uses == numbers_.end() || uses->second == 0;
}

void Interpreter::count_use(pid_t id, int change) {
  const auto uses = numbers_[id] += change;
  if (uses != 0 || change > 0) return;
  released_[id] = stamp();
  // Whoever gets the number next is another group to a terminal, which knows the old one by its struct pid.
  for (auto& [number, state] : terminals_) {
    if (state.foreground.value == id) state.foreground = {};
  }
  spaces_.release(id, stamp());
}

void Interpreter::occupy(const Process& process, int change) {
  count_use(process.pid.value, change);
  count_use(process.session.value, change);
  occupy_group(process.group, process.pid, change);
  for (const Tid tid : process.threads) {
    if (tid != leader_of(process.pid)) count_use(tid.value, change);
  }
}

void Interpreter::occupy_group(Pid group, Pid member, int change) {
  count_use(group.value, change);
  if (change > 0)
    group_members_[group].insert(member);
  else
    group_members_[group].erase(member);
}

template <typename Birth>
void Interpreter::create(const Birth& birth, Pid parent, Tid parent_thread, Pid space) {
  const Pid pid = birth.child_pid;
  require(pid.value > 0, "pid {} is out of range (EINVAL)", pid);
  require(number_is_free(pid.value), "{} is in use as a pid, tid, group or session (EEXIST)", pid);
  const auto released = released_.find(pid.value);
  require(released == released_.end() || is_before(released->second), "{} may still be in use (EEXIST)", pid);
  require(!birth.share_handlers || birth.share_memory, "handlers are shared only with the memory (EINVAL)");
  require(birth.share_memory || !now_->space->owes(),
          "pages of its memory are still to come: a copy would wait for somebody to take note");
  require(space == pid || has_live_init(space), "the init of its pid namespace, {}, has ended (ENOMEM)", space);
  if (problem_) return;
  if (space == pid) spaces_.begin(pid, now_->pid_space);
  claim(pid.value, space, birth.nested_pids);
  if (problem_) return;
  Process child;
  child.pid = pid, child.parent = parent, child.parent_thread = parent_thread;
  child.pid_space = space;
  child.existence.write(stamp(), certain());
  child.group = now_->group, child.session = now_->session, child.terminal = now_->terminal;
  child.born = stamp();
  reads(now_->identity, "its own group and session");
  child.identity.write(stamp(), certain());
  reads(now_->control, "its own controlling terminal");
  child.control.write(stamp(), certain());
  child.parentage.write(stamp(), certain());
  child.table = birth.share_files ? now_->table : copied_table();
  child.space = birth.share_memory ? now_->space : std::make_shared<SpaceModel>(*now_->space);
  child.fs = birth.share_fs ? now_->fs : std::make_shared<int>();
  child.handlers = birth.share_handlers ? now_->handlers : std::make_shared<int>();
  child.threads.insert(leader_of(pid));
  child.in_order = {leader_of(pid)};
  child.reachable[leader_of(pid)];
  begin_runner(pid.value);
  occupy(child, 1);
  children_[parent].insert(pid);
  processes_[pid] = std::move(child);
  now_ = &processes_.at(program_.commands[index_].pid);
}

void Interpreter::claim(pid_t id, Pid space, const std::vector<pid_t>& nested) {
  obey(spaces_.claim(id, space, nested, certain()));
}

void Interpreter::apply(const Fork& fork) {
  const bool is_root = now_->pid.value == 0;
  require(!is_root || fork.new_pid_namespace == wanted_.root_is_namespace_init,
          "the root must be the init of a pid namespace if, and only if, the tree has one of its own");
  require(!is_root || !(fork.share_files || fork.share_fs || fork.share_handlers || fork.share_memory),
          "the root shares nothing with stasis");
  if (!problem_) create(fork, now_->pid, tid_, birthplace(fork));
}

/// The root's new one is the tree's own. With the first who is born in an empty one that has its name.
template <typename Birth>
Pid Interpreter::birthplace(const Birth& birth) {
  const Pid space = now_->childrens_space(tid_);
  require(!birth.new_pid_namespace || now_->pid_space == space,
          "its children are born in another pid namespace: it cannot begin one (EINVAL)");
  if (birth.new_pid_namespace && now_->pid.value != 0) require_admin();
  if (space == model::empty_namespace) now_->childrens_spaces[tid_] = birth.child_pid;
  const bool begins = (birth.new_pid_namespace && now_->pid.value != 0) || space == model::empty_namespace;
  return begins ? birth.child_pid : space;
}

void Interpreter::require_admin() {
  const std::string needs[] = {"CAP_SYS_ADMIN"};
  if (extent_ == Extent::whole) obey(attributes_.check_rights(tid_, needs));
}

void Interpreter::apply(const Clone& clone) {
  require(now_->parent.value != 0 && !spaces_.is_init(now_->pid),
          "neither the root nor the init of a pid namespace can create siblings (EINVAL)");
  if (!problem_) create(clone, now_->parent, now_->parent_thread, birthplace(clone));
}

void Interpreter::apply(const EnterPidNamespace& enter) {
  auto* target = named(enter.target);
  if (target == nullptr) return;
  // The namespaces are looked up at the leader (kernel/nsproxy.c, validate_nsset).
  require(!target->leader_status, "the first thread of {} has ended (ESRCH)", enter.target);
  reads(target->leader_life, "the first thread of {}", enter.target);
  require_admin();
  now_->childrens_spaces[tid_] = target->pid_space;
}

void Interpreter::apply(const Unshare& unshare) {
  require(!(unshare.files || unshare.fs) || now_->threads.size() == 1,
          "its other threads would go on sharing with whom they do");
  require(!unshare.pid_namespace || now_->childrens_space(tid_) == now_->pid_space,
          "its children are born in another pid namespace already (EINVAL)");
  if (unshare.pid_namespace) require_admin();
  if (problem_) return;
  if (unshare.files) now_->table = copied_table();
  if (unshare.fs) now_->fs = std::make_shared<int>();
  if (unshare.pid_namespace) now_->childrens_spaces[tid_] = model::empty_namespace;
}

/// Once it is the child of this thread, whoever was its parent before has ended: both happen under one lock
/// (kernel/exit.c, exit_notify).
void Interpreter::apply(const AwaitChild& await) {
  const auto found = processes_.find(await.child_pid);
  const bool comes = found != processes_.end() && !found->second.reaped && found->second.parent == now_->pid &&
                     found->second.parent_thread == tid_;
  require(comes, "{} does not become the child of this thread: a deadlock", await.child_pid);
  if (extent_ == Extent::whole) obey(attributes_.check_rights(tid_, {}));
  if (problem_) return;
  if (found->second.parent_threads_end) learn(found->second.parent_threads_end);
  reads(found->second.parentage, "its child");
}

Process* Interpreter::named(Pid pid) {
  const auto found = processes_.find(pid);
  require(found != processes_.end() && found->second.alive && spaces_.sees(now_->pid_space, pid.value),
          "{} does not exist, or is outside of its pid namespace (ESRCH)", pid);
  if (problem_) return nullptr;
  reads(found->second.existence, "{}", pid);
  return problem_ ? nullptr : &found->second;
}

void Interpreter::apply(const StartThread& thread) {
  require(number_is_free(thread.tid.value), "{} is in use as a pid, tid, group or session (EEXIST)", thread.tid);
  require(now_->pid_space == now_->childrens_space(tid_), "its children are born in another pid namespace (EINVAL)");
  if (problem_) return;
  claim(thread.tid.value, now_->pid_space, thread.nested_tids);
  if (problem_) return;
  now_->threads.insert(thread.tid);
  now_->in_order.push_back(thread.tid);
  now_->reachable[thread.tid];
  count_use(thread.tid.value, 1);
  begin_runner(thread.tid.value);
}

void Interpreter::apply(const ExitThread& exit) {
  require(tid_ == leader_of(now_->pid), "nothing is left of a thread that ends, unless it is the leader");
  require(now_->threads.size() > 1, "it is the only thread: the whole process would end");
  // The thread is the parent; those who wait for its end are told at once (kernel/exit.c, reparent_leader).
  now_->leader_status = exit.status;
  const auto end = snapshot();
  for (const Pid pid : children_[now_->pid]) {
    auto& child = processes_.at(pid);
    if (child.parent_thread != tid_) continue;
    // Whoever is to have one sets it when this has happened for certain.
    require(!child.has_death_signal, "its child {} would be sent its parent-death signal", pid);
    writes(child.parents_life, "the death signal of its child");
    child.parent_thread = now_->first_living(), child.parent_threads_end = end;
  }
  writes(now_->leader_life, "its first thread");
  // With its descriptor table: whoever takes descriptors names the process, and finds the leader.
  writes(now_->reachable[tid_], "the right to take its descriptors");
}

void Interpreter::apply(const SetChildReaper& set) {
  now_->subreaper = set.value;
  writes(now_->reaper_flag, "its subreaper flag");
}

Pid Interpreter::reaper_of(Process& dying) {
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

void Interpreter::end_namespace() {
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
    if (process.session == pid && process.terminal != 0) terminals_.at(process.terminal).session = Pid{};
    process.alive = process.zombie = false, process.reaped = true;
    process.table = std::make_shared<Table>();
    children_[process.parent].erase(pid);
    occupy(process, -1);
  }
  for (const pid_t id : spaces_.ids_in(now_->pid)) {
    const auto& members = group_members_[Pid{id}];
    if (id == now_->pid.value || members.empty()) continue;
    reject(
        fmt::format("it never ends: {} is in group {}, whose leader lived in its pid namespace", *members.begin(), id));
  }
}

/// kernel/signal.c, SIGNAL_UNKILLABLE: what is left are faults (force_sig_info_to_task), filters, and reboot(2)
/// (kernel/pid_namespace.c, reboot_pid_ns). Strict seccomp ends one thread (kernel/seccomp.c).
void Interpreter::check_end_of_init(int status) {
  if (!WIFSIGNALED(status)) return;
  constexpr int possible[] = {SIGHUP, SIGINT, SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGKILL, SIGSEGV, SIGSYS};
  require(std::ranges::find(possible, WTERMSIG(status)) != std::end(possible),
          "the init of a pid namespace is not ended by signal {}", WTERMSIG(status));
  require(WTERMSIG(status) != SIGKILL || now_->threads.size() == 1, "its other threads would go on");
}

void Interpreter::apply(const Exit& exit) {
  if (now_->session == now_->pid && now_->terminal != 0) hang_up();
  if (spaces_.is_init(now_->pid)) end_namespace(), check_end_of_init(exit.status);
  std::optional<Pid> reaper;
  for (const Pid pid : std::exchange(children_[now_->pid], {})) {
    auto& child = processes_.at(pid);
    if (!reaper) reaper = reaper_of(*now_);
    require(reaper->value != 0, "its child {} would leave the tree", pid);
    require(!child.has_death_signal, "its child {} would be sent its parent death signal", pid);
    child.parent = *reaper, child.parent_thread = processes_.at(*reaper).first_living();
    child.parent_threads_end.reset();
    children_[*reaper].insert(pid);
    writes(child.parentage, "the parent of its child");
  }
  now_->alive = false, now_->zombie = true, now_->status = exit.status;
  now_->table = std::make_shared<Table>();
  ends_[now_->pid] = snapshot();
}

void Interpreter::apply(const Wait& wait) {
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

}  // namespace stasis::plan::verifier
