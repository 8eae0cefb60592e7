#include "cli/fault_points.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <cstdio>
#include <cstdlib>

namespace stasis::cli {
namespace {

struct Fault {
  std::string_view point;
  int signal = SIGKILL;
  std::atomic<int> remaining{1};  ///< times that the point is passed until then

  explicit Fault(std::string_view text) {
    constexpr std::string_view stop = "stop@";
    if (text.starts_with(stop)) {
      signal = SIGSTOP;
      text.remove_prefix(stop.size());
    }
    const size_t colon = text.find(':');
    point = text.substr(0, colon);
    if (colon == std::string_view::npos) return;
    int count = 1;
    std::from_chars(text.data() + colon + 1, text.data() + text.size(), count);
    remaining = count;
  }
};

}  // namespace

void fault_point(std::string_view point) {
  static const char* const wanted = std::getenv("STASIS_FAULT");
  if (wanted == nullptr) return;
  static Fault fault{std::string_view(wanted)};
  if (fault.point == "list") {
    dprintf(STDERR_FILENO, "%.*s\n", static_cast<int>(point.size()), point.data());
  } else if (fault.point == point && --fault.remaining == 0) {
    kill(getpid(), fault.signal);
  }
}

}  // namespace stasis::cli
