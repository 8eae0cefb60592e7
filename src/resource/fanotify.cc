// fanotify(7).
//
// Like inotify's its marks are set when all else is done, by the paths that lead to what they mark. Events that are
// queued are lost, with a warning; permission events among them are allowed by the kernel when the group goes away.
//
// Cannot be seen: that a group was made without CAP_SYS_ADMIN, so that it is told less of other processes.
#include "resource/fanotify.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/fanotify.h>
#include <sys/syscall.h>

#include <algorithm>

#include "kernel/fdinfo.h"
#include "resource/anonymous_room.h"
#include "resource/watched_file.h"

namespace stasis::resource {
namespace {

using kernel::FanotifyMark;
using plan::call;

constexpr uint32_t mark_ignore = 0x400;     ///< FAN_MARK_IGNORE (Linux 6.0)
constexpr uint32_t mark_evictable = 0x200;  ///< FAN_MARK_EVICTABLE (Linux 5.19)
constexpr uint32_t kept_flags = FAN_MARK_IGNORED_SURV_MODIFY | mark_ignore | mark_evictable;

struct Fanotify final : model::KindValue {
  struct Mark {
    FanotifyMark::Kind kind = FanotifyMark::Kind::inode;
    uint32_t flags = 0, mask = 0, ignored_mask = 0;
    uint32_t mount_id = 0;  ///< not compared: another one after a restart
    WatchedFile file;       ///< of a mount or file system: where it is mounted
    auto key() const { return std::tuple(kind, file.path, file.ghost.value != 0, flags, mask, ignored_mask); }
  };
  std::vector<Mark>& watched() { return marks; }
  const std::vector<Mark>& watched() const { return marks; }

  uint32_t flags = 0;        ///< fanotify_init's
  uint32_t event_flags = 0;  ///< of the files that come with events
  std::vector<Mark> marks;   ///< in a fixed order

  std::string_view kind() const override { return "fanotify"; }
  bool equals(const model::KindValue& other) const override {
    const auto* same = dynamic_cast<const Fanotify*>(&other);
    return same != nullptr && flags == same->flags && event_flags == same->event_flags &&
           std::ranges::equal(marks, same->marks, {}, &Mark::key, &Mark::key);
  }
  std::string describe() const override {
    std::string text = fmt::format("fanotify, flags {:#x}, files {:#x}", flags, event_flags);
    for (const auto& mark : marks)
      text += fmt::format(", {} ({:#x} of kind {}, but {:#x})", name_of(mark.file), mark.mask,
                          static_cast<int>(mark.kind), mark.ignored_mask);
    return text;
  }
};

uint32_t mark_type_of(FanotifyMark::Kind kind) {
  switch (kind) {
    case FanotifyMark::Kind::mount:
      return FAN_MARK_MOUNT;
    case FanotifyMark::Kind::filesystem:
      return FAN_MARK_FILESYSTEM;
    case FanotifyMark::Kind::inode:
      break;
  }
  return FAN_MARK_INODE;
}

class FanotifyRoom final : public AnonymousRoom<fanotify_file_entry, &image::FileRecord::has_ffy,
                                                &image::FileRecord::ffy, &image::FileRecord::mutable_ffy> {
 public:
  FanotifyRoom() : AnonymousRoom("anon_inode:[fanotify]", FANOTIFY) {}
  std::string_view kind() const override { return "fanotify"; }
  bool starts_last(const model::KindState& state) const override { return !state.as<Fanotify>()->marks.empty(); }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    auto state = std::make_shared<Fanotify>();
    const auto found = TRY_IN("look at " + probe.subject, kernel::parse_fanotify(probe.info));
    state->flags = found.flags & ~static_cast<uint32_t>(FAN_CLOEXEC);
    state->event_flags = found.event_flags;
    const auto mounts = found.marks.empty() ? std::vector<kernel::MountInfo>{} : TRY(kernel::read_mountinfo());
    for (const auto& mark : found.marks) {
      WatchedFile file{mark.inode, mark.device, mark.handle, {}};
      file.path = mark.kind == FanotifyMark::Kind::inode ? find_watched(context.policy, mounts, file)
                                                         : mount_point(mark, mounts);
      state->marks.push_back(
          {mark.kind, mark.flags & kept_flags, mark.mask, mark.ignored_mask, mark.mount_id, std::move(file)});
    }
    std::ranges::sort(state->marks, {}, &Fanotify::Mark::key);
    warn_of_events(context, probe);
    return model::KindState{std::move(state)};
  }

  Status finish_capture(CaptureContext& context) const override {
    find_ghosts<Fanotify>(context);
    return {};
  }

  Status finish_decode(model::Application& application) const override { return check_ghosts<Fanotify>(application); }

