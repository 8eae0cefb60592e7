// Waiting for something that another process is about to do.
#pragma once

#include <unistd.h>

#include <chrono>

namespace stasis {

/// true as soon as the condition holds. The patience ends waiting for what never comes; it decides nothing about speed:
/// a loaded machine may let a process wait for many seconds.
template <typename Condition>
bool eventually(Condition condition, std::chrono::seconds patience = std::chrono::seconds(60)) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    usleep(200);
  }
  return true;
}

}  // namespace stasis
