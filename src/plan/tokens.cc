#include "plan/tokens.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "model/pid_namespaces.h"
#include "plan/bare_tree.h"
#include "plan/nested_numbers.h"

namespace stasis::plan {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* operation = "decode the words";

void add_number(Tokens& tokens, std::string_view decimal) {
  for (const char digit : decimal) tokens.emplace_back(1, digit);
}
void add(Tokens& tokens, std::string_view word, int64_t number) {
  tokens.emplace_back(word);
  add_number(tokens, std::to_string(number));
}

// ---- trees

class TreeWriter {
 public:
  explicit TreeWriter(const model::Application& tree) : tree_(tree), children_(children_in(tree)) {}
  Tokens run() {
    tokens_ = {"tree"};
    if (tree_.root_is_namespace_init) tokens_.emplace_back("init");
    // Trees may be deeper than the stack of a recursion.
    std::vector<Open> open{{tree_.find(tree_.root), nullptr}};
    while (!open.empty()) {
      auto& [task, parent, next] = open.back();
      if (next == 0) begin(*task, parent);
      const auto& below = children_[task->pid];
      if (next < below.size()) {
        open.push_back({below[next++], task});
      } else {
        tokens_.emplace_back(")");
        open.pop_back();
      }
    }
    for (const auto& [pid, leader] : tree_.dead_leaders) {
      add(tokens_, "dead", pid.value);
      add(tokens_, "namespace", leader.pid_namespace.value);
    }
    return std::move(tokens_);
  }

 private:
  struct Open {
    const model::Task* task;
    const model::Task* parent;
    size_t next = 0;
  };

  void begin(const model::Task& task, const model::Task* parent) {
    tokens_.emplace_back("(");
    link("session", task.session, task.pid, parent == nullptr ? Pid{-1} : parent->session);
    link("group", task.group, task.pid, parent == nullptr ? Pid{-1} : parent->group);
    link("namespace", task.pid_namespace, task.pid, parent == nullptr ? Pid{0} : parent->pid_namespace);
    if (task.outer_namespace.value != 0) add(tokens_, "in", task.outer_namespace.value);
    if (const Pid childrens = task.childrens_namespace(); childrens.value != 0)
      add(tokens_, "births", childrens == model::empty_namespace ? 0 : childrens.value);
    if (task.state == model::TaskState::stopped) tokens_.emplace_back("stopped");
    if (task.state == model::TaskState::zombie) {
      tokens_.emplace_back("zombie");
      if (WIFSIGNALED(task.exit_status))
        add(tokens_, "signal", WTERMSIG(task.exit_status));
      else
        add(tokens_, "exit", WEXITSTATUS(task.exit_status));
    }
    if (task.child_subreaper) tokens_.emplace_back("subreaper");
    terminal(task);
    if (task.threads.size() > 1) add(tokens_, "threads", static_cast<int64_t>(task.threads.size()) - 1);
    if (task.leader_has_ended()) add(tokens_, "leader", WEXITSTATUS(*task.threads.front().exit_status));
  }
  void terminal(const model::Task& task) {
    const auto terminal = tree_.terminals.find(task.controlling_terminal);
    if (terminal == tree_.terminals.end()) return;
    tokens_.emplace_back("terminal");
    const auto& about = terminal->second;
    if (about.session == task.pid && about.foreground != task.pid) add(tokens_, "foreground", about.foreground.value);
  }
  void link(std::string_view name, Pid to, Pid self, Pid inherited) {
    if (to == inherited) return;
    if (to != self) return add(tokens_, name, to.value);
    tokens_.emplace_back(name);
    tokens_.emplace_back("self");
  }

