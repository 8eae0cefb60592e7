// Trees and Programs as flat sequences of words from a small vocabulary, for models that learn to reconstruct trees.
//
// A tree begins with "tree", or "tree init" if its root is the init of a pid namespace. A process is "(", its
// attributes, its children, ")". Pids are not written: processes are numbered as they begin, from 1 (init) or 2.
//   session N | session self, group N | group self    as the parent's unless given
//   namespace self (begins a pid namespace) | namespace N, births N (where its children are born) likewise
//   in N: the namespace that its own lies in, if that is not its parent's
//   stopped | zombie exit N | zombie signal N, subreaper, threads N (how many beside the first)
//   terminal (that of its session), foreground N (of a leader whose own group is not in the foreground; 0: nobody is)
// After the root come dead leaders of nested pid namespaces: dead N namespace M. Ids in nested namespaces are not
// written: they follow from the others (plan/nested_numbers.h).
// A Program begins with "program". A command is its name, then names and values of its fields as in JSON, then ";".
// Numbers are their decimal digits, one word each, "-" before a negative one. Values are numbers, true, false, null,
// [ value , value ], { name value name value }, and strings: " then a word for each byte, "'" and the character or "\"
// and two hexadecimal digits, then ".
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "model/application.h"
#include "plan/program.h"

namespace stasis::plan {

using Tokens = std::vector<std::string>;

/// Of a canonical tree (plan/shape.h): ids of dead leaders follow those of processes, tids follow both.
Tokens tree_tokens(const model::Application& canonical);
Tokens program_tokens(const Program&);

/// Errors name the word by its index.
Result<std::variant<model::Application, Program>> from_tokens(const Tokens&);

std::string join(const Tokens&);
Tokens split(std::string_view text);

}  // namespace stasis::plan
