#include "cli/fault_points.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace stasis::cli {

void fault_point(std::string_view point) {
  static const char* const wanted = std::getenv("STASIS_FAULT");
  if (wanted == nullptr) return;
  const std::string_view text = wanted;
  if (text == "list") {
    dprintf(STDERR_FILENO, "%.*s\n", static_cast<int>(point.size()), point.data());
    return;
  }
  const size_t colon = text.find(':');
  if (text.substr(0, colon) != point) return;
  static int remaining = colon == std::string_view::npos ? 1 : std::atoi(wanted + colon + 1);
  if (--remaining == 0) kill(getpid(), SIGKILL);
}

}  // namespace stasis::cli