  const model::Application& tree_;
  std::map<Pid, std::vector<const model::Task*>> children_;
  Tokens tokens_;
};

// ---- programs

void add_string(Tokens& tokens, std::string_view text) {
  tokens.emplace_back("\"");
  for (const char byte : text) {
    const auto code = static_cast<unsigned char>(byte);
    tokens.push_back(code > ' ' && code < 0x7f ? fmt::format("'{}", byte) : fmt::format("\\{:02x}", code));
  }
  tokens.emplace_back("\"");
}

void add_value(Tokens& tokens, const Json& value) {
  if (value.is_string()) return add_string(tokens, value.get_ref<const std::string&>());
  if (value.is_array()) {
    tokens.emplace_back("[");
    for (size_t i = 0; i < value.size(); ++i) {
      if (i > 0) tokens.emplace_back(",");
      add_value(tokens, value[i]);
    }
    tokens.emplace_back("]");
  } else if (value.is_object()) {
    tokens.emplace_back("{");
    for (const auto& [name, member] : value.items()) {
      tokens.push_back(name);
      add_value(tokens, member);
    }
    tokens.emplace_back("}");
  } else if (value.is_number()) {
    add_number(tokens, value.dump());
  } else {
    tokens.push_back(value.dump());
  }
}

// ---- reading

class Reader {
 public:
  explicit Reader(const Tokens& tokens) : tokens_(tokens) {}

  Result<std::variant<model::Application, Program>> run() {
    if (take("tree")) return TRY(tree());
    if (take("program")) return TRY(program());
    return reject("is neither \"tree\" nor \"program\"");
  }

 private:
  std::unexpected<Error> reject(std::string_view problem) const {
    const std::string word = at_ < tokens_.size() ? fmt::format("word {}, '{}',", at_, tokens_[at_]) : "the end";
    return fail(Error::invalid(operation, fmt::format("{} {}", word, problem)));
  }
  bool see(std::string_view word) const { return at_ < tokens_.size() && tokens_[at_] == word; }
  bool take(std::string_view word) {
    if (!see(word)) return false;
    ++at_;
    return true;
  }
  bool sees_digit() const {
    return at_ < tokens_.size() && tokens_[at_].size() == 1 &&
           std::isdigit(static_cast<unsigned char>(tokens_[at_][0]));
  }

  // ---- trees: their JSON form is made and read, so that there is one place that says what a tree is

