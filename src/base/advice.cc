#include "base/advice.h"

#include <cctype>

namespace stasis {

std::string with_advice(std::string problem, std::string_view advice) {
  if (advice.empty()) return problem;
  const auto is = [&](int (*kind)(int), size_t at) {
    return at < advice.size() && kind(static_cast<unsigned char>(advice[at])) != 0;
  };
  const bool is_word = is(std::isupper, 0) && is(std::islower, 1);
  problem += "; ";
  problem += is_word ? static_cast<char>(std::tolower(static_cast<unsigned char>(advice[0]))) : advice[0];
  problem += advice.substr(1);
  return problem;
}

}  // namespace stasis
