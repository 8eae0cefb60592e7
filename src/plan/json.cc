// The JSON form of Programs, derived from the commands' own lists of fields.

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>

#include "plan/json_text.h"
#include "plan/program.h"

namespace stasis::plan {
namespace {

using Json = nlohmann::ordered_json;

// ---- writing

std::string hex(ByteView bytes) {
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const uint8_t byte : bytes) fmt::format_to(std::back_inserter(text), "{:02x}", byte);
  return text;
}

Json json_of(const Argument& argument) {
  if (const auto* value = std::get_if<uint64_t>(&argument)) return static_cast<int64_t>(*value);
  if (const auto* in = std::get_if<In>(&argument)) {
    Json made{{"in", hex(in->bytes)}};
    for (const auto& [at, target] : in->pointers) made["pointers"].push_back({at, target});
    return made;
  }
  if (const auto* out = std::get_if<Out>(&argument)) return {{"out", out->size}};
  if (const auto* both = std::get_if<InOut>(&argument)) return {{"inout", hex(both->bytes)}};
  if (const auto* word = std::get_if<WordOf>(&argument)) return {{"word", {word->relative, word->offset}}};
  return {{"result", std::get<ResultOf>(argument).relative}};
}

Json json_of(const Expectation& expect) {
  switch (expect.kind) {
    case Expectation::Kind::anything:
      return "anything";
    case Expectation::Kind::exactly:
      return {{"exactly", expect.value}};
    case Expectation::Kind::success_or:
      return {{"success_or", expect.value}};
    case Expectation::Kind::success:
      break;
  }
  return "success";
}

Json json_of(const Call& call) {
  Json made;
  made["call"] = call_name(call.number);
  made["args"] = Json::array();
  for (const auto& argument : call.arguments) made["args"].push_back(json_of(argument));
  made["expect"] = json_of(call.expect);
  return made;
}

Json json_of(const Created& created) { return {{"fd", created.fd}, {"description", created.description.value}}; }
template <typename Tag, typename Rep>
Json json_of(StrongInt<Tag, Rep> number) {
  return number.value;
}
template <typename T>
  requires std::is_arithmetic_v<T>
Json json_of(T value) {
  return value;
}
Json json_of(const std::string& value) { return value; }
template <typename T>
Json json_of(const std::vector<T>& values) {
  Json list = Json::array();
  for (const auto& value : values) list.push_back(json_of(value));
  return list;
}

Json json_of(const Command& command) {
  Json made;
  made["command"] = name_of(command.action);
  made["pid"] = command.pid.value;
  if (command.tid.value != 0 && command.tid.value != command.pid.value) made["tid"] = command.tid.value;
  std::visit(
      [&](const auto& action) {
        std::remove_cvref_t<decltype(action)>::fields(action, [&](const char* field, const auto& value) {
          // Empty lists are left out, but for the calls.
          using Value = std::remove_cvref_t<decltype(value)>;
          if constexpr (requires { value.empty(); } && !std::is_same_v<Value, std::string>) {
            if (value.empty() && std::string_view(field) != "calls") return;
          }
          made[field] = json_of(value);
        });
      },
      command.action);
  return made;
}

// ---- reading: every mismatch is an error that names the command's index and the field

/// Thrown inside this file only; from_json turns it into an Error.
struct Mismatch {
  std::string text;
};

[[noreturn]] void mismatch(std::string text) { throw Mismatch{std::move(text)}; }

template <typename T>
T integer(const Json& json) {
  if (!json.is_number_integer()) mismatch("is not an integer");
  if constexpr (std::is_unsigned_v<T>) {
    if (json.is_number_unsigned() || json.get<int64_t>() >= 0) {
      const auto value = json.get<uint64_t>();
      if (value > std::numeric_limits<T>::max()) mismatch("is out of range");
      return static_cast<T>(value);
    }
    mismatch("is negative");
  } else {
    const auto value = json.get<int64_t>();
    if (json.is_number_unsigned() &&
        json.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      mismatch("is out of range");
    }
    if (value < std::numeric_limits<T>::min() || value > std::numeric_limits<T>::max()) mismatch("is out of range");
    return static_cast<T>(value);
  }
}

Bytes bytes_from(const Json& json) {
  if (!json.is_string()) mismatch("is not a string of hexadecimal digits");
  const auto text = json.get<std::string>();
  const auto digit = [](char c) -> int {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    mismatch("is not a string of hexadecimal digits");
  };
  if (text.size() % 2 != 0) mismatch("has an odd number of hexadecimal digits");
  Bytes bytes;
  for (size_t i = 0; i < text.size(); i += 2)
    bytes.push_back(static_cast<uint8_t>(digit(text[i]) * 16 + digit(text[i + 1])));
  return bytes;
}

void read(const Json& json, std::string& to) {
  if (!json.is_string()) mismatch("is not a string");
  to = json.get<std::string>();
}
void read(const Json& json, bool& to) {
  if (!json.is_boolean()) mismatch("is not true or false");
  to = json.get<bool>();
}
template <typename T>
  requires std::is_integral_v<T>
void read(const Json& json, T& to) {
  to = integer<T>(json);
}
template <typename Tag, typename Rep>
void read(const Json& json, StrongInt<Tag, Rep>& to) {
  to.value = integer<Rep>(json);
}

void only_fields(const Json& json, const std::set<std::string>& known) {
  if (!json.is_object()) mismatch("is not an object");
  for (const auto& [key, value] : json.items()) {
    if (!known.contains(key)) mismatch("has an unknown field '" + key + "'");
  }
}
const Json& needed(const Json& json, const char* field) {
  const auto found = json.find(field);
  if (found == json.end()) mismatch(std::string("lacks the field '") + field + "'");
  return *found;
}
template <typename Read>
void in_field(const std::string& field, Read read_it) {
  try {
    read_it();
  } catch (Mismatch& inner) {
    throw Mismatch{"field '" + field + "' " + inner.text};
  }
}

void read(const Json& json, Created& to) {
  only_fields(json, {"fd", "description"});
  read(needed(json, "fd"), to.fd);
  read(needed(json, "description"), to.description);
}

template <typename T>
void read(const Json& json, std::vector<T>& to);

In read_in(const Json& json) {
  In in{bytes_from(json["in"])};
  if (!json.contains("pointers")) return in;
  std::vector<std::vector<uint32_t>> pairs;
  in_field("pointers", [&] { read(json["pointers"], pairs); });
  for (const auto& pair : pairs) {
    if (pair.size() != 2 || uint64_t{pair[0]} + 8 > in.bytes.size() || pair[1] >= in.bytes.size())
      mismatch("has a pointer outside of its bytes");
    in.pointers.emplace_back(pair[0], pair[1]);
  }
  return in;
}

void read(const Json& json, Argument& to) {
  if (json.is_number_integer()) {
    to = json.is_number_unsigned() ? json.get<uint64_t>() : static_cast<uint64_t>(json.get<int64_t>());
    return;
  }
  only_fields(json, {"in", "pointers", "out", "inout", "result", "word"});
  if (json.size() != 1u + json.contains("pointers"))
    mismatch("is neither a number nor one of in, out, inout, result, word");
  if (json.contains("in"))
    to = read_in(json);
  else if (json.contains("inout"))
    to = InOut{bytes_from(json["inout"])};
  else if (json.contains("result"))
    to = ResultOf{integer<int>(json["result"])};
  else if (json.contains("word")) {
    std::vector<int> word;
    in_field("word", [&] { read(json["word"], word); });
    if (word.size() != 2 || word[1] < 0) mismatch("has a word that is not [call, offset]");
    to = WordOf{word[0], static_cast<uint32_t>(word[1])};
  } else {
    constexpr uint64_t largest_answer = 16 << 20;
    const auto size = integer<uint64_t>(json["out"]);
    if (size > largest_answer) mismatch("asks for more than 16 MiB of output");
    to = Out{size};
  }
}

void read(const Json& json, Expectation& to) {
  if (json == "success")
    to = {};
  else if (json == "anything")
    to = {Expectation::Kind::anything, 0};
  else {
    only_fields(json, {"exactly", "success_or"});
    if (json.size() != 1) mismatch("is not an expectation");
    const bool exactly = json.contains("exactly");
    to = {exactly ? Expectation::Kind::exactly : Expectation::Kind::success_or,
          integer<int64_t>(exactly ? json["exactly"] : json["success_or"])};
  }
}

void read(const Json& json, Call& to) {
  only_fields(json, {"call", "args", "expect"});
  std::string name;
  in_field("call", [&] { read(needed(json, "call"), name); });
  const int64_t number = call_number(name);
  if (number < 0) mismatch("names an unknown system call '" + name + "'");
  to.number = static_cast<uint32_t>(number);
  in_field("args", [&] { read(needed(json, "args"), to.arguments); });
  if (to.arguments.size() > 6) mismatch("has more than six arguments");
  if (json.contains("expect")) in_field("expect", [&] { read(json["expect"], to.expect); });
}

template <typename T>
void read(const Json& json, std::vector<T>& to) {
  if (!json.is_array()) mismatch("is not a list");
  to.clear();
  for (const auto& element : json) {
    T value{};
    in_field(std::to_string(to.size()), [&] { read(element, value); });
    to.push_back(std::move(value));
  }
}

template <typename T>
Action read_action(const Json& json) {
  T action;
  std::set<std::string> known{"command", "pid", "tid"};
  T::fields(action, [&](const char* field, auto& value) {
    known.insert(field);
    const auto found = json.find(field);
    if (found != json.end()) {
      in_field(field, [&] { read(*found, value); });
      return;
    }
    if constexpr (requires { T::optional_field; }) {
      if (field == T::optional_field) return;
    }
    // What has a neutral value may be left out: lists, flags, and ids of the model. The rest is essential.
    using Value = std::remove_cvref_t<decltype(value)>;
    constexpr bool optional = std::is_same_v<Value, bool> || std::is_same_v<Value, ObjectId> ||
                              std::is_same_v<Value, uint32_t> || requires { value.empty(); };
    if (!optional || std::is_same_v<Value, std::string>) mismatch(std::string("lacks the field '") + field + "'");
  });
  only_fields(json, known);
  return action;
}

template <size_t... Is>
Action read_action(const Json& json, const std::string& name, std::index_sequence<Is...>) {
  Action action;
  bool known = false;
  const auto attempt = [&]<typename T>() {
    if (known || T::name != name) return;
    known = true;
    action = read_action<T>(json);
  };
  (attempt.template operator()<std::variant_alternative_t<Is, Action>>(), ...);
  if (!known) mismatch("names an unknown command '" + name + "'");
  return action;
}

Command read_command(const Json& json) {
  if (!json.is_object()) mismatch("is not an object");
  Command command;
  std::string name;
  in_field("command", [&] { read(needed(json, "command"), name); });
  // TRANSFER_FD of the published language has no pid of its own: the receiver runs it.
  const char* runner = json.contains("pid") || name != TransferFd::name ? "pid" : "to_pid";
  in_field(runner, [&] { read(needed(json, runner), command.pid); });
  command.tid = leader_of(command.pid);
  if (json.contains("tid") && name != StartThread::name) in_field("tid", [&] { read(json["tid"], command.tid); });
  command.action = read_action(json, name, std::make_index_sequence<std::variant_size_v<Action>>());
  return command;
}

void read_program(const Json& json, Program& program) {
  const Json* commands = &json;
  if (json.is_object()) {
    only_fields(json, {"agent_area", "images_fd", "commands"});
    if (json.contains("agent_area")) {
      std::vector<uint64_t> range;
      in_field("agent_area", [&] { read(json["agent_area"], range); });
      if (range.size() != 2 || range[0] > range[1]) mismatch("field 'agent_area' is not a range");
      program.agent_area = {range[0], range[1]};
    }
    if (json.contains("images_fd")) in_field("images_fd", [&] { read(json["images_fd"], program.images_fd); });
    commands = &needed(json, "commands");
  }
  if (!commands->is_array()) mismatch("is not a list of commands");
  for (const auto& command : *commands) {
    try {
      program.commands.push_back(read_command(command));
    } catch (Mismatch& inner) {
      throw Mismatch{fmt::format("command {} {}", program.commands.size(), inner.text)};
    }
  }
}

}  // namespace

std::string to_json(const Program& program) {
  // One command a line: such a program can be read, searched and compared with line tools.
  std::string text = fmt::format("{{\"agent_area\": [{}, {}], \"images_fd\": {}, \"commands\": [",
                                 program.agent_area.begin, program.agent_area.end, program.images_fd);
  for (size_t i = 0; i < program.commands.size(); ++i) {
    text += i == 0 ? "\n" : ",\n";
    text += json_of(program.commands[i]).dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  return text + "\n]}";
}

Result<Program> from_json(std::string_view text) {
  Program program;
  try {
    read_program(TRY(parse_json(text, "read the program")), program);
  } catch (const Mismatch& mismatch) {
    return fail(Error::invalid("read the program", mismatch.text));
  } catch (const nlohmann::json::exception& problem) {
    return fail(Error::invalid("read the program", problem.what()));
  }
  return program;
}

}  // namespace stasis::plan
