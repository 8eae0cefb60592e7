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
  return answer_faults();
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

void LazySpace::need(AddressRange range) {
  for (auto run = owed_.next(range.begin); run && run->range.begin < range.end; run = owed_.next(run->range.end)) {
    for (uint64_t page = run->range.begin; page < std::min(run->range.end, range.end); page += page_size)
      faults_.push_back(page);
  }
}

void LazySpace::give_up_faults() {
  for (const uint64_t page : faults_) descriptor_.wake({page, page + page_size});
  faults_.clear();
}

Status LazySpace::answer_faults() {
  for (auto fault = faults_.begin(); fault != faults_.end() && !is_gone_ && !is_held_up_;)
    fault = TRY(answer_fault(*fault)) ? faults_.erase(fault) : std::next(fault);
  return {};
}

Result<bool> LazySpace::answer_fault(uint64_t page) {
  const AddressRange range{page, page + page_size};
  if (auto run = owed_.next(page); run && run->range.begin == page) {
    run->range = range;
    if (!TRY(answer_owed(*run))) return false;
  } else {
    // Never written, discarded since, or there by now.
    const auto filled = TRY(descriptor_.zero(range));
    is_gone_ = filled.outcome == Outcome::gone;
    is_held_up_ = filled.outcome == Outcome::changed;
  }
  if (!is_held_up_) descriptor_.wake(range);
  return !is_held_up_;
}

/// False: it is on its way, or something else comes first.
Result<bool> LazySpace::answer_owed(const OwedPages::Run& run) {
  if (!stretch_from(run.source).is_elsewhere) {
    TRY(bring(run, page_size));
    if (!is_held_up_) read_ahead(run.range.begin);
    return !is_held_up_;
  }
  source_.fetcher->note_fault();
  if (asked_at(run.range.begin) != nullptr || !source_.fetcher->has_room(true)) return false;
  TRY(ask(run));
  read_ahead(run.range.begin);
  return false;
}

void LazySpace::read_ahead(uint64_t page) {
  const bool follows = page >= expected_ - page_size && page < expected_ + first_window;
  window_ = follows ? std::min(2 * window_, last_window) : first_window;
  expected_ = page + window_;
  const uint64_t behind = follows ? 0 : window_ / 4;
  ahead_.push_front({page - std::min(page, behind), page + window_});
  if (ahead_.size() > most_windows) ahead_.pop_back();
}

Result<bool> LazySpace::fill_some() {
  for (; !ahead_.empty(); ahead_.pop_front()) {
    const auto& window = ahead_.front();
    if (const auto run = next_to_bring(window)) return TRY(bring(*run, std::min(largest_step, run->range.size()))) > 0;
  }
  auto run = next_to_bring({background_, UINT64_MAX});
  if (!run) run = next_to_bring({0, background_});
  if (!run) return false;
  const uint64_t brought = TRY(bring(*run, largest_step));
  background_ = run->range.begin + brought;
  return brought > 0;
}

std::optional<OwedPages::Run> LazySpace::next_to_bring(AddressRange range) const {
  for (uint64_t at = range.begin;;) {
    auto run = owed_.next(at);
    if (!run || run->range.begin >= range.end) return std::nullopt;
    run->range.end = std::min(run->range.end, range.end);
    if (const auto* asked = asked_at(run->range.begin)) {
      at = asked->range.end;
      continue;
    }
    for (const auto& asked : asked_) {
      if (asked.range.begin > run->range.begin) run->range.end = std::min(run->range.end, asked.range.begin);
    }
    return run;
  }
}

const OwedPages::Run* LazySpace::asked_at(uint64_t address) const {
  const auto found = std::ranges::find_if(asked_, [&](const auto& run) { return run.range.contains(address); });
  return found == asked_.end() ? nullptr : &*found;
}

LazySpace::Stretch LazySpace::stretch_from(uint64_t source) const {
  const auto range = std::ranges::upper_bound(source_.elsewhere, source, {}, &AddressRange::end);
  if (range == source_.elsewhere.end()) return {false, UINT64_MAX};
  const bool is_elsewhere = range->begin <= source;
  return {is_elsewhere, (is_elsewhere ? range->end : range->begin) - source};
}

std::optional<AddressRange> LazySpace::first_elsewhere() const {
  for (auto run = owed_.next(0); run; run = owed_.next(run->range.end)) {
    const auto [is_elsewhere, length] = stretch_from(run->source);
    const uint64_t page = run->range.begin + (is_elsewhere ? 0 : length);
    if (is_elsewhere || length < run->range.size()) return AddressRange{page, page + page_size};
  }
  return std::nullopt;
}

Result<uint64_t> LazySpace::bring(const OwedPages::Run& run, uint64_t most) {
  const auto stretch = stretch_from(run.source);
  const uint64_t length = std::min({run.range.size(), most, stretch.length});
  const OwedPages::Run part{{run.range.begin, run.range.begin + length}, run.source};
  if (stretch.is_elsewhere) {
    if (!source_.fetcher->has_room(false)) return 0;
    TRY(ask(part));
    return length;
  }
  buffer_.resize(std::max<size_t>(buffer_.size(), length));
  TRY(source_.images->read(run.source, std::span(buffer_).first(length)));
  return put(part, ByteView(buffer_).first(length));
}

Status LazySpace::ask(const OwedPages::Run& run) {
  asked_.push_back(run);
  return source_.fetcher->ask(
      {static_cast<uint64_t>(fd()), run.range.begin, source_.task, run.source, run.range.size()});
}

Status LazySpace::arrive(const PageFetcher::Answer& answer) {
  const auto& wanted = answer.wanted;
  std::erase_if(asked_, [&](const auto& run) { return run.range.begin == wanted.to && run.source == wanted.address; });
  const uint64_t end = wanted.to + answer.bytes.size();
  for (uint64_t at = wanted.to; at < end && !is_gone_ && !is_held_up_;) {
    auto run = owed_.next(at);
    if (!run || run->range.begin >= end) break;
    run->range.end = std::min(run->range.end, end);
    const uint64_t inside = run->range.begin - wanted.to;
    if (wanted.task == source_.task && run->source == wanted.address + inside)
      TRY(put(*run, answer.bytes.subspan(inside, run->range.size())));
    at = run->range.end;
  }
  return answer_faults();
}

Result<uint64_t> LazySpace::put(const OwedPages::Run& run, ByteView bytes) {
  const uint64_t begin = run.range.begin, length = bytes.size();
  uint64_t done = 0, step = length;
  while (done < length && !is_gone_ && !is_held_up_) {
    const auto piece = bytes.subspan(done, std::min(step, length - done));
    const auto filled = TRY(descriptor_.copy(begin + done, piece));
    uint64_t settled = filled.bytes;
    if (filled.outcome == Outcome::unmapped && piece.size() > page_size) {
      step = (piece.size() / 2 + page_size - 1) & ~(page_size - 1);  // of several mappings by now: each is filled alone
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
