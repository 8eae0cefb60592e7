// One address space whose pages are put there while its processes run.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "base/result.h"
#include "kernel/missing_pages.h"
#include "memory/lazy_owed.h"
#include "memory/pages.h"

namespace stasis::memory {

class LazySpace {
 public:
  LazySpace(kernel::MissingPages descriptor, std::shared_ptr<PageSource> source, OwedPages owed)
      : descriptor_(std::move(descriptor)), source_(std::move(source)), owed_(std::move(owed)) {}

  int fd() const { return descriptor_.fd(); }
  void owe(AddressRange range) { owed_.owe(range, range.begin); }
  uint64_t owed_bytes() const { return owed_.bytes(); }
  /// Everything is there, or nobody is left who could miss it: the descriptor may be closed.
  bool is_complete() const { return is_gone_ || (owed_.empty() && faults_.empty()); }

  /// Takes note of what has happened and answers all faults. Children that were born meanwhile are appended: each has a
  /// memory of its own from here on, and owes it what its parent lacked.
  Status answer(std::vector<LazySpace>& children);
  /// Whether anybody is left is otherwise found out when pages are put there.
  void look_for_users() { is_gone_ = is_gone_ || descriptor_.is_gone(); }
  /// Puts some pages there that nobody waits for yet: those near the last faults first.
  Status fill_some();
  /// The kernel has begun to change the memory and tells of it in a moment: until then nothing can be put there.
  bool is_held_up() const { return is_held_up_; }

 private:
  Status take_note(std::vector<LazySpace>& children);
  Status answer_fault(uint64_t page);
  /// Puts the first pages of a run there, at most `most` bytes; how many bytes are owed no more, one way or the other.
  Result<uint64_t> fill(OwedPages::Run run, uint64_t most);
  void read_ahead(uint64_t page);

  kernel::MissingPages descriptor_;
  std::shared_ptr<PageSource> source_;
  OwedPages owed_;
  std::deque<uint64_t> faults_;
  std::deque<AddressRange> ahead_;  ///< around the last faults, latest first
  uint64_t window_ = 0;             ///< of reading ahead: grows while faults follow each other
  uint64_t expected_ = 0;           ///< where a fault would continue the last window
  uint64_t background_ = 0;         ///< how far the rest has come
  bool is_gone_ = false, is_held_up_ = false;
  Bytes buffer_;
};

}  // namespace stasis::memory
