#include "memory/lazy_owed.h"

#include <algorithm>
#include <vector>

namespace stasis::memory {

void OwedPages::owe(AddressRange range, uint64_t source) {
  if (range.empty()) return;
  forget(range);
  pieces_[range.begin] = {range.end, source};
  bytes_ += range.size();
}

void OwedPages::forget(AddressRange range) {
  auto at = pieces_.upper_bound(range.begin);
  if (at != pieces_.begin()) --at;
  while (at != pieces_.end() && at->first < range.end) {
    const auto [begin, piece] = *at;
    if (piece.end <= range.begin) {
      ++at;
      continue;
    }
    at = pieces_.erase(at);
    bytes_ -= std::min(piece.end, range.end) - std::max(begin, range.begin);
    if (begin < range.begin) pieces_[begin] = {range.begin, piece.source};
    if (piece.end > range.end)
      at = pieces_.emplace(range.end, Piece{piece.end, piece.source + (range.end - begin)}).first;
  }
}

void OwedPages::move(AddressRange range, uint64_t to) {
  std::vector<Run> moving;
  for (auto run = next(range.begin); run && run->range.begin < range.end; run = next(run->range.end)) {
    run->range.end = std::min(run->range.end, range.end);
    moving.push_back(*run);
  }
  forget(range);
  forget({to, to + range.size()});
  for (const Run& run : moving) owe({run.range.begin - range.begin + to, run.range.end - range.begin + to}, run.source);
}

std::optional<OwedPages::Run> OwedPages::next(uint64_t address) const {
  auto at = pieces_.upper_bound(address);
  if (at != pieces_.begin() && std::prev(at)->second.end > address) --at;
  if (at == pieces_.end()) return std::nullopt;
  const uint64_t begin = std::max(at->first, address);
  return Run{{begin, at->second.end}, at->second.source + (begin - at->first)};
}

}  // namespace stasis::memory
