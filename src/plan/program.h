// A Program: the ordered commands that rebuild an Application, and what they take for granted.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "plan/command.h"

namespace stasis::plan {

struct Program {
  std::vector<Command> commands;
  AddressRange agent_area;  ///< free in every address space; holds the agent while the program runs
  int images_fd = -1;       ///< the image directory is open under this number in every process until it is READY
};

/// {"agent_area": [begin, end], "images_fd": N, "commands": [{"command": NAME, "pid": P, …}]}. A bare array of
/// commands is accepted on reading. Unknown commands and fields are errors that name index and field.
std::string to_json(const Program& program);
Result<Program> from_json(std::string_view text);

/// A command and its fields, for people.
std::string to_text(const Action& action);
/// One line per command, aligned.
std::string to_text(const Program& program);
std::string to_dot(const Program& program);
/// "json", "text" or "dot".
std::string to_form(const Program& program, std::string_view form);

}  // namespace stasis::plan
