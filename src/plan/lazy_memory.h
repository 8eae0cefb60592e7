// Pages that come later, of a restore with --lazy-pages: which they are, and the command that owes them (OWE_PAGES).
#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "plan/emission.h"

namespace stasis::plan {

/// By address space: ascending, disjoint ranges.
using RangesOfSpaces = std::map<ObjectId, std::vector<AddressRange>>;

/// The parts of a range that lie in none of some others (ascending, disjoint), and those that do, in order.
template <typename Outside, typename Inside>
void divide(AddressRange range, const std::vector<AddressRange>& others, Outside outside, Inside inside) {
  uint64_t at = range.begin;
  auto next = std::ranges::upper_bound(others, at, {}, &AddressRange::end);
  for (; next != others.end() && next->begin < range.end; ++next) {
    const AddressRange common{std::max(at, next->begin), std::min(next->end, range.end)};
    if (at < common.begin) outside(AddressRange{at, common.begin});
    inside(common);
    at = common.end;
  }
  if (at < range.end) outside(AddressRange{at, range.end});
}

/// What everything else must have before it runs: what the memory's `heirs` inherit copy-on-write from their parents,
/// and the few pages that the kernel, or stasis itself, touches where nobody can wait.
RangesOfSpaces needed_at_once(const model::Application&, const std::set<Pid>& heirs);
/// Whether pages of the mapping can come later: not those of shared memory and files, huge pages, and locked memory.
bool can_wait(const model::Mapping&);
/// Where a dump may leave pages out because every restore can let them come later.
RangesOfSpaces pages_that_can_wait(const model::Application&);

class LazyMemory {
 public:
  /// Nothing waits unless the options say so. `heirs` inherit pages of their parents.
  LazyMemory(const Emission&, const std::set<Pid>& heirs);

  /// Cuts a stretch of pages of a mapping into those that are needed at once, which `visit` gets, and others, which are
  /// owed from here on.
  template <typename Visit>
  void each_needed(const model::AddressSpace& space, const model::Mapping& mapping, const PageLocation& page,
                   Visit visit) {
    if (!enabled_ || !can_wait(mapping)) return visit(page);
    if (page.is_elsewhere()) return owe(space.id, mapping.range, page.range);  // LazyDaemon::need
    divide(
        page.range, needed_[space.id], [&](AddressRange rest) { owe(space.id, mapping.range, rest); },
        [&](AddressRange needed) {
          PageLocation part = page;
          part.range = needed;
          part.offset += needed.begin - page.range.begin;
          visit(part);
        });
  }

  /// The command, if anything is owed: the last that has to do with the contents of that memory.
  void plan(Emission&, const model::Task&);

 private:
  void owe(ObjectId space, AddressRange mapping, AddressRange pages);

  struct Owed {
    std::vector<uint64_t> mappings, runs;
  };
  bool enabled_;
  RangesOfSpaces needed_;  ///< at once
  std::map<ObjectId, Owed> owed_;
};

}  // namespace stasis::plan
