// Which pages of an address space have been written since the round before.
//
// A *tracker* is the userfaultfd of one address space. At the end of a round every page that a task has made its own
// (the pages that an image stores) is write-protected; whatever ends that protection makes the page count as written:
//
//   a write, also by process_vm_writev(2) or ptrace(2)      the bit is cleared
//   munmap, MADV_DONTNEED, MADV_FREE, truncation            the entry is gone, or without the bit
//   a new mapping in its place, mremap, exec, fork's child  not registered
//   collapse into a huge page                               not protected
//
// So only a page that is both registered and protected is unchanged. Mappings without own pages are not registered:
// what they get until the next round has no bit.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "kernel/process.h"
#include "kernel/userfaultfd.h"

namespace stasis::memory {

struct Tracker {
  std::string suffix;  ///< of the pagemap that the round before has written for this address space; "": none yet
  kernel::Userfaultfd descriptor;
};

/// All trackers of a tree.
class Trackers {
 public:
  const Tracker* add(Tracker tracker) { return all_.emplace_back(std::make_unique<Tracker>(std::move(tracker))).get(); }
  const std::vector<std::unique_ptr<Tracker>>& all() const { return all_; }
  bool empty() const { return all_.empty(); }
  /// The tracker whose address space this is; nullptr: none of them. A pid does not tell: a task that calls exec leaves
  /// its address space behind, perhaps to others. What tells is that a page's protection changes by the tracker's hand.
  /// `page` is one of `tracked` (see OwnPages), of a task that is stopped; it counts as written afterwards.
  Result<const Tracker*> find(int pagemap_fd, uint64_t page, std::string_view likely_suffix) const;
  /// A round is over: those in use, by the names of the pagemaps it writes. The others go.
  void rename(const std::vector<std::pair<const Tracker*, std::string>>& used);

 private:
  std::vector<std::unique_ptr<Tracker>> all_;
};

/// The state of a page in a scan (kernel::PAGE_IS_*) that is unchanged. Of a page that is not in memory the pagemap
/// tells no more than that: what was discarded from a private file mapping leaves the bit in an entry like one that was
/// swapped out (mm/memory.c, pte_install_uffd_wp_if_needed). `is_anonymous`: of memory without a file.
bool is_unchanged(uint64_t categories, bool is_anonymous);

/// A mapping with own pages.
struct Trackable {
  AddressRange range;
  bool is_anonymous = false;  ///< no page in it is a file's: the kernel need not look, which takes most of the time
};

/// The end of a round, for one address space: registers these mappings and protects their own pages. The answer is what
/// was written since the round before, as of that very moment; mappings that cannot be tracked are written wholly.
Result<std::vector<AddressRange>> protect_own_pages(const kernel::Userfaultfd&, int pagemap_fd,
                                                    const std::vector<Trackable>& mappings);

}  // namespace stasis::memory
