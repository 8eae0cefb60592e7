#include "memory/page_fetcher.h"

#include <algorithm>
#include <cerrno>

#include "base/patience.h"
#include "image/page_sink.h"
#include "memory/page_protocol.h"

namespace stasis::memory {
namespace {

using wire::Header;

/// Questions must find room in the buffers of the sockets: the other side does not read while it writes.
constexpr size_t most_questions = 64, kept_for_faults = 32;

std::unexpected<Error> lost(std::string cause, const Stream& stream) {
  return fail(Error::conflict("fetch pages", std::move(cause), stream.peer()).advise("its log may say why"));
}
std::unexpected<Error> ended(const Stream& stream) { return lost("the page server has ended the connection", stream); }

/// A server that ends while questions wait to be read has its connection reset (RFC 9293, 3.10.7.4): the same to us.
template <typename T>
Result<T> unless_ended(Result<T> done, const Stream& stream) {
  if (done) return done;
  const int reason = done.error().errno_value();
  if (reason == ECONNRESET || reason == EPIPE) return ended(stream);
  return fail(std::move(done).error().within("fetch pages"));
}

}  // namespace

bool PageFetcher::has_room(bool is_fault) const {
  if (is_fault) return asked_.size() < most_questions;
  return asked_.size() < most_questions - kept_for_faults && on_the_way_ < window_;
}

Status PageFetcher::ask(const Wanted& wanted) {
  if (asked_.empty()) since_ = Clock::now();
  asked_.push_back(wanted);
  on_the_way_ += wanted.length;
  const Header question{.command = wire::get_pages,
                        .count = wanted.length / page_size,
                        .address = wanted.address,
                        .target = static_cast<uint64_t>(wanted.task)};
  return unless_ended(stream_->write(bytes_of(question)), *stream_);
}

Result<PageFetcher::Answer> PageFetcher::receive() {
  const auto header = TRY(unless_ended(wire::next_header(*stream_), *stream_));
  if (!header) return ended(*stream_);
  const Header& answer = *header;
  if (asked_.empty()) return lost("the page server sends what nobody has asked for", *stream_);
  const Wanted wanted = asked_.front();
  const auto command = static_cast<uint16_t>(answer.command);
  if ((command != wire::add_flagged && command != wire::add_pages) || answer.address != wanted.address ||
      answer.target != static_cast<uint64_t>(wanted.task) || answer.count > wanted.length / page_size)
    return lost("the answer has nothing to do with the question", *stream_);
  if (answer.count == 0) return lost("the page server does not have the pages that the images lack", *stream_);
  const uint64_t size = answer.count * page_size;
  buffer_.resize(std::max<size_t>(buffer_.size(), size));
  const auto bytes = std::span(buffer_).first(size);
  TRY(unless_ended(stream_->read(bytes), *stream_));
  asked_.pop_front();
  on_the_way_ -= wanted.length;
  window_ = std::min(window_ + answer.count * page_size, largest_window);
  since_ = Clock::now();
  return Answer{wanted, bytes};
}

Status PageFetcher::check_patience() const {
  if (asked_.empty() || Clock::now() < since_ + patience) return {};
  return fail(Error::conflict("fetch pages", "the page server does not answer any more", stream_->peer()));
}

Status PageFetcher::end() {
  while (is_waiting()) TRY(receive());  // of memory that nobody has any more
  TRY(wire::ask<int32_t>(*stream_, {.command = wire::close}));
  return stream_->finish();
}

}  // namespace stasis::memory
