// What a Program leads to, compared with the Application.
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "plan/verify_interpreter.h"

namespace stasis::plan::verifier {

Pid Interpreter::outer_space(const Process& process) const {
  if (process.pid_space != process.pid) return {};
  const Pid above = spaces_.above(process.pid);
  return above == processes_.at(process.parent).pid_space ? Pid{} : above;
}

std::vector<model::Task> Interpreter::tasks() const {
  std::vector<model::Task> tasks;
  for (const auto& [pid, process] : processes_) {
    if (pid.value == 0 || process.reaped) continue;
    model::Task task;
    task.pid = pid, task.parent = process.parent, task.group = process.group, task.session = process.session;
    task.pid_namespace = process.pid_space, task.nested_pids = spaces_.place_of(pid.value).nested;
    task.outer_namespace = outer_space(process);
    task.state = process.zombie ? model::TaskState::zombie : model::TaskState::running;
    task.exit_status = process.status;
    task.child_subreaper = process.subreaper && process.alive;
    if (process.alive) task.controlling_terminal = process.terminal;
    for (const Tid tid : process.threads) {
      if (!process.alive) continue;
      model::Thread thread;
      thread.tid = tid, thread.nested_tids = spaces_.place_of(tid.value).nested;
      if (tid == leader_of(pid)) thread.exit_status = process.leader_status;
      if (process.childrens_space(tid) != process.pid_space) thread.childrens_namespace = process.childrens_space(tid);
      task.threads.insert(tid == leader_of(pid) ? task.threads.begin() : task.threads.end(), thread);
    }
    tasks.push_back(std::move(task));
  }
  return tasks;
}

std::map<Pid, model::DeadLeader> Interpreter::dead_leaders() const {
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

void Interpreter::compare() {
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
  compare_terminals();
  if (extent_ == Extent::whole) compare_descriptions();
  if (extent_ == Extent::whole && !problem_) obey(locks_.compare(wanted_));
}

void Interpreter::compare_given(const Table& own) {
  for (const auto& [fd, slot] : own.slots) require(!slot.inherited, "descriptor {} of stasis is left open", fd);
}

void Interpreter::compare_descriptions() {
  for (const auto& [id, description] : wanted_.descriptions) {
    require(!description.starts_last || started_.contains(id), "nothing starts {}", id);
    require(!description.in_repair || repaired_.contains(id), "{} stays in repair mode", id);
    const auto added = watches_.extract(id);
    if (!added && description.watches.empty()) continue;
    Watches watches;
    for (const auto& watch : description.watches)
      watches.emplace(std::pair(watch.target, watch.fd), std::pair(watch.events, watch.data));
    require(added && added.mapped() == watches, "{} does not wait for what it should", id);
  }
  for (const auto& [id, watches] : watches_) require(watches.empty(), "{} waits for what it should not", id);
  for (const ObjectId id : started_) {
    const auto known = wanted_.descriptions.find(id);
    require(known != wanted_.descriptions.end() && known->second.starts_last, "{} has nothing to start", id);
  }
}

void Interpreter::compare(const model::Task& task, const Process& made) {
  if (task.pid != wanted_.root)
    require(made.parent == task.parent, "its parent becomes {} instead of {}", made.parent, task.parent);
  const bool led_outside = task.session == wanted_.find(wanted_.root)->session && wanted_.find(task.session) == nullptr;
  if (!led_outside || made.session.value != 0)
    require(made.session == task.session, "its session becomes {} instead of {}", made.session, task.session);
  if (!led_outside || made.group.value != 0)
    require(made.group == task.group, "its group becomes {} instead of {}", made.group, task.group);
  require(made.pid_space == task.pid_namespace && spaces_.place_of(task.pid.value).nested == task.nested_pids &&
              outer_space(made) == task.outer_namespace,
          "its place in nested pid namespaces is another");
  if (task.state == model::TaskState::zombie) {
    require(made.zombie, "it should be a zombie");
    require(made.status == task.exit_status, "it ends with {:#x} instead of {:#x}", made.status, task.exit_status);
    return;
  }
  require(made.alive, "it should be alive");
  require(made.subreaper == task.child_subreaper, "its subreaper flag becomes {}", made.subreaper);
  // One that is not of the tree is the business of the session that the tree is a job of.
  const uint64_t terminal = wanted_.terminals.contains(task.controlling_terminal) ? task.controlling_terminal : 0;
  require(made.terminal == terminal, "{:#x} becomes its controlling terminal instead of {:#x}", made.terminal,
          terminal);
  std::set<Tid> threads;
  for (const auto& thread : task.threads) threads.insert(thread.tid);
  require(made.threads == threads, "it has {} threads instead of {}", made.threads.size(), threads.size());
  compare_leader(task, made);
  for (const auto& thread : task.threads) {
    require(problem_ || spaces_.place_of(thread.tid.value).nested == thread.nested_tids,
            "its thread {} has other ids in nested pid namespaces", thread.tid);
  }
  for (const auto& thread : task.threads) {
    const Pid childrens = thread.childrens_namespace.value != 0 ? thread.childrens_namespace : task.pid_namespace;
    const Pid born_in = thread.has_ended() ? childrens : made.childrens_space(thread.tid);
    require(born_in == childrens, "the children of thread {} would be born in the pid namespace of {} instead of {}",
            thread.tid, born_in, childrens);
  }
  if (extent_ == Extent::tree) return;
  compare_parent_thread(task, made);
  if (task.leader_has_ended()) threads.erase(leader_of(task.pid));
  require(made.ready == threads, "only {} of its {} threads are READY", made.ready.size(), threads.size());
  compare_sharing(task, made);
  compare_table(task, *made.table);
  const auto& space = wanted_.address_spaces.at(task.address_space);
  if (!problem_) obey(made.space->compare(space, wanted_.shared_memories));
  if (!problem_) obey(attributes_.compare(task, made.space->keeps_huge_pages_out(space)));
}

void Interpreter::compare_parent_thread(const model::Task& task, const Process& made) {
  if (problem_ || task.pid == wanted_.root) return;
  const auto* parent = tasks_wanted_.find(task.parent);
  const Tid wanted = task.parent_thread.value != 0 ? task.parent_thread : parent->first_living()->tid;
  require(made.parent_thread == wanted, "it becomes a child of the thread {} instead of {}", made.parent_thread,
          wanted);
}

void Interpreter::compare_leader(const model::Task& task, const Process& made) {
  require(made.leader_status.has_value() == task.leader_has_ended(), "its first thread should {}",
          task.leader_has_ended() ? "have ended" : "live");
  if (problem_ || !made.leader_status) return;
  const int status = *task.threads.front().exit_status;
  require(*made.leader_status == status, "its first thread ends with {:#x} instead of {:#x}", *made.leader_status,
          status);
}

void Interpreter::compare_sharing(const model::Task& task, const Process& made) {
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

void Interpreter::compare_table(const model::Task& task, const Table& made) {
  const auto& table = wanted_.descriptor_tables.at(task.descriptors).slots;
  auto found = made.slots.begin();
  auto description = wanted_.descriptions.begin();  // mostly ids ascend with the numbers
  for (const auto& [fd, slot] : table) {
    if (found == made.slots.end() || found->first != fd) found = made.slots.find(fd);
    require(found != made.slots.end(), "descriptor {} is not opened", fd);
    if (problem_) return;
    require(found->second.description == slot.description, "descriptor {} refers to {} instead of {}", fd,
            found->second.description, slot.description);
    require(found->second.close_on_exec == slot.close_on_exec, "descriptor {} has the wrong close-on-exec flag", fd);
    if (description == wanted_.descriptions.end() || description->first != slot.description)
      description = wanted_.descriptions.find(slot.description);
    const bool is_known = description != wanted_.descriptions.end();
    if (is_known && !description->second.carries.empty()) compare_carried(slot.description);
    const bool stays = !is_known || description->second.given >= 0;
    const uint64_t position = stays ? 0 : description->second.position;
    const auto reached = positions_.find(slot.description);
    require((reached == positions_.end() ? 0 : reached->second) == position, "descriptor {} is not at offset {}", fd,
            position);
    ++found;
    if (is_known) ++description;
  }
  if (made.slots.size() == table.size()) return;  // all that is wanted is there, and so nothing else
  for (const auto& [fd, slot] : made.slots) require(table.contains(fd), "descriptor {} is left open", fd);
}

void Interpreter::compare_carried(ObjectId id) {
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

}  // namespace stasis::plan::verifier
