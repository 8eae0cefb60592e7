// How a remedy is joined to what went wrong: the same for errors and for diagnostics.
#pragma once

#include <string>
#include <string_view>

namespace stasis {

/// "<problem>; <advice>", one sentence: an advice that begins with a capital goes on in lower case, unless its first
/// word is a name ("CAP_SYS_PTRACE", "SIGCONT").
std::string with_advice(std::string problem, std::string_view advice);

}  // namespace stasis
