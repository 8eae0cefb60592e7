// The JSON form of bare trees.
#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "model/pid_namespaces.h"
#include "plan/bare_tree.h"
#include "plan/json_text.h"

namespace stasis::plan {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* operation = "read the process tree";
constexpr int64_t highest_pid = (1 << 22) - 1;  // below PID_MAX_LIMIT
constexpr int64_t highest_signal = 64, highest_exit_code = 255;

class Reader {
 public:
  Result<model::Application> run(std::string_view text) {
    const auto json = TRY(parse_json(text, operation));
    const bool has_leaders = json.is_object() && json.contains("dead_leaders");
    if (!json.is_object() || json.size() != 1u + has_leaders || !json.contains("processes") ||
        !json["processes"].is_array() || (has_leaders && !json["dead_leaders"].is_array()))
      return fail(Error::invalid(operation,
                                 "it is not an object with one field, the array \"processes\" (and perhaps "
                                 "a second, the array \"dead_leaders\")"));
    for (const auto& process : json["processes"]) {
      application_.tasks.push_back(TRY(task(process)));
      ++index_;
    }
    list_ = "dead_leaders", index_ = 0;
    for (const auto& leader : has_leaders ? json["dead_leaders"] : Json::array()) {
      TRY(dead_leader(leader));
      ++index_;
    }
    TRY(find_root());
    TRY(order());
    inherit_namespaces();
    TRY(terminals());
    if (const auto problem = model::PidNamespaces(application_).problem(); !problem.empty())
      return fail(Error::invalid(operation, problem));
    return std::move(application_);
  }

 private:
  std::unexpected<Error> reject(std::string_view field, std::string problem) const {
    return fail(Error::invalid(operation, std::move(problem), fmt::format("{}[{}], field {}", list_, index_, field)));
  }

  Result<int64_t> number(const Json& process, const char* field, int64_t lowest, int64_t highest) const {
    const auto found = process.find(field);
    if (found == process.end()) return reject(field, "it is missing");
    return number_of(*found, field, lowest, highest);
  }
  Result<int64_t> number_of(const Json& value, const char* field, int64_t lowest, int64_t highest) const {
    if (!value.is_number_integer()) return reject(field, "it is not an integer");
    // A number past what int64_t holds is unsigned, and larger than any limit.
    const bool too_large = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(highest);
    const int64_t got = too_large ? 0 : value.get<int64_t>();
    if (too_large || got < lowest || got > highest)
      return reject(field, fmt::format("{} is not between {} and {}", value.dump(), lowest, highest));
    return got;
  }

  Status only_fields(const Json& object, std::initializer_list<std::string_view> known) const {
    if (!object.is_object()) return reject("(itself)", "it is not an object");
    for (const auto& [field, value] : object.items()) {
      if (std::ranges::find(known, field) == known.end()) return reject(field, "there is no such field");
    }
    return {};
  }
  Result<std::vector<pid_t>> nested_ids(const Json& list, const char* field) const {
    if (!list.is_array() || list.empty()) return reject(field, "it is not an array of ids");
    std::vector<pid_t> ids;
    for (const auto& id : list) ids.push_back(static_cast<pid_t>(TRY(number_of(id, field, 1, highest_pid))));
    return ids;
  }

  Status dead_leader(const Json& leader) {
    TRY(only_fields(leader, {"pid", "nested_pids", "pid_namespace"}));
    const Pid pid{static_cast<pid_t>(TRY(number(leader, "pid", 1, highest_pid)))};
    model::DeadLeader made;
    if (!leader.contains("nested_pids")) return reject("nested_pids", "it is missing");
    made.nested_pids = TRY(nested_ids(leader["nested_pids"], "nested_pids"));
    made.pid_namespace = Pid{static_cast<pid_t>(TRY(number(leader, "pid_namespace", 1, highest_pid)))};
    if (!application_.dead_leaders.emplace(pid, std::move(made)).second)
      return reject("pid", fmt::format("{} occurs twice", pid));
    return {};
  }

