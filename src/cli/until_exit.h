// Large structures at the end of a command: the kernel takes a whole address space back in a fraction of the time that
// destructors need to free it piece by piece.
#pragma once

#include <memory>
#include <utility>
#include <vector>

namespace stasis::cli {

/// Moves the value to where it lives until the process ends. Reachable, so that leak checkers see no leak.
template <typename T>
T& until_exit(T value) {
  static std::vector<T*> kept;
  return *kept.emplace_back(new T(std::move(value)));
}

}  // namespace stasis::cli