  void validate(const model::Application&, const model::OpenDescription& description,
                Diagnostics& diagnostics) const override {
    for (const auto& mark : description.state.as<Fanotify>()->marks)
      validate_watched("fanotify", mark.file, diagnostics);
  }

  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      const auto& state = *placement.description->state.as<Fanotify>();
      plan::Perform perform{"fanotify", "", {}, {}, {}};
      perform.calls.push_back(call(SYS_fanotify_init, state.flags, state.event_flags));
      place(placement, perform);
      // It stays in the group's flags even where the file has been made to wait since.
      if ((state.flags & FAN_NONBLOCK) != 0 && settable_flags(placement.description->flags) == 0)
        perform.calls.push_back(call(SYS_fcntl, placement.fd, F_SETFL, 0));
      sink.add(std::move(perform));
    }
    return {};
  }

  void start(const model::Application& application, const model::OpenDescription& description, int fd,
             plan::Sink& sink) const override {
    plan::Perform perform{fmt::format("marks of fanotify {}", fd), "", {}, {}, {}};
    perform.starts.push_back({fd, description.id});
    for (const auto& mark : description.state.as<Fanotify>()->marks) {
      const auto lead = lead_to(application, sink.pid(), mark.file);
      const uint32_t flags = FAN_MARK_ADD | (lead.is_link ? 0 : FAN_MARK_DONT_FOLLOW) | mark_type_of(mark.kind);
      const auto add = [&](uint32_t more, uint32_t mask) {
        if (mask == 0) return;
        perform.calls.push_back(call(SYS_fanotify_mark, fd, flags | more, mask, AT_FDCWD, plan::text(lead.path)));
      };
      add(mark.flags & mark_evictable, mark.mask);
      add(mark.flags | ((mark.flags & mark_ignore) != 0 ? 0 : FAN_MARK_IGNORED_MASK), mark.ignored_mask);
    }
    sink.add(std::move(perform));
  }

 protected:
  Status write(const model::Application&, const model::OpenDescription& description,
               fanotify_file_entry& entry) const override {
    const auto& state = *description.state.as<Fanotify>();
    entry.set_faflags(state.flags), entry.set_evflags(state.event_flags);
    for (const auto& mark : state.marks) {
      auto& record = *entry.add_mark();
      record.set_id(description.id.value), record.set_mflags(mark.flags), record.set_mask(mark.mask);
      record.set_ignored_mask(mark.ignored_mask), record.set_s_dev(mark.file.device);
      if (mark.kind == FanotifyMark::Kind::inode) {
        record.set_type(INODE);
        record.mutable_ie()->set_i_ino(mark.file.inode);
        encode_handle(mark.file, *record.mutable_ie()->mutable_f_handle());
      } else {
        record.set_type(mark.kind == FanotifyMark::Kind::mount ? MOUNT : FILESYSTEM);
        record.mutable_me()->set_mnt_id(mark.mount_id);
        record.mutable_me()->set_path(mark.file.path);
      }
    }
    return {};
  }

  Status read(const image::FileRecord& record, const fanotify_file_entry& entry, model::Application&,
              model::OpenDescription& description) const override {
    auto state = std::make_shared<Fanotify>();
    state->flags = entry.faflags() & ~static_cast<uint32_t>(FAN_CLOEXEC);
    state->event_flags = entry.evflags();
    for (const auto& mark : entry.mark()) {
      Fanotify::Mark made;
      made.flags = mark.mflags() & kept_flags, made.mask = mark.mask(), made.ignored_mask = mark.ignored_mask();
      made.file.device = mark.s_dev();
      if (mark.type() == INODE) {
        if (!mark.has_ie()) return bad_entry(kind(), record, "ffy.mark.ie", "it is missing");
        made.file.inode = mark.ie().i_ino();
        TRY(decode_handle(mark.ie().f_handle(), made.file,
                          fmt::format("files.img, file {}, field ffy.mark.ie.f_handle", record.id())));
      } else {
        made.kind = mark.type() == MOUNT ? FanotifyMark::Kind::mount : FanotifyMark::Kind::filesystem;
        made.mount_id = mark.me().mnt_id();
        made.file.path = mark.me().path();
        if (!is_path(made.file.path)) return bad_entry(kind(), record, "ffy.mark.me.path", "it is no path");
      }
      state->marks.push_back(std::move(made));
    }
    std::ranges::sort(state->marks, {}, &Fanotify::Mark::key);
    description.state = {std::move(state)};
    return {};
  }

 private:
  /// Of a mount or file system: where it is mounted.
  static std::string mount_point(const FanotifyMark& mark, const std::vector<kernel::MountInfo>& mounts) {
    const auto found = std::ranges::find_if(mounts, [&](const kernel::MountInfo& mount) {
      return mark.kind == FanotifyMark::Kind::mount
                 ? static_cast<uint32_t>(mount.id) == mark.mount_id
                 : kernel::kernel_device(mount.device_major, mount.device_minor) == mark.device;
    });
    return found == mounts.end() ? std::string{} : found->point;
  }
};

}  // namespace

const FileRoom& fanotify_room() {
  static const FanotifyRoom room;
  return room;
}

}  // namespace stasis::resource