  Result<model::Application> tree() {
    const bool init = take("init");
    int64_t next = init ? 1 : 2;
    std::vector<size_t> open;
    do {
      if (take(")")) {
        if (open.empty()) return --at_, reject("ends a process where none is open");
        open.pop_back();
        continue;
      }
      if (!take("(")) return reject("is neither \"(\" nor \")\"");
      const Json* parent = open.empty() ? nullptr : &processes_[open.back()];
      auto process = TRY(attributes(next++, parent));
      open.push_back(processes_.size());
      processes_.push_back(std::move(process));
    } while (!open.empty());
    while (take("dead")) {
      const Pid leader{TRY(id())};
      if (!take("namespace")) return reject("is not \"namespace\"");
      dead_leaders_[leader].pid_namespace = Pid{TRY(id())};
    }
    if (at_ != tokens_.size()) return reject("comes after the end of the root");
    number_threads(next);
    number_terminals();
    return with_namespaces(TRY(tree_from_json(Json{{"processes", processes_}}.dump())));
  }
  Status namespaces(pid_t pid, Pid parent) {
    Pid space = spaces_[parent];
    if (take("namespace")) space = Pid{take("self") ? pid : TRY(id())};
    spaces_[Pid{pid}] = space;
    if (take("in")) outer_spaces_[Pid{pid}] = Pid{TRY(id())};
    if (take("births")) {
      const Pid space{TRY(id())};
      childrens_spaces_[Pid{pid}] = space.value == 0 ? model::empty_namespace : space;
    }
    return {};
  }
  /// Nested ids are not spelled out: they follow from the pids.
  Result<model::Application> with_namespaces(model::Application tree) const {
    for (auto& task : tree.tasks) {
      task.pid_namespace = spaces_.at(task.pid);
      if (const auto found = outer_spaces_.find(task.pid); found != outer_spaces_.end())
        task.outer_namespace = found->second;
      if (const auto found = childrens_spaces_.find(task.pid); found != childrens_spaces_.end())
        task.first_living()->childrens_namespace = found->second;
    }
    tree.dead_leaders = dead_leaders_;
    number_nested(tree);
    if (const auto problem = model::PidNamespaces(tree).problem(); !problem.empty())
      return fail(Error::invalid(operation, problem));
    return tree;
  }
  Result<pid_t> id() {
    const auto found = TRY(number()).get<int64_t>();
    if (found < 0 || found > static_cast<int64_t>(most_threads)) return --at_, reject("ends a number that is no pid");
    highest_ = std::max(highest_, static_cast<uint64_t>(found));
    return static_cast<pid_t>(found);
  }
  Result<Json> attributes(int64_t pid, const Json* parent) {
    Json process{{"pid", pid}, {"ppid", parent == nullptr ? Json(0) : (*parent)["pid"]}};
    process["pgid"] = Json();
    process["sid"] = TRY(link("session", "sid", pid, parent));
    process["pgid"] = TRY(link("group", "pgid", pid, parent));
    TRY(namespaces(static_cast<pid_t>(pid), parent == nullptr ? Pid{0} : Pid{(*parent)["pid"].get<pid_t>()}));
    if (take("stopped")) {
      process["state"] = "stopped";
    } else if (take("zombie")) {
      process["state"] = "zombie";
      const bool signal = take("signal");
      if (!signal && !take("exit")) return reject("is neither \"exit\" nor \"signal\"");
      process[signal ? "exit_signal" : "exit_code"] = TRY(number());
    }
    if (take("subreaper")) process["subreaper"] = true;
    if (take("terminal")) process["terminal"] = 0;
    if (take("foreground")) process["foreground"] = TRY(number());
    if (take("threads")) {
      const auto count = TRY(number()).get<uint64_t>();
      if (count > most_threads - std::min(thread_count_, most_threads))
        return reject("follows a number of threads that no system has");
      thread_count_ += count;
      threads_.emplace_back(processes_.size(), count);
    }
    if (take("leader")) process["leader_exit_code"] = TRY(number());
    return process;
  }
  Result<Json> link(std::string_view word, const char* field, int64_t pid, const Json* parent) {
    if (take(word)) {
      if (take("self")) return Json(pid);
      auto to = TRY(number());
      highest_ = std::max(highest_, to.get<uint64_t>());
      return to;
    }
    if (parent == nullptr) return reject(fmt::format("comes where the {} of the root must be", word));
    return (*parent)[field];
  }
  /// After processes and the dead leaders that links name.
  void number_threads(int64_t next) {
    uint64_t tid = std::max(static_cast<uint64_t>(next), highest_ + 1);
    for (const auto& [process, count] : threads_) {
      for (uint64_t i = 0; i < count; ++i) processes_[process]["threads"].push_back(tid++);
    }
  }

  /// In the order of their sessions.
  void number_terminals() {
    std::map<Json, uint32_t> numbers;
    for (const auto& process : processes_) {
      if (process.contains("terminal") && process["sid"] == process["pid"])
        numbers.emplace(process["sid"], static_cast<uint32_t>(numbers.size()));
    }
    for (auto& process : processes_) {
      if (!process.contains("terminal")) continue;
      const auto number = numbers.find(process["sid"]);
      process["terminal"] = number == numbers.end() ? static_cast<uint32_t>(numbers.size()) : number->second;
    }
  }

  // ---- programs, likewise