  Result<model::Task> task(const Json& process) {
    TRY(only_fields(process, {"pid", "ppid", "pgid", "sid", "state", "exit_code", "exit_signal", "subreaper", "threads",
                              "leader_exit_code", "nested_pids", "pid_namespace", "outer_namespace", "nested_tids",
                              "childrens_namespace", "terminal", "foreground"}));
    model::Task task;
    task.pid = Pid{static_cast<pid_t>(TRY(number(process, "pid", 1, highest_pid)))};
    task.parent = Pid{static_cast<pid_t>(TRY(number(process, "ppid", 0, highest_pid)))};
    task.group = Pid{static_cast<pid_t>(TRY(number(process, "pgid", 0, highest_pid)))};
    task.session = Pid{static_cast<pid_t>(TRY(number(process, "sid", 0, highest_pid)))};
    TRY(state(process, task));
    if (const auto subreaper = process.find("subreaper"); subreaper != process.end()) {
      if (!subreaper->is_boolean()) return reject("subreaper", "it is neither true nor false");
      task.child_subreaper = subreaper->get<bool>();
    }
    if (process.contains("nested_pids")) task.nested_pids = TRY(nested_ids(process["nested_pids"], "nested_pids"));
    for (const auto& [field, space] :
         {std::pair{"pid_namespace", &task.pid_namespace}, std::pair{"outer_namespace", &task.outer_namespace}}) {
      if (!process.contains(field)) continue;
      if (task.nested_pids.empty()) return reject(field, "only a process with nested_pids has it");
      *space = Pid{static_cast<pid_t>(TRY(number(process, field, 1, highest_pid)))};
    }
    TRY(terminal(process, task));
    TRY(threads(process, task));
    TRY(ended_leader(process, task));
    if (process.contains("childrens_namespace")) {
      const Pid space{static_cast<pid_t>(TRY(number(process, "childrens_namespace", 0, highest_pid)))};
      if (task.threads.empty()) return reject("childrens_namespace", "a zombie has none");
      task.first_living()->childrens_namespace = space.value == 0 ? model::empty_namespace : space;
    }
    TRY(nested_threads(process, task));
    return task;
  }

  /// A leader says what is in the foreground of its terminal, where that is not its own group.
  Status terminal(const Json& process, model::Task& task) {
    const bool leads = task.session == task.pid, has_one = process.contains("terminal");
    if (task.state == model::TaskState::zombie && has_one) return reject("terminal", "a zombie has none");
    if (has_one) {
      const int64_t index = TRY(number(process, "terminal", 0, model::last_terminal_index));
      task.controlling_terminal = model::terminal_with_index(static_cast<uint32_t>(index));
    }
    const bool says_foreground = process.contains("foreground");
    if (says_foreground && !(has_one && leads))
      return reject("foreground", "only a session leader with a terminal has it");
    if (!has_one || !leads) return {};
    model::Terminal made{.session = task.pid, .foreground = task.pid, .slave_opened = true};
    if (says_foreground) made.foreground = Pid{static_cast<pid_t>(TRY(number(process, "foreground", 0, highest_pid)))};
    if (!application_.terminals.emplace(task.controlling_terminal, made).second)
      return reject("terminal", "it controls another session already");
    return {};
  }
  Status terminals() const {
    for (const auto& task : application_.tasks) {
      if (task.controlling_terminal != 0 && !application_.terminals.contains(task.controlling_terminal))
        return fail(
            Error::invalid(operation, fmt::format("process {} has terminal {}, which the leader of its session "
                                                  "does not have",
                                                  task.pid, model::index_of_terminal(task.controlling_terminal))));
    }
    if (auto problem = model::problem_with_terminals(application_); !problem.empty())
      return fail(Error::invalid(operation, std::move(problem)));
    return {};
  }

