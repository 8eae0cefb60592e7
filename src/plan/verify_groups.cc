// Sessions and groups (kernel/sys.c).
#include <algorithm>

#include "plan/verify_interpreter.h"

namespace stasis::plan::verifier {

void Interpreter::apply(const SetSid&) {
  require(now_->session != now_->pid, "it leads a session already (EPERM)");
  const auto members = group_members_.find(now_->pid);
  require(members == group_members_.end() || members->second.empty(), "the group {} exists: setsid is refused (EPERM)",
          now_->pid);
  if (problem_) return;
  leaves_group(*now_);
  count_use(now_->pid.value, 1);
  occupy_group(now_->pid, now_->pid, 1);
  occupy_group(now_->group, now_->pid, -1);
  count_use(now_->session.value, -1);
  now_->session = now_->group = now_->pid;
  writes(now_->identity, "its group");
  now_->terminal = 0;
  writes(now_->control, "its controlling terminal");
}

void Interpreter::apply(const SetPgid& set) {
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

void Interpreter::rely_on_member(Pid group) {
  Reliance reliance{stamp(), now_->pid, now_->session, runner_->knowledge};
  const Pid member = certain_member(group, reliance, Pid{0});
  require(member.value != 0, "no process of its session is certain to be in group {} (EPERM)", group);
  if (!problem_) reliances_[{group, member}].push_back(std::move(reliance));
}

/// One who had come before. One is enough: groups can be large, and many may join. 0: there is none but `leaver`.
Pid Interpreter::certain_member(Pid group, const Reliance& reliance, Pid leaver) {
  const auto is_past = [&](const Stamp& then) {
    if (then.tid == 0 && then.step == 0) return true;
    return then.tid == reliance.when.tid ? then.step < reliance.when.step
                                         : reliance.knowledge.reaches(then.tid, then.step);
  };
  const auto is_certain = [&](Pid pid) {
    const auto& member = processes_.at(pid);
    return pid != leaver && member.session == reliance.session && is_past(member.identity.written());
  };
  const auto& members = group_members_[group];
  // Mostly its leader.
  if (members.contains(group) && is_certain(group)) return group;
  const auto found = std::ranges::find_if(members, is_certain);
  return found == members.end() ? Pid{} : *found;
}

/// Who has relied on it, and may join only when it has left, relies on another.
void Interpreter::leaves_group(const Process& leaver) {
  const auto relying = reliances_.extract({leaver.group, leaver.pid});
  if (relying.empty()) return;
  for (auto& reliance : relying.mapped()) {
    if (is_before(reliance.when)) continue;
    const Pid member = certain_member(leaver.group, reliance, leaver.pid);
    require(member.value != 0, "group {} may be empty by the time that {} joins it (EPERM)", leaver.group,
            reliance.joiner);
    if (!problem_) reliances_[{leaver.group, member}].push_back(std::move(reliance));
  }
}

}  // namespace stasis::plan::verifier
