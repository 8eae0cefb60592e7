#include "plan/bare_tree.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <utility>

#include "plan/emission.h"
#include "plan/tree_emission.h"

namespace stasis::plan {
namespace {

constexpr int first_terminal_fd = 3;  // a bare tree has no other descriptors

std::string list_of(const std::map<Tid, std::vector<pid_t>>& threads) {
  std::string text;
  for (const auto& [tid, nested] : threads) text += fmt::format("{}{}", text.empty() ? "" : ", ", tid);
  return fmt::format("[{}]", text);
}

std::string_view name_of(model::TaskState state) {
  return state == model::TaskState::zombie ? "zombie" : state == model::TaskState::stopped ? "stopped" : "alive";
}

}  // namespace

Result<Program> make_tree_program(const model::Application& application, const TreeLimits& limits,
                                  const Births& likely) {
  const auto tree = TRY(plan_tree(application, limits, likely));
  const Contributors nobody;
  const PlanOptions options;
  Emission out(application, nobody, options);
  TreeEmission emission(out, tree, {[&](Pid pid, Origin) -> Status {
                          if (pid == application.root) out.open_terminals(first_terminal_fd);
                          return {};
                        }});
  TRY(emission.create());
  emission.groups();
  emission.terminals();
  emission.finish();
  const auto live = [&](auto action) {
    for (const auto& task : application.tasks) {
      if (task.state != model::TaskState::zombie) action(task);
    }
  };
  live([&](const model::Task& task) {
    out.start_threads(task);
    out.post(out.process(task.pid), "built");
  });
  // Subreaper flags last of all: while the tree is built they decide who adopts whom.
  live([&](const model::Task& task) {
    if (!task.child_subreaper) return;
    out.await_all(out.process(task.pid), "built");
    out.process(task.pid).add(SetChildReaper{true});
  });
  live([&](const model::Task& task) {
    for (const auto& thread : task.threads) {
      if (thread.childrens_namespace.value == 0) continue;
      out.await_all(out.thread(task.pid, thread.tid), "built");
      out.enter_childrens_namespace(task, thread);
    }
  });
  live([&](const model::Task& task) {
    for (const auto& thread : task.threads) out.end(task, thread);
  });
  return std::move(out.program);
}

namespace {

/// Of the mappings in each process, by where they begin.
class Lengths {
 public:
  void follow(Pid pid, Fork& fork) { known_[fork.child_pid] = known_[pid]; }
  void follow(Pid pid, Clone& clone) { known_[clone.child_pid] = known_[pid]; }
  void follow(Pid pid, Mmap& map) { known_[pid][map.addr] = map.length; }
  void follow(Pid pid, MmapAnon& map) { known_[pid][map.addr] = map.length; }
  void follow(Pid pid, Mremap& map) {
    take(pid, map.addr, map.length);
    known_[pid][map.new_addr] = map.length;
  }
  void follow(Pid pid, Munmap& map) { take(pid, map.addr, map.length); }
  void follow(Pid, auto&) {}

