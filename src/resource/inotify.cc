// inotify(7).
//
// A restore watches anew when all else is done: what stasis itself makes, opens and removes is nobody's event. Watch
// descriptors are handed out in ascending order (fs/notify/inotify/inotify_user.c, idr_alloc_cyclic), from where
// INOTIFY_IOC_SETNEXTWD says (a kernel with CONFIG_CHECKPOINT_RESTORE); without it only 1, 2, 3 … can be had. Events
// that are queued cannot be seen without taking them away, and cannot be put back: they are lost, with a warning.
#include "resource/inotify.h"

#include <fmt/format.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <algorithm>

#include "kernel/fdinfo.h"
#include "resource/anonymous_room.h"
#include "resource/watched_file.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::expecting;
using Expected = plan::Expectation::Kind;

constexpr unsigned long set_next_wd = _IOW('I', 0, int32_t);  // INOTIFY_IOC_SETNEXTWD
constexpr uint32_t settable = IN_ALL_EVENTS | IN_UNMOUNT | IN_EXCL_UNLINK | IN_ONESHOT;

struct Inotify final : model::KindValue {
  struct Watch {
    int descriptor = 0;
    uint32_t mask = 0;
    WatchedFile file;
  };
  std::vector<Watch> watches;  ///< by descriptor, ascending

  std::vector<Watch>& watched() { return watches; }
  const std::vector<Watch>& watched() const { return watches; }

  std::string_view kind() const override { return "inotify"; }
  /// Inodes are others when files have been copied.
  bool equals(const model::KindValue& other) const override {
    const auto* inotify = dynamic_cast<const Inotify*>(&other);
    return inotify != nullptr && std::ranges::equal(watches, inotify->watches, [](const Watch& a, const Watch& b) {
             return a.descriptor == b.descriptor && a.mask == b.mask && is_same(a.file, b.file);
           });
  }
  std::string describe() const override {
    std::string text = "inotify";
    for (const auto& watch : watches)
      text += fmt::format(" {}: {} ({:#x})", watch.descriptor, name_of(watch.file), watch.mask);
    return text;
  }
};

class InotifyRoom final : public AnonymousRoom<inotify_file_entry, &image::FileRecord::has_ify, &image::FileRecord::ify,
                                               &image::FileRecord::mutable_ify> {
 public:
  InotifyRoom() : AnonymousRoom("anon_inode:inotify", INOTIFY) {}
  std::string_view kind() const override { return "inotify"; }
  bool starts_last(const model::KindState& state) const override { return !state.as<Inotify>()->watches.empty(); }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    auto state = std::make_shared<Inotify>();
    const auto found = TRY_IN("look at " + probe.subject, kernel::parse_inotify(probe.info));
    const auto mounts = found.empty() ? std::vector<kernel::MountInfo>{} : TRY(kernel::read_mountinfo());
    for (const auto& watch : found) {
      WatchedFile file{watch.inode, watch.device, watch.handle, {}};
      file.path = find_watched(context.policy, mounts, file);
      state->watches.push_back({watch.descriptor, watch.mask, std::move(file)});
    }
    std::ranges::sort(state->watches, {}, &Inotify::Watch::descriptor);
    warn_of_events(context, probe);
    return model::KindState{std::move(state)};
  }

  Status finish_capture(CaptureContext& context) const override {
    find_ghosts<Inotify>(context);
    return {};
  }

  Status finish_decode(model::Application& application) const override { return check_ghosts<Inotify>(application); }

  void validate(const model::Application&, const model::OpenDescription& description,
                Diagnostics& diagnostics) const override {
    for (const auto& watch : description.state.as<Inotify>()->watches)
      validate_watched(fmt::format("inotify, watch {}", watch.descriptor), watch.file, diagnostics);
  }

  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      plan::Perform perform{"inotify", "", {}, {}, {call(SYS_inotify_init1, 0)}};
      place(placement, perform);
      sink.add(std::move(perform));
    }
    return {};
  }

  void start(const model::Application& application, const model::OpenDescription& description, int fd,
             plan::Sink& sink) const override {
    plan::Perform perform{fmt::format("watches of inotify {}", fd), "", {}, {}, {}};
    perform.starts.push_back({fd, description.id});
    for (const auto& watch : description.state.as<Inotify>()->watches) {
      const auto lead = lead_to(application, sink.pid(), watch.file);
      const uint32_t mask = watch.mask | (lead.is_link ? 0 : IN_DONT_FOLLOW);
      perform.calls.push_back(
          expecting(call(SYS_ioctl, fd, set_next_wd, watch.descriptor), Expected::success_or, -ENOTTY));
      perform.calls.push_back(
          expecting(call(SYS_inotify_add_watch, fd, plan::text(lead.path), mask), Expected::exactly, watch.descriptor));
    }
    sink.add(std::move(perform));
  }

 protected:
  Status write(const model::Application&, const model::OpenDescription& description,
               inotify_file_entry& entry) const override {
    for (const auto& watch : description.state.as<Inotify>()->watches) {
      auto& record = *entry.add_wd();
      record.set_id(description.id.value), record.set_wd(static_cast<uint32_t>(watch.descriptor));
      record.set_mask(watch.mask), record.set_ignored_mask(0);
      record.set_i_ino(watch.file.inode), record.set_s_dev(watch.file.device);
      encode_handle(watch.file, *record.mutable_f_handle());
    }
    return {};
  }

  Status read(const image::FileRecord& record, const inotify_file_entry& entry, model::Application&,
              model::OpenDescription& description) const override {
    auto state = std::make_shared<Inotify>();
    for (const auto& wd : entry.wd()) {
      const uint32_t mask = wd.mask() & settable;
      if (wd.wd() == 0 || wd.wd() > INT32_MAX)
        return bad_entry(kind(), record, "ify.wd", fmt::format("{} is no watch descriptor", wd.wd()));
      if ((mask & IN_ALL_EVENTS) == 0)
        return bad_entry(kind(), record, "ify.wd.mask", fmt::format("{:#x} has no events", wd.mask()));
      WatchedFile file{wd.i_ino(), wd.s_dev(), {}, {}};
      TRY(decode_handle(wd.f_handle(), file, fmt::format("files.img, file {}, field ify.wd.f_handle", record.id())));
      state->watches.push_back({static_cast<int>(wd.wd()), mask, std::move(file)});
    }
    std::ranges::sort(state->watches, {}, &Inotify::Watch::descriptor);
    if (std::ranges::adjacent_find(state->watches, {}, &Inotify::Watch::descriptor) != state->watches.end())
      return bad_entry(kind(), record, "ify.wd", "a watch descriptor occurs twice");
    description.state = {std::move(state)};
    return {};
  }
};

}  // namespace

const FileRoom& inotify_room() {
  static const InotifyRoom room;
  return room;
}

}  // namespace stasis::resource
