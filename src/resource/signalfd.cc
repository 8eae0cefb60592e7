// signalfd(2). Which process's signals are read depends on the reader, so there is nothing but a mask.
#include "resource/signalfd.h"

#include <fmt/format.h>
#include <sys/syscall.h>

#include "kernel/fdinfo.h"
#include "resource/anonymous_room.h"

namespace stasis::resource {
namespace {

using plan::call;

struct Signalfd final : model::KindValue {
  uint64_t mask = 0;

  std::string_view kind() const override { return "signalfd"; }
  bool equals(const model::KindValue& other) const override {
    const auto* same = dynamic_cast<const Signalfd*>(&other);
    return same != nullptr && mask == same->mask;
  }
  std::string describe() const override { return fmt::format("signalfd of {:#x}", mask); }
};

class SignalfdRoom final : public AnonymousRoom<signalfd_entry, &image::FileRecord::has_sgfd, &image::FileRecord::sgfd,
                                                &image::FileRecord::mutable_sgfd> {
 public:
  SignalfdRoom() : AnonymousRoom("anon_inode:[signalfd]", SIGNALFD) {}
  std::string_view kind() const override { return "signalfd"; }
  bool can_be_inherited(const model::OpenDescription&) const override { return true; }

  Result<model::KindState> capture(CaptureContext&, const DescriptorProbe& probe) const override {
    auto state = std::make_shared<Signalfd>();
    state->mask = TRY_IN("look at " + probe.subject, kernel::parse_signalfd(probe.info));
    return model::KindState{std::move(state)};
  }

  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      const auto& state = *placement.description->state.as<Signalfd>();
      plan::Perform perform{state.describe(), "", {}, {}, {}};
      perform.calls.push_back(call(SYS_signalfd4, -1, plan::struct_in(state.mask), sizeof state.mask, 0));
      place(placement, perform);
      sink.add(std::move(perform));
    }
    return {};
  }

 protected:
  Status write(const model::Application&, const model::OpenDescription& description,
               signalfd_entry& entry) const override {
    entry.set_signal_mask(description.state.as<Signalfd>()->mask);
    return {};
  }

  /// Every mask is one: what cannot be waited for the kernel leaves out.
  Status read(const image::FileRecord&, const signalfd_entry& entry, model::Application&,
              model::OpenDescription& description) const override {
    auto state = std::make_shared<Signalfd>();
    state->mask = entry.signal_mask();
    description.state = {std::move(state)};
    return {};
  }
};

}  // namespace

const FileRoom& signalfd_room() {
  static const SignalfdRoom room;
  return room;
}

}  // namespace stasis::resource
