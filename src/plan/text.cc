// Programs for people: one aligned line per command, and a graph of who runs what.

#include <fmt/format.h>

#include <map>

#include "plan/program.h"

namespace stasis::plan {
namespace {

std::string shown(const Call& call) {
  std::string text = call_name(call.number) + "(";
  for (size_t i = 0; i < call.arguments.size(); ++i) {
    if (i != 0) text += ", ";
    const auto& argument = call.arguments[i];
    if (const auto* value = std::get_if<uint64_t>(&argument)) {
      text += *value < 0x10000 || *value > ~0xffffull ? fmt::format("{}", static_cast<int64_t>(*value))
                                                      : fmt::format("{:#x}", *value);
    } else if (const auto* in = std::get_if<In>(&argument)) {
      text += fmt::format("<{} bytes>", in->bytes.size());
    } else if (const auto* out = std::get_if<Out>(&argument)) {
      text += fmt::format("<out {}>", out->size);
    } else if (const auto* both = std::get_if<InOut>(&argument)) {
      text += fmt::format("<in/out {}>", both->bytes.size());
    } else if (const auto* word = std::get_if<WordOf>(&argument)) {
      text += fmt::format("word{}+{}", word->relative, word->offset);
    } else {
      text += fmt::format("result{}", std::get<ResultOf>(argument).relative);
    }
  }
  return text + ")";
}

template <typename T>
std::string shown(const T& value) {
  if constexpr (std::is_same_v<T, std::string>)
    return value;
  else if constexpr (std::is_same_v<T, bool>)
    return value ? "yes" : "no";
  else if constexpr (std::is_same_v<T, uint64_t>)
    return value < 0x10000 ? fmt::format("{}", value) : fmt::format("{:#x}", value);
  else
    return fmt::format("{}", value);
}
template <typename T>
std::string shown(const std::vector<T>& values) {
  std::string text = "[";
  constexpr size_t most = 6;
  for (size_t i = 0; i < values.size() && i < most; ++i) {
    if (i != 0) text += ", ";
    if constexpr (std::is_same_v<T, Created>)
      text += fmt::format("{}→{}", values[i].fd, values[i].description);
    else
      text += shown(values[i]);
  }
  if (values.size() > most) text += fmt::format(", … {} in all", values.size());
  return text + "]";
}

std::string details(const Action& action) {
  std::string text;
  std::visit(
      [&](const auto& one) {
        std::remove_cvref_t<decltype(one)>::fields(one, [&](const char* field, const auto& value) {
          using Value = std::remove_cvref_t<decltype(value)>;
          if constexpr (requires { value.empty(); }) {
            if (value.empty()) return;
          } else if constexpr (std::is_same_v<Value, bool> || std::is_same_v<Value, ObjectId>) {
            if (value == Value{}) return;
          }
          text += fmt::format(" {}={}", field, shown(value));
        });
      },
      action);
  return text;
}

std::string runner(const Command& command) {
  if (command.pid.value == 0) return "stasis";
  if (command.tid.value == 0 || command.tid.value == command.pid.value) return fmt::format("{}", command.pid);
  return fmt::format("{}/{}", command.pid, command.tid);
}

std::string quoted(std::string_view text) {
  std::string safe;
  for (const char c : text) {
    if (c == '"' || c == '\\') safe += '\\';
    safe += c;
  }
  return safe;
}

}  // namespace

std::string_view name_of(const Action& action) {
  return std::visit([](const auto& one) { return std::remove_cvref_t<decltype(one)>::name; }, action);
}

std::optional<Pid> created_by(const Action& action) {
  if (const auto* fork = std::get_if<Fork>(&action)) return fork->child_pid;
  if (const auto* clone = std::get_if<Clone>(&action)) return clone->child_pid;
  return std::nullopt;
}

std::string to_text(const Action& action) { return fmt::format("{}{}", name_of(action), details(action)); }

std::string to_text(const Program& program) {
  std::string text;
  for (size_t i = 0; i < program.commands.size(); ++i) {
    const auto& command = program.commands[i];
    text +=
        fmt::format("{:5}  {:>11}  {:<17}{}\n", i, runner(command), name_of(command.action), details(command.action));
  }
  return text;
}

std::string to_dot(const Program& program) {
  std::string text = "digraph program {\n  node [shape=box, fontname=\"monospace\"];\n";
  std::map<std::string, size_t> last;                // of a runner
  std::map<std::string, std::vector<size_t>> posts;  // of an event
  for (size_t i = 0; i < program.commands.size(); ++i) {
    const auto& command = program.commands[i];
    const std::string who = runner(command);
    text += fmt::format("  c{} [label=\"{}: {}{}\"];\n", i, quoted(who), name_of(command.action),
                        quoted(details(command.action).substr(0, 60)));
    if (last.contains(who)) text += fmt::format("  c{} -> c{};\n", last[who], i);
    last[who] = i;
    if (const auto child = created_by(command.action)) last[fmt::format("{}", *child)] = i;
    if (const auto* thread = std::get_if<StartThread>(&command.action))
      last[fmt::format("{}/{}", command.pid, thread->tid)] = i;
    if (const auto* post = std::get_if<Post>(&command.action)) posts[post->event].push_back(i);
    if (const auto* await = std::get_if<Await>(&command.action)) {
      for (const size_t from : posts[await->event]) text += fmt::format("  c{} -> c{} [style=dashed];\n", from, i);
    }
    if (const auto* wait = std::get_if<Wait>(&command.action)) {
      const auto end = last.find(fmt::format("{}", wait->child_pid));
      if (end != last.end()) text += fmt::format("  c{} -> c{} [style=dashed];\n", end->second, i);
    }
  }
  return text + "}\n";
}

std::string to_form(const Program& program, std::string_view form) {
  if (form == "json") return to_json(program);
  return form == "dot" ? to_dot(program) : to_text(program);
}

}  // namespace stasis::plan
