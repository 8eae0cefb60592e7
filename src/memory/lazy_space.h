// One address space whose pages are put there while its processes run.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "kernel/missing_pages.h"
#include "memory/lazy_owed.h"
#include "memory/page_fetcher.h"
#include "memory/pages.h"

namespace stasis::memory {

/// Where the pages of one memory come from.
struct LazySource {
  pid_t task = 0;  ///< whose name it has in the images
  std::shared_ptr<PageSource> images;
  std::vector<AddressRange> elsewhere;  ///< what the images lack; ascending
  PageFetcher* fetcher = nullptr;       ///< who brings that, if there is any
};

class LazySpace {
 public:
  LazySpace(kernel::MissingPages descriptor, LazySource source, OwedPages owed)
      : descriptor_(std::move(descriptor)), source_(std::move(source)), owed_(std::move(owed)) {}

  int fd() const { return descriptor_.fd(); }
  pid_t task() const { return source_.task; }
  void owe(AddressRange range) { owed_.owe(range, range.begin); }
  uint64_t owed_bytes() const { return owed_.bytes(); }
  /// Everything is there, or nobody is left who could miss it: the descriptor may be closed.
  bool is_complete() const { return is_gone_ || (owed_.empty() && faults_.empty()); }

  /// Takes note of what has happened and answers all faults, as far as the pages are at hand. Children that were born
  /// meanwhile are appended: each has a memory of its own from here on, and owes it what its parent lacked.
  Status answer(std::vector<LazySpace>& children);
  /// Brings what is owed in the range as if somebody waited for it.
  void need(AddressRange range);
  bool has_faults() const { return !faults_.empty(); }
  /// Whoever waits meets the page again, and whoever listens then is told of it.
  void give_up_faults();
  /// The first page that is owed and has to be fetched.
  std::optional<AddressRange> first_elsewhere() const;
  /// What was fetched for it comes. What has been moved meanwhile is asked for again.
  Status arrive(const PageFetcher::Answer&);
  /// Whether anybody is left is otherwise found out when pages are put there.
  void look_for_users() { is_gone_ = is_gone_ || descriptor_.is_gone(); }
  /// Puts some pages there that nobody waits for yet, or asks for them: those near the last faults first. False: there
  /// is nothing to be done for now.
  Result<bool> fill_some();
  /// The kernel has begun to change the memory and tells of it in a moment: until then nothing can be put there.
  bool is_held_up() const { return is_held_up_; }

 private:
  Status take_note(std::vector<LazySpace>& children);
  Status answer_faults();
  /// Whether nobody has to wait for the page any more.
  Result<bool> answer_fault(uint64_t page);
  Result<bool> answer_owed(const OwedPages::Run&);
  /// Puts the first pages of a run there, at most `most` bytes, or asks for them; how many bytes these are.
  Result<uint64_t> bring(const OwedPages::Run& run, uint64_t most);
  Status ask(const OwedPages::Run&);
  /// How many bytes are owed no more, one way or the other.
  Result<uint64_t> put(const OwedPages::Run& run, ByteView bytes);
  void read_ahead(uint64_t page);
  struct Stretch {
    bool is_elsewhere = false;
    uint64_t length = 0;  ///< as far as that is so
  };
  Stretch stretch_from(uint64_t source) const;
  const OwedPages::Run* asked_at(uint64_t address) const;
  /// The first pages in the range that are owed and not on their way.
  std::optional<OwedPages::Run> next_to_bring(AddressRange) const;

  kernel::MissingPages descriptor_;
  LazySource source_;
  OwedPages owed_;
  std::deque<uint64_t> faults_;
  std::vector<OwedPages::Run> asked_;  ///< on their way
  std::deque<AddressRange> ahead_;     ///< around the last faults, latest first
  uint64_t window_ = 0;                ///< of reading ahead: grows while faults follow each other
  uint64_t expected_ = 0;              ///< where a fault would continue the last window
  uint64_t background_ = 0;            ///< how far the rest has come
  bool is_gone_ = false, is_held_up_ = false;
  Bytes buffer_;
};

}  // namespace stasis::memory
