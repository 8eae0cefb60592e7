// What remains on the system when a dump has ended the tree: what a restore needs, and what nobody has removed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/result.h"

namespace stasis::model {
struct Application;
}

namespace stasis::resource {

struct Leftover {
  std::string what;     ///< "temporary link /var/link_remap.7 to /var/log"
  std::string removal;  ///< what removes it: a command, or the next restore
  /// Of what stasis itself has placed: removes it, if it is still there, and provably what it should be (images may
  /// name anything). Says whether it was there.
  std::function<Result<bool>()> remove = {};
};

/// From all rooms. The Application is one that was captured, or decoded from images.
std::vector<Leftover> leftovers(const model::Application&);

}  // namespace stasis::resource
