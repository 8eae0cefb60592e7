// --inherit-fd: descriptors that stasis was started with take the place of saved ones.
#pragma once

#include <span>
#include <string>

#include "base/diagnostics.h"
#include "base/result.h"
#include "model/application.h"

namespace stasis::resource {

struct GivenDescriptor {
  int fd = -1;
  std::string name;  ///< of what it replaces: FileRoom::names
};

/// "fd[3]:pipe:[4711]"
Result<GivenDescriptor> parse_given(const std::string& option);

/// Marks what is replaced (model::OpenDescription::given). It stays what it is in the caller: its position, its flags
/// where they are about the file. Says which descriptors do not fit, and which nothing asks for.
void give_descriptors(model::Application&, std::span<const GivenDescriptor>, Diagnostics&);

}  // namespace stasis::resource
