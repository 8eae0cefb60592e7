// Pages that come later, of a restore with --lazy-pages: which they are, and the command that owes them (OWE_PAGES).
#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "plan/emission.h"

namespace stasis::plan {

/// Everything else is loaded before anything runs: shared memory, files' pages, huge pages, locked memory, what a child
/// shares copy-on-write, and the few pages that the kernel, or stasis itself, touches where nobody can wait.
class LazyMemory {
 public:
  /// Nothing waits unless the options say so. `heirs` inherit pages of their parents.
  LazyMemory(const Emission&, const std::set<Pid>& heirs);

  /// Cuts a stretch of pages of a mapping into those that are needed at once, which `visit` gets, and others, which are
  /// owed from here on.
  template <typename Visit>
  void each_needed(const model::AddressSpace& space, const model::Mapping& mapping, const PageLocation& page,
                   Visit visit) {
    if (!may_wait(mapping)) return visit(page);
    const auto& needed = needed_[space.id];
    auto next = std::ranges::upper_bound(needed, page.range.begin, {}, &AddressRange::end);
    uint64_t at = page.range.begin;
    for (; next != needed.end() && next->begin < page.range.end; ++next) {
      PageLocation part = page;
      part.range = {std::max(at, next->begin), std::min(next->end, page.range.end)};
      part.offset += part.range.begin - page.range.begin;
      owe(space.id, mapping.range, {at, part.range.begin});
      visit(part);
      at = part.range.end;
    }
    owe(space.id, mapping.range, {at, page.range.end});
  }

  /// The command, if anything is owed: the last that has to do with the contents of that memory.
  void plan(Emission&, const model::Task&);

 private:
  bool may_wait(const model::Mapping&) const;
  void need_pages_of(const model::Thread&, ObjectId space);
  void owe(ObjectId space, AddressRange mapping, AddressRange pages);

  struct Owed {
    std::vector<uint64_t> mappings, runs;
  };
  bool enabled_;
  std::map<ObjectId, std::vector<AddressRange>> needed_;  ///< at once: ascending, disjoint
  std::map<ObjectId, Owed> owed_;
};

}  // namespace stasis::plan