  Status state(const Json& process, model::Task& task) const {
    const auto found = process.find("state");
    const std::string name = found == process.end() ? "alive" : found->is_string() ? found->get<std::string>() : "";
    const bool zombie = name == "zombie";
    if (!zombie && name != "alive" && name != "stopped")
      return reject("state", "it is neither \"alive\", \"stopped\" nor \"zombie\"");
    for (const char* field : {"exit_code", "exit_signal"}) {
      if (!zombie && process.contains(field)) return reject(field, "only a zombie has it");
    }
    if (name == "stopped") task.state = model::TaskState::stopped, task.stop_signal = SIGSTOP;
    if (!zombie) return {};
    if (process.contains("subreaper")) return reject("subreaper", "a zombie has none");
    task.state = model::TaskState::zombie;
    if (process.contains("exit_code") && process.contains("exit_signal"))
      return reject("exit_signal", "it has ended by its exit_code already");
    if (process.contains("exit_signal"))
      task.exit_status = static_cast<int>(TRY(number(process, "exit_signal", 1, highest_signal)));
    else if (process.contains("exit_code"))
      task.exit_status = static_cast<int>(TRY(number(process, "exit_code", 0, highest_exit_code))) << 8;
    return {};
  }

  Status threads(const Json& process, model::Task& task) const {
    const auto found = process.find("threads");
    const bool zombie = task.state == model::TaskState::zombie;
    if (found != process.end() && (zombie || !found->is_array()))
      return reject("threads", zombie ? "a zombie has none" : "it is not an array");
    if (zombie) return {};
    task.threads.emplace_back().tid = leader_of(task.pid);
    if (found == process.end()) return {};
    for (const auto& tid : *found)
      task.threads.emplace_back().tid = Tid{static_cast<pid_t>(TRY(number_of(tid, "threads", 1, highest_pid)))};
    return {};
  }

  Status ended_leader(const Json& process, model::Task& task) const {
    constexpr const char* field = "leader_exit_code";
    if (!process.contains(field)) return {};
    if (task.threads.size() < 2) return reject(field, "only a process with other threads has it");
    task.threads.front().exit_status = static_cast<int>(TRY(number(process, field, 0, highest_exit_code))) << 8;
    return {};
  }

  Status nested_threads(const Json& process, model::Task& task) const {
    if (!task.threads.empty()) task.threads.front().nested_tids = task.nested_pids;
    const auto found = process.find("nested_tids");
    const size_t others = task.threads.empty() ? 0 : task.threads.size() - 1;
    if (found == process.end() && (task.nested_pids.empty() || others == 0)) return {};
    if (found == process.end()) return reject("nested_tids", "it is missing");
    if (task.nested_pids.empty() || !found->is_array() || found->size() != others)
      return reject("nested_tids", "it is not an array of the nested ids of each of the threads");
    for (size_t i = 0; i < others; ++i) task.threads[1 + i].nested_tids = TRY(nested_ids((*found)[i], "nested_tids"));
    return {};
  }

  /// Where nothing else is said: an init lives in its own, everybody else where the parent does.
  void inherit_namespaces() {
    std::map<Pid, Pid> spaces;
    for (auto& task : application_.tasks) {
      if (!task.nested_pids.empty() && task.pid_namespace.value == 0)
        task.pid_namespace = task.nested_pids.back() == 1 ? task.pid : spaces[task.parent];
      spaces[task.pid] = task.pid_namespace;
    }
  }

  Status find_root() {
    std::set<Pid> pids;
    std::set<Tid> tids;
    for (const auto& task : application_.tasks) {
      if (!pids.insert(task.pid).second)
        return fail(Error::invalid(operation, fmt::format("pid {} occurs twice", task.pid)));
      for (const auto& thread : task.threads) {
        if (!tids.insert(thread.tid).second)
          return fail(Error::invalid(operation, fmt::format("thread {} occurs twice", thread.tid)));
      }
    }
    std::vector<const model::Task*> roots;
    for (const auto& task : application_.tasks) {
      if (!pids.contains(task.parent)) roots.push_back(&task);
    }
    if (roots.size() != 1) {
      return fail(Error::invalid(operation, fmt::format("{} processes have a parent that is not in the tree, but only "
                                                        "the root has one",
                                                        roots.size())));
    }
    if (roots.front()->state == model::TaskState::zombie)
      return fail(Error::invalid(operation, "the root is a zombie"));
    application_.root = roots.front()->pid;
    application_.root_is_namespace_init = application_.root.value == 1;
    application_.shell_job = roots.front()->session != application_.root;
    application_.find(application_.root)->parent = Pid{0};
    return {};
  }

