#include "plan/verify.h"

#include <algorithm>

#include "plan/verify_interpreter.h"

namespace stasis::plan::verifier {
namespace {

Tid runner_of(const Command& command) {
  return command.pid.value != 0 && command.tid.value == 0 ? leader_of(command.pid) : command.tid;
}

}  // namespace

Interpreter::Interpreter(const Program& program, const model::Application& wanted, Extent extent)
    : program_(program), wanted_(wanted), tasks_wanted_(wanted), extent_(extent), attributes_(wanted) {
  auto& supervisor = processes_[Pid{0}];
  supervisor.table = std::make_shared<Table>();
  supervisor.space = std::make_shared<SpaceModel>(SpaceModel::of_supervisor());
  if (program.images_fd >= 0) supervisor.table->slots[program.images_fd] = {};
  supervisor.threads.insert(Tid{0});
  for (const auto& [id, description] : wanted.descriptions)
    if (description.given >= 0) given_.insert(id);
}

std::optional<Rejection> Interpreter::interpret() {
  for (index_ = 0; index_ < program_.commands.size(); ++index_) {
    const auto& command = program_.commands[index_];
    step(command);
    if (problem_) return Rejection{index_, command.pid, *problem_};
  }
  return std::nullopt;
}

std::optional<Rejection> Interpreter::run() {
  if (auto rejection = interpret()) return rejection;
  compare();
  if (problem_) return Rejection{index_, culprit_, *problem_};
  return std::nullopt;
}

void Interpreter::step(const Command& command) {
  const auto found = processes_.find(command.pid);
  if (found == processes_.end()) return reject("the process does not exist yet (ESRCH)");
  now_ = &found->second;
  tid_ = runner_of(command);
  require(repaired_.empty() || std::holds_alternative<EndRepair>(command.action),
          "a connection has left repair mode: its peer would notice if this failed");
  require(now_->alive, "the process has ended (ESRCH)");
  require(now_->threads.contains(tid_), "the thread {} does not exist (ESRCH)", tid_);
  require(!now_->ready.contains(tid_), "the thread is READY: it runs nothing any more");
  require(!now_->leader_status || tid_ != leader_of(now_->pid), "the thread has ended (ESRCH)");
  if (problem_) return;
  runner_ = &runners_[tid_.value];
  ++runner_->steps;
  std::visit([this](const auto& action) { apply(action); }, command.action);
}

bool Interpreter::is_before(const Stamp& then) {
  if (then.tid == tid_.value || (then.tid == 0 && then.step == 0)) return true;
  return runner_->knowledge.reaches(then.tid, then.step);
}

void Interpreter::learn(std::shared_ptr<const Snapshot> snapshot) {
  runner_->knowledge.learn(std::move(snapshot), tid_.value, runner_->steps);
}

std::shared_ptr<const Snapshot> Interpreter::snapshot() const {
  const auto sum = runner_->knowledge.all();
  sum->steps[tid_.value] = runner_->steps;
  return sum;
}

void Interpreter::begin_runner(pid_t tid) {
  auto& made = runners_[tid];  // a number that was used before goes on counting: old stamps must not look new
  made.knowledge = runner_->knowledge.inherited(made.steps);
  made.knowledge.learn(std::make_shared<Snapshot>(Snapshot{{{tid_.value, runner_->steps}}, nullptr}), tid, made.steps);
}

void Interpreter::apply(const Post& post) {
  auto& event = posts_[post.event];
  if (++event.count == 1) {
    event.all = event.first = snapshot();
    return;
  }
  for (auto layer = event.first; event.count == 2 && layer != nullptr; layer = layer->below) event.merged.insert(layer);
  event.all.reset();
  runner_->knowledge.merge_into(event.sum, event.merged);
  auto& known = event.sum[tid_.value];
  known = std::max(known, runner_->steps);
}

void Interpreter::apply(const Await& await) {
  const auto found = posts_.find(await.event);
  const uint32_t count = found == posts_.end() ? 0 : found->second.count;
  // In this order the wait never ends; in any other that the program allows it does not either.
  require(count >= await.count, "it waits for {} posts of '{}', of which only {} can have come: a deadlock",
          await.count, await.event, count);
  if (found != posts_.end()) found->second.awaited = std::max(found->second.awaited, await.count);
  // Posts beyond the awaited ones may be any: only a wait for all of them orders.
  if (problem_ || count != await.count || count == 0) return;
  auto& event = found->second;
  if (!event.all) event.all = Knowledge::stacked(event.sum, event.first);
  learn(event.all);
}

void Interpreter::apply(const Perform& perform) {
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
  const bool changes_rights = perform.attribute == "credentials" || perform.attribute == "attributes.dumpable";
  if (changes_rights && !perform.calls.empty()) writes(now_->reachable[tid_], "the right to take its descriptors");
  if (perform.attribute == "attributes.dumpable") set_death_signal();
  for (const auto& made : perform.undoes) {
    const auto found = now_->pid.value == 0 ? supervised_.find(made) : supervised_.end();
    require(found != supervised_.end() && found->second == 1, "it undoes '{}', which is not one command before", made);
  }
  if (now_->pid.value == 0) ++supervised_[perform.purpose];
  // What the supervisor makes and removes in the file system, others open.
  if (now_->pid.value == 0)
    writes(files_, "what it makes or removes");
  else if (!perform.creates.empty())
    reads(files_, "what the supervisor makes in the file system");
}

void Interpreter::set_death_signal() {
  const auto* task = tasks_wanted_.find(now_->pid);
  const auto sends = [](const model::Thread& thread) { return thread.parent_death_signal != 0; };
  if (task == nullptr || std::ranges::none_of(task->threads, sends)) return;
  reads(now_->parentage, "its parent");
  reads(now_->parents_life, "the thread that is its parent");
  now_->has_death_signal = true;
}

void Interpreter::apply(const Ready&) { now_->ready.insert(tid_); }

void Interpreter::expect_all_ready() {
  for (const auto& [pid, process] : processes_) {
    if (pid.value == 0 || !process.alive) continue;
    const size_t living = process.threads.size() - (process.leader_status ? 1 : 0);
    require(process.ready.size() == living, "{} is not READY: what others would notice comes last", pid);
  }
}

void Interpreter::apply(const EndRepair& end) {
  require(now_->pid.value == 0, "only stasis itself ends repair mode: nobody else runs by then");
  if (repaired_.empty()) expect_all_ready();
  const auto task = processes_.find(end.task);
  require(end.task.value != 0 && task != processes_.end() && task->second.alive, "{} does not exist (ESRCH)", end.task);
  if (problem_) return;
  const auto slot = task->second.table->slots.find(end.fd);
  require(slot != task->second.table->slots.end(), "{} has no descriptor {} (EBADF)", end.task, end.fd);
  require(problem_ || slot->second.description == end.description, "descriptor {} of {} is not that connection", end.fd,
          end.task);
  const auto description = wanted_.descriptions.find(end.description);
  require(description != wanted_.descriptions.end() && description->second.in_repair, "{} is not in repair mode",
          end.description);
  require(repaired_.insert(end.description).second, "{} has left repair mode already", end.description);
}

}  // namespace stasis::plan::verifier

namespace stasis::plan {

std::string Rejection::message(const Program& program) const {
  if (command >= program.commands.size()) return fmt::format("in the end, task {}: {}", pid, rule);
  return fmt::format("command {} ({} by {}): {}", command, name_of(program.commands[command].action), pid, rule);
}

std::optional<Rejection> verify(const Program& program, const model::Application& wanted, Extent extent) {
  return verifier::Interpreter(program, wanted, extent).run();
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
  verifier::Interpreter interpreter(program, outcome.tree, Extent::tree);
  outcome.rejection = interpreter.interpret();
  outcome.tree.tasks = interpreter.tasks();
  outcome.tree.dead_leaders = interpreter.dead_leaders();
  outcome.tree.terminals = interpreter.terminals();
  return outcome;
}

}  // namespace stasis::plan
