#include "memory/lazy_service.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/patience.h"
#include "kernel/descriptor_limit.h"
#include "memory/lazy_guard.h"

namespace stasis::memory {

LazyService::LazyService(LazyListener listener, int signals, LazyServiceOptions options)
    : listener_(std::move(listener)), signals_(signals), options_(std::move(options)) {
  kernel::raise_descriptor_limit();  // one descriptor for each address space and each process
}

Status LazyService::run() {
  TRY(wait_for_restore());
  if (is_ended_) {
    listener_.close();
    options_.log("Ended before a restore came");
    return {};
  }
  options_.log("A restore has come");
  Status served = serve();
  if (served) return {};
  if (!is_committed_) {
    (void)answer_order(connection_.get(), served.error());  // whoever asks later finds it
    connection_.reset();  // nor need it wait for room in our queue: its tree has to end
  }
  for (LazySpace& space : spaces_) space.give_up_faults();
  const size_t ended = end_watched_processes();
  if (ended == 0) return served;
  return fail(
      Error(served.error()).advise(fmt::format("the restored application, {} processes, has been ended", ended)));
}

Status LazyService::wait_for_restore() {
  while (!connection_.valid() && !is_ended_) {
    wait(-1);
    TRY(take_in());
    if (auto connection = TRY(listener_.accept())) connection_ = std::move(*connection);
  }
  return {};
}

Status LazyService::serve() {
  while (!is_over()) {
    wait(TRY(fill_some()));
    if (is_ended_) heed_signal();
    if (connection_.valid()) TRY(hear());
    TRY(take_in());
    std::vector<LazySpace> children;
    Status answered;
    for (size_t i = 0; i < spaces_.size() && answered; ++i) {
      const bool has_happened = i < is_ready_.size() && is_ready_[i];
      if (has_happened || spaces_[i].is_held_up() || spaces_[i].has_faults()) answered = spaces_[i].answer(children);
    }
    // Also after an error: as long as we have their descriptors, nobody takes what is missing for zeros.
    std::ranges::move(children, std::back_inserter(spaces_));
    TRY(answered);
    if (is_asked_to_commit_ && std::ranges::none_of(spaces_, &LazySpace::has_faults)) TRY(commit());
    if (is_committed_) std::erase_if(spaces_, [](const LazySpace& space) { return space.is_complete(); });
  }
  options_.log("All memory of the restored processes is there");
  // Their tree is complete, whatever becomes of the other one.
  if (const auto ended = end_fetching(); !ended)
    options_.log(fmt::format("The page server could not be told so: {}", ended.error().message()));
  return {};
}

Status LazyService::end_fetching() {
  auto* fetcher = std::exchange(options_.fetcher, nullptr);
  return fetcher == nullptr ? Status{} : fetcher->end();
}

Result<int> LazyService::fill_some() {
  constexpr int not_at_all = 0, a_moment = 1, for_ever = -1, until_we_look_again = 50;
  const bool is_held_up = std::ranges::any_of(spaces_, &LazySpace::is_held_up);
  if (!is_committed_) return is_held_up ? a_moment : for_ever;
  if (options_.only_faults) {
    for (LazySpace& space : spaces_) space.look_for_users();
    return is_held_up ? a_moment : until_we_look_again;
  }
  for (size_t tried = 0; tried < spaces_.size(); ++tried) {
    auto& space = spaces_[turn_++ % spaces_.size()];
    if (!space.is_held_up() && TRY(space.fill_some())) return not_at_all;
  }
  const bool is_on_the_way = options_.fetcher != nullptr && options_.fetcher->is_waiting();
  return is_on_the_way && !is_held_up ? for_ever : a_moment;
}

/// Until something has happened, at most so long.
void LazyService::wait(int timeout_ms) {
  const auto* fetcher = options_.fetcher;
  const int other = connection_.valid() ? connection_.get() : listener_.fd();
  std::vector<pollfd> wanted{{signals_, POLLIN, 0}, {other, POLLIN, 0}};
  wanted.push_back({fetcher == nullptr ? -1 : fetcher->descriptor(), POLLIN, 0});
  const size_t others = wanted.size();
  for (const LazySpace& space : spaces_) wanted.push_back({space.fd(), POLLIN, 0});
  if (fetcher != nullptr && fetcher->is_waiting() && timeout_ms < 0)
    timeout_ms = std::chrono::milliseconds(patience).count();
  has_come_ = fetcher != nullptr && fetcher->has_come();
  const int ready = poll(wanted.data(), wanted.size(), has_come_ ? 0 : timeout_ms);
  is_ready_.assign(spaces_.size(), false);
  if (ready <= 0) return;
  has_come_ = has_come_ || wanted[2].revents != 0;
  for (size_t i = 0; i < spaces_.size(); ++i) is_ready_[i] = wanted[i + others].revents != 0;
  signalfd_siginfo signal{};
  if (wanted[0].revents != 0 && read(signals_, &signal, sizeof signal) == sizeof signal) is_ended_ = true;
}

Status LazyService::take_in() {
  if (options_.fetcher == nullptr) return {};
  if (!has_come_) return options_.fetcher->check_patience();
  const auto answer = TRY(options_.fetcher->receive());
  const auto space = std::ranges::find(spaces_, static_cast<int>(answer.wanted.whose), &LazySpace::fd);
  return space == spaces_.end() ? Status{} : space->arrive(answer);  // who has ended needs none
}

/// What would become of the application without us, nobody can want.
void LazyService::heed_signal() {
  is_ended_ = false;
  options_.log("Told to end: that will be when all memory of the restored processes is there");
}

/// What the restore says, if it says something.
Status LazyService::hear() {
  pollfd wanted{connection_.get(), POLLIN, 0};
  if (poll(&wanted, 1, 0) <= 0) return {};
  auto order = receive_order(connection_.get());
  if (!order) {
    return fail(Error::conflict("serve missing pages", "the restore has ended before its tree ran",
                                error_ ? error_->message() : ""));
  }
  switch (order->kind) {
    case LazyOrder::Kind::address_space:
      begin_space(std::move(*order));
      break;
    case LazyOrder::Kind::runs:
      for (const AddressRange& run : order->runs) {
        if (!spaces_.empty()) spaces_.back().owe(run);
      }
      break;
    case LazyOrder::Kind::process:
      processes_.push_back(std::move(order->descriptor));
      break;
    case LazyOrder::Kind::needed:
      need(*order);
      break;
    case LazyOrder::Kind::commit:
      return take_over();
    case LazyOrder::Kind::complete:
      connection_.reset();
      break;
    case LazyOrder::Kind::hello:
      break;
  }
  return {};
}

void LazyService::need(const LazyOrder& order) {
  if (error_) return;
  for (LazySpace& space : spaces_) {
    for (const AddressRange& range : order.runs) {
      if (space.task() == order.owner) space.need(range);
    }
  }
}

/// The first page that is asked for tells the other side that its tree must not go on from here on, whatever becomes
/// of us (docs/lazy-pages.md). If there is none, it need not wait any longer.
Status LazyService::take_over() {
  is_asked_to_commit_ = true;
  if (options_.fetcher == nullptr || error_) return {};
  for (LazySpace& space : spaces_) {
    if (const auto page = space.first_elsewhere()) {
      space.need(*page);
      return {};
    }
  }
  return end_fetching();
}

Status LazyService::commit() {
  is_asked_to_commit_ = false;
  TRY_IN("answer the restore", answer_order(connection_.get(), error_));
  if (error_) return fail(std::move(*error_));
  is_committed_ = true;
  uint64_t owed = 0;
  for (const LazySpace& space : spaces_) owed += space.owed_bytes();
  options_.log(fmt::format("The tree runs; {} KiB are to come in {} address spaces", owed >> 10, spaces_.size()));
  return {};
}

void LazyService::begin_space(LazyOrder order) {
  auto source = options_.source(order.owner);
  if (!source) {
    if (!error_) error_ = Error(source.error()).within(fmt::format("find the memory of task {}", order.owner));
    source = LazySource{order.owner, std::make_shared<FilePages>(-1, ""), {}};
  }
  spaces_.emplace_back(kernel::MissingPages(std::move(order.descriptor)), std::move(*source), OwedPages());
}

}  // namespace stasis::memory