  Result<Program> program() {
    Json made = Json::object();
    made["commands"] = Json::array();
    const auto is_command = [&] { return std::isupper(static_cast<unsigned char>(tokens_[at_][0])) != 0; };
    while (at_ < tokens_.size() && !is_command()) TRY(member(made));
    while (at_ < tokens_.size()) {
      if (!is_command()) return reject("is not the name of a command");
      Json command{{"command", tokens_[at_++]}};
      while (!take(";")) TRY(member(command));
      made["commands"].push_back(std::move(command));
    }
    return from_json(made.dump());
  }
  Status member(Json& into, unsigned depth = 0) {
    if (at_ >= tokens_.size()) return reject("comes where a name must be");
    const auto& name = tokens_[at_];
    const auto of_name = [](unsigned char c) { return std::islower(c) != 0 || std::isdigit(c) != 0 || c == '_'; };
    if (!std::islower(static_cast<unsigned char>(name[0])) || !std::ranges::all_of(name, of_name))
      return reject("is not the name of a field");
    if (into.contains(name)) return reject("is given twice");
    ++at_;
    into[name] = TRY(value(depth + 1));
    return {};
  }
  Result<Json> value(unsigned depth) {
    if (depth > deepest_value) return reject("is nested too deeply");
    if (sees_digit() || see("-")) return number();
    if (take("true")) return Json(true);
    if (take("false")) return Json(false);
    if (take("null")) return Json(nullptr);
    if (take("\"")) return string();
    if (take("[")) {
      Json array = Json::array();
      if (take("]")) return array;
      do array.push_back(TRY(value(depth + 1)));
      while (take(","));
      if (!take("]")) return reject("is neither \",\" nor \"]\"");
      return array;
    }
    if (!take("{")) return reject("is no value");
    Json object = Json::object();
    while (!take("}")) TRY(member(object, depth));
    return object;
  }
  Result<Json> number() {
    std::string digits = take("-") ? "-" : "";
    if (!sees_digit()) return reject("is not a digit");
    while (sees_digit() && digits.size() <= longest_number) digits += tokens_[at_++];
    const auto parsed = Json::parse(digits, nullptr, false);
    if (!parsed.is_number_integer()) return --at_, reject("ends a number with leading zeros, or too large a one");
    return parsed;
  }
  Result<Json> string() {
    std::string text;
    for (; !take("\""); ++at_) {
      if (at_ >= tokens_.size()) return reject("comes within a string");
      const auto& word = tokens_[at_];
      if (word.size() == 2 && word[0] == '\'')
        text += word[1];
      else if (word.size() == 3 && word[0] == '\\' && std::isxdigit(static_cast<unsigned char>(word[1])) != 0 &&
               std::isxdigit(static_cast<unsigned char>(word[2])) != 0)
        text += static_cast<char>(std::stoi(word.substr(1), nullptr, 16));
      else
        return reject("is no part of a string");
    }
    return Json(std::move(text));
  }

  static constexpr uint64_t most_threads = 1 << 22;  // PID_MAX_LIMIT
  static constexpr unsigned deepest_value = 16;
  static constexpr size_t longest_number = 20;

  const Tokens& tokens_;
  size_t at_ = 0;
  Json processes_ = Json::array();
  std::vector<std::pair<size_t, uint64_t>> threads_;  // process by index, how many
  uint64_t thread_count_ = 0, highest_ = 0;
  std::map<Pid, Pid> spaces_, outer_spaces_, childrens_spaces_;  // pid namespaces of processes, and of their children
  std::map<Pid, model::DeadLeader> dead_leaders_;
};

}  // namespace

Tokens tree_tokens(const model::Application& canonical) { return TreeWriter(canonical).run(); }

Tokens program_tokens(const Program& program) {
  const auto json = Json::parse(to_json(program));
  const auto defaults = Json::parse(to_json(Program{}));
  Tokens tokens{"program"};
  for (const auto& [name, value] : json.items()) {
    if (name == "commands" || value == defaults[name]) continue;
    tokens.push_back(name);
    add_value(tokens, value);
  }
  for (const auto& command : json["commands"]) {
    tokens.push_back(command["command"].get<std::string>());
    for (const auto& [name, value] : command.items()) {
      if (name == "command") continue;
      tokens.push_back(name);
      add_value(tokens, value);
    }
    tokens.emplace_back(";");
  }
  return tokens;
}

Result<std::variant<model::Application, Program>> from_tokens(const Tokens& tokens) { return Reader(tokens).run(); }

std::string join(const Tokens& tokens) { return fmt::format("{}", fmt::join(tokens, " ")); }

Tokens split(std::string_view text) {
  std::istringstream stream{std::string(text)};
  return {std::istream_iterator<std::string>(stream), {}};
}

}  // namespace stasis::plan
