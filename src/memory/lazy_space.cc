#include "memory/lazy_space.h"

#include <algorithm>
#include <variant>

namespace stasis::memory {
namespace {

using kernel::MissingPages;
using Outcome = kernel::MissingPages::Outcome;

constexpr uint64_t largest_step = 256 << 10;  ///< a fault that comes meanwhile waits for about a tenth of a millisecond
constexpr uint64_t first_window = 64 << 10, last_window = 2 << 20;
constexpr size_t most_windows = 64;

}  // namespace

Status LazySpace::answer(std::vector<LazySpace>& children) {
  is_held_up_ = false;
  TRY(take_note(children));
  while (!faults_.empty() && !is_gone_ && !is_held_up_) {
    TRY(answer_fault(faults_.front()));
    if (!is_held_up_) faults_.pop_front();
  }
  return {};
}

Status LazySpace::take_note(std::vector<LazySpace>& children) {
  for (auto& event : TRY(descriptor_.events())) {
    if (const auto* fault = std::get_if<MissingPages::Fault>(&event))
      faults_.push_back(fault->page);
    else if (auto* fork = std::get_if<MissingPages::Fork>(&event))
      children.emplace_back(MissingPages(std::move(fork->child)), source_, owed_);
    else if (const auto* moved = std::get_if<MissingPages::Moved>(&event))
      owed_.move(moved->from, moved->to);
    else if (const auto* gone = std::get_if<MissingPages::Gone>(&event))
      owed_.forget(gone->range);
  }
  return {};
}

Status LazySpace::answer_fault(uint64_t page) {
  const AddressRange range{page, page + page_size};
  if (const auto run = owed_.next(page); run && run->range.begin == page) {
    TRY(fill(*run, page_size));
    if (!is_held_up_) read_ahead(page);
  } else {
    // Never written, discarded since, or there by now.
    const auto filled = TRY(descriptor_.zero(range));
    is_gone_ = filled.outcome == Outcome::gone;
    is_held_up_ = filled.outcome == Outcome::changed;
  }
  if (!is_held_up_) descriptor_.wake(range);
  return {};
}

void LazySpace::read_ahead(uint64_t page) {
  const bool follows = page >= expected_ - page_size && page < expected_ + first_window;
  window_ = follows ? std::min(2 * window_, last_window) : first_window;
  expected_ = page + window_;
  const uint64_t behind = follows ? 0 : window_ / 4;
  ahead_.push_front({page - std::min(page, behind), page + window_});
  if (ahead_.size() > most_windows) ahead_.pop_back();
}

Status LazySpace::fill_some() {
  while (!ahead_.empty()) {
    auto& window = ahead_.front();
    const auto run = owed_.next(window.begin);
    if (!run || run->range.begin >= window.end) {
      ahead_.pop_front();
      continue;
    }
    TRY(fill(*run, std::min(largest_step, window.end - run->range.begin)));
    return {};
  }
  auto run = owed_.next(background_);
  if (!run) run = owed_.next(0);
  if (!run) return {};
  background_ = run->range.begin + TRY(fill(*run, largest_step));
  return {};
}

Result<uint64_t> LazySpace::fill(OwedPages::Run run, uint64_t most) {
  const uint64_t begin = run.range.begin;
  uint64_t length = std::min(run.range.size(), most);
  buffer_.resize(std::max<size_t>(buffer_.size(), length));
  TRY(source_->read(run.source, std::span(buffer_).first(length)));
  uint64_t done = 0, step = length;
  while (done < length && !is_gone_ && !is_held_up_) {
    const auto bytes = ByteView(buffer_).subspan(done, std::min(step, length - done));
    const auto filled = TRY(descriptor_.copy(begin + done, bytes));
    uint64_t settled = filled.bytes;
    if (filled.outcome == Outcome::unmapped && bytes.size() > page_size) {
      step = (bytes.size() / 2 + page_size - 1) & ~(page_size - 1);  // of several mappings by now: each is filled alone
      continue;
    }
    if (filled.outcome == Outcome::present || filled.outcome == Outcome::unmapped) settled = page_size;
    is_held_up_ = filled.outcome == Outcome::changed && filled.bytes == 0;
    is_gone_ = filled.outcome == Outcome::gone;
    owed_.forget({begin + done, begin + done + settled});
    done += settled;
    step = length;
  }
  return done;
}

}  // namespace stasis::memory
