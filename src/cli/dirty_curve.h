// The dirtying curve of a tree: how many pages it writes in intervals of different lengths. Forms for people and for
// programs; pure.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace stasis::cli {

struct DirtySample {
  uint64_t microseconds = 0;  ///< how long the interval really was
  uint64_t pages = 0;
};
struct DirtyPoint {
  uint64_t wanted_ms = 0;
  std::vector<DirtySample> samples;
  double mean_pages() const;
  double mean_seconds() const;
};

std::string dirty_table(const std::vector<DirtyPoint>&);
std::string dirty_json(const std::vector<DirtyPoint>&, pid_t root, size_t address_spaces);
/// Bars of at most `width` columns; never narrower than what a number needs.
std::string dirty_plot(const std::vector<DirtyPoint>&, unsigned width);

}  // namespace stasis::cli
