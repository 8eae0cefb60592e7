// How long to wait for what others do at once.
#pragma once

#include <chrono>

namespace stasis {

/// A task that is let run, killed or woken does its part within microseconds, unless the machine has more to do than it
/// can: then it may take seconds. This is how long none may make any headway before it is taken for one that never
/// will.
constexpr std::chrono::seconds patience{30};

}  // namespace stasis
