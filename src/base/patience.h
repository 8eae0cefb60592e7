// How long to wait for what others do at once.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

namespace stasis {

/// A task that is let run, killed or woken does its part within microseconds, unless the machine has more to do than it
/// can: then it may take seconds. This is how long none may make any headway before it is taken for one that never
/// will.
constexpr std::chrono::seconds patience{30};

/// Of one who looks again and again, soon at first. Counted by his own pauses: while he is stopped himself, or the
/// machine sleeps, no patience is lost.
class Patience {
 public:
  explicit Patience(std::chrono::nanoseconds limit = patience) : left_(limit) {}
  /// Before the next look. false: it has come to its end.
  bool pause() {
    if (left_ <= std::chrono::nanoseconds(0)) return false;
    std::this_thread::sleep_for(next_);
    left_ -= next_;
    next_ = std::min(next_ * 2, longest);
    return true;
  }

 private:
  static constexpr std::chrono::nanoseconds longest = std::chrono::milliseconds(1);
  std::chrono::nanoseconds left_;
  std::chrono::nanoseconds next_ = std::chrono::microseconds(10);
};

}  // namespace stasis
