// Features of the running kernel (and capabilities of ours) that stasis uses, each with a real probe.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace stasis::kernel {

struct Feature {
  std::string name;       ///< "clone3 with set_tid"
  std::string criu_name;  ///< as `criu check --feature` spells it; empty if criu has none
  bool required = false;  ///< without it nothing can be dumped or restored
  std::string used_for;
  std::string cost;                    ///< what is lost without it
  std::function<std::string()> probe;  ///< empty text: it is there; otherwise what is missing
};

/// All of them, in the order in which they are shown. Nothing is probed before `probe` is called.
const std::vector<Feature>& features();

}  // namespace stasis::kernel
