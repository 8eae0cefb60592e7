#include "cli/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

namespace stasis::cli {

std::optional<unsigned> terminal_width(int fd) {
  winsize size{};
  if (ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return std::nullopt;
  return size.ws_col;
}

std::string progress_line(const std::string& title, uint64_t done, uint64_t total, unsigned width) {
  const unsigned percent = total == 0 ? 100 : static_cast<unsigned>(std::min<uint64_t>(done, total) * 100 / total);
  const std::string numbers = fmt::format(" {:3}%  {}/{} MiB", percent, done >> 20, total >> 20);
  const size_t fixed = title.size() + numbers.size() + 3;
  std::string line;
  if (fixed + 5 <= width) {
    const size_t room = std::min<size_t>(width - fixed, 50);
    const size_t filled = room * percent / 100;
    line = fmt::format("{} [{}{}]{}", title, std::string(filled, '#'), std::string(room - filled, ' '), numbers);
  } else {
    line = fmt::format("{:3}%", percent);
  }
  line.resize(std::min<size_t>(line.size(), width));
  return line;
}

Progress::Progress(std::string title)
    : title_(std::move(title)),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {}

Progress::~Progress() {
  if (drawn_) fmt::print(stderr, "\r\033[K");
}

void Progress::show(uint64_t done, uint64_t total) {
  using namespace std::chrono_literals;
  if (!terminal_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - start_ < 500ms || now - last_ < 100ms) return;
  last_ = now;
  drawn_ = true;
  // One column is left free: writing the last one makes some terminals wrap.
  fmt::print(stderr, "\r\033[K{}", progress_line(title_, done, total, terminal_width(STDERR_FILENO).value_or(80) - 1));
}

}  // namespace stasis::cli
