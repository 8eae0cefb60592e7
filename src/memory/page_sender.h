// Pages for those who ask for them over a stream, in any order: command GET of memory/page_protocol.h.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "image/directory.h"
#include "memory/page_protocol.h"
#include "memory/pages.h"
#include "memory/transfer_stream.h"

namespace stasis::memory {

/// The memory of a task, as far as it is given away. All else is not there.
struct GivenPages {
  std::shared_ptr<PageSource> source;
  std::vector<AddressRange> ranges;  ///< ascending, disjoint; no answer has pages of two of them
};

/// The side that has them.
class PageSender {
 public:
  /// Called once for each task that somebody asks for: an error if there is none.
  using Find = std::function<Result<GivenPages>(pid_t task)>;
  explicit PageSender(Find find) : find_(std::move(find)) {}
  /// Of a checkpoint. The directory must outlive it.
  explicit PageSender(const image::Directory&);

  /// Before the first page is given. An error ends the service.
  void before_first(std::function<Status()> action) { before_first_ = std::move(action); }
  /// Until the client says that it needs no more. `wait`, if it is given, for something to come on the stream: an error
  /// ends the service.
  Status serve(Stream&, const std::function<Status()>& wait = {});
  uint64_t bytes_given() const { return bytes_given_; }

 private:
  Status give(const wire::Header&, Stream&);
  Result<const GivenPages*> pages_of(uint64_t pid);

  Find find_;
  std::function<Status()> before_first_;
  std::map<uint64_t, GivenPages> open_;
  uint64_t bytes_given_ = 0;
};

}  // namespace stasis::memory
