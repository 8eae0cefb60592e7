// Named points of a dump at which tests kill or stop stasis.
#pragma once

#include <string_view>

namespace stasis::cli {

/// Does nothing unless the environment says STASIS_FAULT=<point>[:<count>]: then the process kills itself with SIGKILL
/// when the point is passed for the count-th time (default: the first). STASIS_FAULT=stop@<point>[:<count>] stops it
/// there by SIGSTOP instead, until somebody lets it go on; STASIS_FAULT=list prints every point passed.
void fault_point(std::string_view point);

}  // namespace stasis::cli