 private:
  void take(Pid pid, uint64_t addr, uint64_t& length) {
    const auto mapping = known_[pid].extract(addr);
    if (length == 0 && !mapping.empty()) length = mapping.mapped();
  }
  std::map<Pid, std::map<uint64_t, uint64_t>> known_;
};

Program with_root(Program program) {
  std::set<Pid> created;
  Pid root;
  for (const auto& command : program.commands) {
    if (command.pid.value == 0) return program;
    if (const auto child = created_by(command.action)) created.insert(*child);
    if (root.value == 0 && !created.contains(command.pid)) root = command.pid;
  }
  Fork fork;
  fork.child_pid = root;
  fork.new_pid_namespace = root.value == 1;
  if (root.value != 0) program.commands.insert(program.commands.begin(), Command{Pid{0}, Tid{0}, fork});
  return program;
}

}  // namespace

Program completed(Program program) {
  Lengths lengths;
  for (auto& command : program.commands)
    std::visit([&](auto& action) { lengths.follow(command.pid, action); }, command.action);
  return with_root(std::move(program));
}

std::map<Pid, std::vector<const model::Task*>> children_in(const model::Application& tree) {
  std::map<Pid, std::vector<const model::Task*>> children;
  for (const auto& task : tree.tasks) {
    if (task.pid != tree.root) children[task.parent].push_back(&task);
  }
  for (auto& [parent, below] : children) std::ranges::sort(below, {}, &model::Task::pid);
  return children;
}

std::map<Tid, std::vector<pid_t>> threads_of(const model::Task& task) {
  std::map<Tid, std::vector<pid_t>> tids;
  for (const auto& thread : task.threads) tids.emplace(thread.tid, thread.nested_tids);
  return tids;
}

std::vector<std::string> tree_differences(const model::Application& wanted, const model::Application& found,
                                          bool with_stops) {
  std::vector<std::string> differences;
  const auto differ = [&](Pid pid, std::string_view what, const auto& should, const auto& is) {
    if (should != is)
      differences.push_back(fmt::format("process {}: its {} is {} instead of {}", pid, what, is, should));
  };
  const model::TaskIndex all_wanted(wanted), all_found(found);
  const auto terminal_of = [](const model::Application& tree, const model::Task& task) {
    const auto terminal = tree.terminals.find(task.controlling_terminal);
    if (terminal == tree.terminals.end()) return std::string("none");
    const auto name = fmt::format("/dev/pts/{}", model::index_of_terminal(terminal->first));
    if (terminal->second.session != task.pid) return name;
    return fmt::format("{} with group {} in its foreground", name, terminal->second.foreground);
  };
  for (const auto& task : found.tasks) {
    if (all_wanted.find(task.pid) == nullptr) differences.push_back(fmt::format("process {} is too many", task.pid));
  }
  for (const auto& task : wanted.tasks) {
    const auto* other = all_found.find(task.pid);
    if (other == nullptr) {
      differences.push_back(fmt::format("process {} is missing", task.pid));
      continue;
    }
    if (task.pid != wanted.root) differ(task.pid, "parent", task.parent, other->parent);
    differ(task.pid, "group", task.group, other->group);
    differ(task.pid, "session", task.session, other->session);
    const bool stop_apart = !with_stops && task.state == model::TaskState::stopped;
    differ(task.pid, "state", name_of(stop_apart ? model::TaskState::running : task.state), name_of(other->state));
    differ(task.pid, "exit status", task.exit_status, other->exit_status);
    differ(task.pid, "subreaper flag", task.child_subreaper, other->child_subreaper);
    differ(task.pid, "terminal", terminal_of(wanted, task), terminal_of(found, *other));
    const auto threads = threads_of(task), others = threads_of(*other);
    differ(task.pid, "list of threads", list_of(threads), list_of(others));
    if (threads != others && list_of(threads) == list_of(others))
      differences.push_back(fmt::format("process {}: its threads have other nested ids", task.pid));
    if (task.leader_has_ended() != other->leader_has_ended())
      differences.push_back(
          fmt::format("process {}: its first thread has {}ended", task.pid, other->leader_has_ended() ? "" : "not "));
    else if (task.leader_has_ended())
      differ(task.pid, "first thread's exit status", *task.threads.front().exit_status,
             *other->threads.front().exit_status);
    if (task.nested_pids != other->nested_pids)
      differ(task.pid, "nested ids", fmt::format("{}", task.nested_pids), fmt::format("{}", other->nested_pids));
    differ(task.pid, "pid namespace", task.pid_namespace, other->pid_namespace);
    differ(task.pid, "pid namespace around its own", task.outer_namespace, other->outer_namespace);
    differ(task.pid, "children's pid namespace", task.childrens_namespace(), other->childrens_namespace());
  }
  if (wanted.dead_leaders != found.dead_leaders) differences.emplace_back("dead leaders have other nested ids");
  return differences;
}

}  // namespace stasis::plan
