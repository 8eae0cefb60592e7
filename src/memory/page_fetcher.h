// Fetches pages from somebody who gives them (memory/page_sender.h): several may be asked for before the first has
// come.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>

#include "base/result.h"
#include "memory/transfer_stream.h"

namespace stasis::memory {

class PageFetcher {
 public:
  explicit PageFetcher(std::unique_ptr<Stream> stream) : stream_(std::move(stream)) {}

  /// Pages that somebody wants. Answers come in the order of the questions.
  struct Wanted {
    uint64_t whose = 0;  ///< for whoever asks: what he wants to be reminded of
    uint64_t to = 0;     ///< the same
    pid_t task = 0;
    uint64_t address = 0;
    uint64_t length = 0;  ///< a multiple of the page size
  };
  /// Whether one more may be asked for. Faults go before, and there are always some that may be.
  bool has_room(bool is_fault) const;
  /// Somebody waits for what will come. Little is to be on its way before the next fault.
  void note_fault() { window_ = smallest_window; }
  Status ask(const Wanted&);

  struct Answer {
    Wanted wanted;
    ByteView bytes;  ///< at least one page, and perhaps fewer than were wanted; until the next answer
  };
  /// Waits for the next answer. An error, also, if nobody has asked and anything comes, or the other side has gone.
  Result<Answer> receive();
  bool is_waiting() const { return !asked_.empty(); }

  /// What there is to poll for receive(), unless something has come already.
  int descriptor() const { return stream_->descriptor(); }
  bool has_come() const { return stream_->has_buffered(); }
  /// An error when nothing has come for too long although it should.
  Status check_patience() const;

  /// Says that no more will be asked for.
  Status end();

 private:
  using Clock = std::chrono::steady_clock;
  std::unique_ptr<Stream> stream_;
  std::deque<Wanted> asked_;
  uint64_t window_ = smallest_window;  ///< how many bytes may be on their way that nobody waits for
  uint64_t on_the_way_ = 0;
  Clock::time_point since_;  ///< when something has come last, or has been asked for while nothing was to come
  Bytes buffer_;

  static constexpr uint64_t smallest_window = 256 << 10, largest_window = 4 << 20;
};

}  // namespace stasis::memory
