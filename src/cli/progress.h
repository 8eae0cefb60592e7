// A progress bar on stderr when that is a terminal and the transfer is long; silent otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace stasis::cli {

class Progress {
 public:
  explicit Progress(std::string title);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// Bytes done of all. Redraws at most ten times a second, and not at all in the first half second.
  void show(uint64_t done, uint64_t total);

 private:
  std::string title_;
  bool terminal_ = false;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point start_, last_;
};

/// Columns of the terminal behind a descriptor; nothing: it is none, or does not say.
std::optional<unsigned> terminal_width(int fd);

/// One line of at most `width` columns: "dump [#####     ]  50%  512/1024 MiB". Never longer than the terminal.
std::string progress_line(const std::string& title, uint64_t done, uint64_t total, unsigned width);

}  // namespace stasis::cli
