// eventfd(2).
//
// The counter is never read, which would reset it: fdinfo shows it.
#include "resource/eventfd.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

#include "kernel/fdinfo.h"
#include "resource/anonymous_room.h"

namespace stasis::resource {
namespace {

using plan::call;

/// The highest counter that write(2) leads to. One more means that the kernel has counted beyond it (eventfd(2),
/// POLLERR).
constexpr uint64_t highest = ~uint64_t{0} - 1;

struct Eventfd final : model::KindValue {
  uint64_t counter = 0;
  bool semaphore = false;

  std::string_view kind() const override { return "eventfd"; }
  bool equals(const model::KindValue& other) const override {
    const auto* same = dynamic_cast<const Eventfd*>(&other);
    return same != nullptr && counter == same->counter && semaphore == same->semaphore;
  }
  std::string describe() const override {
    return fmt::format("eventfd at {}{}", counter, semaphore ? ", semaphore" : "");
  }
};

class EventfdRoom final : public AnonymousRoom<eventfd_file_entry, &image::FileRecord::has_efd, &image::FileRecord::efd,
                                               &image::FileRecord::mutable_efd> {
 public:
  EventfdRoom() : AnonymousRoom("anon_inode:[eventfd]", EVENTFD) {}
  std::string_view kind() const override { return "eventfd"; }
  bool can_be_inherited(const model::OpenDescription&) const override { return true; }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    const auto info = TRY_IN("look at " + probe.subject, kernel::parse_eventfd(probe.info));
    auto state = std::make_shared<Eventfd>();
    state->counter = info.counter, state->semaphore = info.semaphore.value_or(false);
    if (!info.semaphore) {
      context.diagnostics.warn(probe.subject, "this kernel does not tell whether it is a semaphore (EFD_SEMAPHORE)",
                               "it will be none after a restore");
    }
    if (info.counter > highest) {
      context.diagnostics.refuse(probe.subject, "the kernel has counted beyond the highest value: its counter is lost",
                                 "let the program read it, or close it before the dump");
    }
    return model::KindState{std::move(state)};
  }

  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      const auto& state = *placement.description->state.as<Eventfd>();
      plan::Perform perform{state.describe(), "", {}, {}, {}};
      // Only 32 bits can be given at once (eventfd2(2)); what is missing is written: from 0 that never blocks.
      perform.calls.push_back(call(SYS_eventfd2, 0, state.semaphore ? EFD_SEMAPHORE : 0));
      place(placement, perform);
      if (state.counter != 0) {
        perform.calls.push_back(
            call(plan::Call::write_fully, placement.fd, plan::struct_in(state.counter), sizeof state.counter, ~0ull));
      }
      sink.add(std::move(perform));
    }
    return {};
  }

 protected:
  Status write(const model::Application&, const model::OpenDescription& description,
               eventfd_file_entry& entry) const override {
    const auto& state = *description.state.as<Eventfd>();
    entry.set_counter(state.counter);
    if (state.semaphore) entry.set_semaphore(true);
    return {};
  }

  Status read(const image::FileRecord& record, const eventfd_file_entry& entry, model::Application&,
              model::OpenDescription& description) const override {
    auto state = std::make_shared<Eventfd>();
    state->counter = entry.counter(), state->semaphore = entry.semaphore();
    if (state->counter > highest)
      return bad_entry(kind(), record, "efd.counter", fmt::format("{:#x} is beyond the highest", state->counter));
    description.state = {std::move(state)};
    return {};
  }
};

}  // namespace

const FileRoom& eventfd_room() {
  static const EventfdRoom room;
  return room;
}

}  // namespace stasis::resource