  /// A parent stands before its children, among which pids ascend.
  Status order() {
    auto children = children_in(application_);
    std::vector<model::Task> ordered;
    std::vector<const model::Task*> open{application_.find(application_.root)};
    while (!open.empty()) {
      const auto* task = open.back();
      open.pop_back();
      ordered.push_back(*task);
      const auto& below = children[task->pid];
      open.insert(open.end(), below.rbegin(), below.rend());
    }
    if (ordered.size() != application_.tasks.size())
      return fail(Error::invalid(operation, "some parents form a cycle: they do not descend from the root"));
    application_.tasks = std::move(ordered);
    return {};
  }

  model::Application application_;
  std::string_view list_ = "processes";
  size_t index_ = 0;
};

void add_terminal(const model::Application& tree, const model::Task& task, Json& made) {
  const auto terminal = tree.terminals.find(task.controlling_terminal);
  if (terminal == tree.terminals.end()) return;
  made["terminal"] = model::index_of_terminal(terminal->first);
  const auto& about = terminal->second;
  if (about.session == task.pid && about.foreground != task.pid) made["foreground"] = about.foreground.value;
}

Json json_of(const model::Application& tree, const model::Task& task, Pid parents_namespace) {
  Json made{
      {"pid", task.pid.value}, {"ppid", task.parent.value}, {"pgid", task.group.value}, {"sid", task.session.value}};
  if (!task.nested_pids.empty()) made["nested_pids"] = task.nested_pids;
  if (task.pid_namespace != parents_namespace && task.pid_namespace != task.pid)
    made["pid_namespace"] = task.pid_namespace.value;
  if (task.outer_namespace.value != 0) made["outer_namespace"] = task.outer_namespace.value;
  if (task.state == model::TaskState::zombie) {
    made["state"] = "zombie";
    if (WIFSIGNALED(task.exit_status))
      made["exit_signal"] = WTERMSIG(task.exit_status);
    else
      made["exit_code"] = WEXITSTATUS(task.exit_status);
    return made;
  }
  made["state"] = task.state == model::TaskState::stopped ? "stopped" : "alive";
  if (task.child_subreaper) made["subreaper"] = true;
  add_terminal(tree, task, made);
  if (const Pid childrens = task.childrens_namespace(); childrens.value != 0)
    made["childrens_namespace"] = childrens == model::empty_namespace ? 0 : childrens.value;
  Json threads = Json::array(), nested = Json::array();
  for (const auto& [tid, nested_tids] : threads_of(task)) {
    if (tid == leader_of(task.pid)) continue;
    threads.push_back(tid.value);
    nested.push_back(nested_tids);
  }
  if (threads.empty()) return made;
  made["threads"] = std::move(threads);
  if (task.leader_has_ended()) made["leader_exit_code"] = WEXITSTATUS(*task.threads.front().exit_status);
  if (!task.nested_pids.empty()) made["nested_tids"] = std::move(nested);
  return made;
}

}  // namespace

Result<model::Application> tree_from_json(std::string_view text) { return Reader().run(text); }

std::string tree_to_json(const model::Application& application) {
  std::vector<const model::Task*> tasks;
  for (const auto& task : application.tasks) tasks.push_back(&task);
  std::ranges::sort(tasks, {}, &model::Task::pid);
  const model::PidNamespaces spaces(application);
  std::string text = "{\"processes\": [";
  for (size_t i = 0; i < tasks.size(); ++i)
    text += (i == 0 ? "\n" : ",\n") + json_of(application, *tasks[i], spaces.of(tasks[i]->parent)).dump();
  text += "\n]";
  bool first = true;
  for (const auto& [pid, leader] : application.dead_leaders) {
    const Json made{
        {"pid", pid.value}, {"nested_pids", leader.nested_pids}, {"pid_namespace", leader.pid_namespace.value}};
    text += (std::exchange(first, false) ? ", \"dead_leaders\": [\n" : ",\n") + made.dump();
  }
  return text + (first ? "}" : "\n]}");
}

}  // namespace stasis::plan
