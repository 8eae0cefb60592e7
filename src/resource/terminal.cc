// Terminals.
//
// What is at the other end of a terminal (an emulator, sshd, a console) belongs to somebody else. A shell job
// (--shell-job) therefore gets the terminal that stasis itself runs under: every description is opened anew through
// stasis' own descriptor, with its modes (termios) as they were and, once everything is complete, with the job in the
// foreground. Its window size is its own. A terminal whose session leader is part of the tree cannot be saved: with the
// other end gone, there would be nothing to lead.
#include "resource/terminal.h"

#include <asm/ioctls.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <optional>

#include "resource/descriptors.h"

namespace stasis::resource {
namespace {

using plan::call;

constexpr unsigned console_major = 4, tty_major = 5, first_pts_major = 136, last_pts_major = 143;
constexpr unsigned current_terminal = 0, system_console = 1, pts_master = 2;  ///< minors of tty_major
constexpr unsigned consoles = 64;                                             ///< minors below it: ttyN; above: ttySN
/// CRIU numbers its tty-info records by device: index of the pseudo-terminal, or one of these, times 2.
constexpr uint32_t console_index = 1002, vt_index = 1004, current_index = 1006, serial_index = 1010;
/// tty-info ids are no ids of ours: as objects they have numbers that nothing else has.
constexpr uint32_t terminal_bit = 0x80000000;

/// struct termios of the kernel (include/uapi/asm-generic/termbits.h), which is not that of the C library.
struct KernelTermios {
  uint32_t input = 0, output = 0, control = 0, local = 0;
  uint8_t line = 0;
  std::array<uint8_t, 19> characters{};
  friend bool operator==(const KernelTermios&, const KernelTermios&) = default;
};

std::optional<TtyType> type_of(dev_t device) {
  const unsigned high = major(device), low = minor(device);
  if (high == tty_major && low == current_terminal) return CTTY;
  if (high == tty_major && low == system_console) return CONSOLE;
  if ((high == tty_major && low == pts_master) || (high >= first_pts_major && high <= last_pts_major)) return PTY;
  if (high == console_major) return low < consoles ? VT : SERIAL;
  return std::nullopt;
}

uint32_t info_id(TtyType type, dev_t device) {
  switch (type) {
    case CTTY:
      return current_index << 1;
    case CONSOLE:
      return console_index << 1;
    case VT:
      return vt_index << 1;
    case SERIAL:
      return serial_index << 1;
    default:
      break;
  }
  return ((major(device) - first_pts_major) << 20 | minor(device)) << 1;
}

/// The device.
struct TerminalDevice final : model::KindValue {
  TtyType type = UNKNOWN;
  uint32_t device = 0;  ///< its number
  uint32_t filesystem = 0, uid = 0, gid = 0;
  bool exclusive = false;
  std::optional<KernelTermios> modes, locked_modes;
  winsize window{};      ///< of the terminal it was; not compared
  pid_t foreground = 0;  ///< group in the tree's namespace; 0: none of the tree; not compared
  int inherited = -1;    ///< restore: the descriptor of ours that is a terminal; -1: there is none; not compared

  std::string_view kind() const override { return "terminal device"; }
  bool equals(const model::KindValue& other) const override {
    const auto* terminal = dynamic_cast<const TerminalDevice*>(&other);
    return terminal != nullptr && (type == CTTY) == (terminal->type == CTTY) && modes == terminal->modes &&
           locked_modes == terminal->locked_modes;
  }
  std::string describe() const override { return fmt::format("terminal {}:{}", major(device), minor(device)); }
};

/// What a description refers to. Its path changes when the terminal is another one after the restore.
struct Terminal final : model::KindValue {
  ObjectId device;
  std::string path;

  std::string_view kind() const override { return "terminal"; }
  bool equals(const model::KindValue& other) const override { return dynamic_cast<const Terminal*>(&other) != nullptr; }
  std::string describe() const override { return "terminal " + path; }
};

const TerminalDevice& device_of(const model::Application& application, const model::OpenDescription& description) {
  return *application.objects.at(description.state.as<Terminal>()->device).as<TerminalDevice>();
}

// ---- records

void write_modes(const KernelTermios& modes, termios_entry& entry) {
  entry.set_c_iflag(modes.input), entry.set_c_oflag(modes.output);
  entry.set_c_cflag(modes.control), entry.set_c_lflag(modes.local);
  entry.set_c_line(modes.line), entry.set_c_ispeed(0), entry.set_c_ospeed(0);
  for (const uint8_t character : modes.characters) entry.add_c_cc(character);
}

std::optional<KernelTermios> read_modes(const termios_entry& entry) {
  KernelTermios modes{entry.c_iflag(), entry.c_oflag(), entry.c_cflag(), entry.c_lflag(), 0, {}};
  modes.line = static_cast<uint8_t>(entry.c_line());
  if (static_cast<size_t>(entry.c_cc_size()) < modes.characters.size()) return std::nullopt;
  for (size_t i = 0; i < modes.characters.size(); ++i) {
    modes.characters[i] = static_cast<uint8_t>(entry.c_cc(static_cast<int>(i)));
  }
  return modes;
}

tty_info_entry record_of(const TerminalDevice& device, uint32_t id) {
  tty_info_entry entry;
  entry.set_id(id), entry.set_type(device.type);
  entry.set_locked(false), entry.set_exclusive(device.exclusive), entry.set_packet_mode(false);
  entry.set_sid(0), entry.set_pgrp(static_cast<uint32_t>(device.foreground)), entry.set_rdev(device.device);
  entry.set_dev(device.filesystem), entry.set_uid(device.uid), entry.set_gid(device.gid);
  if (device.modes) write_modes(*device.modes, *entry.mutable_termios());
  if (device.locked_modes) write_modes(*device.locked_modes, *entry.mutable_termios_locked());
  auto& window = *entry.mutable_winsize();
  window.set_ws_row(device.window.ws_row), window.set_ws_col(device.window.ws_col);
  window.set_ws_xpixel(device.window.ws_xpixel), window.set_ws_ypixel(device.window.ws_ypixel);
  if (device.type == PTY) entry.mutable_pty()->set_index(id >> 1);
  return entry;
}

/// The descriptor of ours that is a terminal; -1: we have none.
int own_terminal() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (isatty(fd) != 0) return fd;
  }
  return -1;
}

std::string path_at_restore(const TerminalDevice& device) {
  if (device.type == CTTY) return "/dev/tty";
  return fmt::format("{}fd/{}", plan::supervisor_directory, device.inherited);
}

class TerminalRoom final : public FileRoom {
 public:
  std::string_view kind() const override { return "terminal"; }

  // ---- capture

  bool recognises(const DescriptorProbe& probe) const override {
    return S_ISCHR(probe.stat.st_mode) && type_of(probe.stat.st_rdev).has_value();
  }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    const TtyType type = *type_of(probe.stat.st_rdev);
    auto terminal = std::make_shared<Terminal>();
    terminal->path = probe.link;
    terminal->device = ObjectId{info_id(type, probe.stat.st_rdev) | terminal_bit};
    if (major(probe.stat.st_rdev) == tty_major && minor(probe.stat.st_rdev) == pts_master) {
      context.diagnostics.refuse(probe.subject, "it is the master side of a pseudo-terminal",
                                 "pseudo-terminals inside of the tree cannot be saved by this version");
    } else if (!context.policy.shell_job) {
      context.diagnostics.refuse(probe.subject, "what is at the other end of this terminal is not part of the tree",
                                 "pass --shell-job, or start the program with its streams redirected to files");
    }
    auto& object = context.application.objects[terminal->device];
    if (!object.value) object = {TRY(capture_device(context, probe, type))};
    return model::KindState{std::move(terminal)};
  }

  Status finish_capture(CaptureContext& context) const override {
    for (const auto& [id, object] : context.application.objects) {
      const auto* device = object.as<TerminalDevice>();
      if (device == nullptr || device->type == CTTY) continue;
      for (const auto& task : context.application.tasks) {
        if (task.controlling_terminal != device->device || context.application.find(task.session) == nullptr) continue;
        context.diagnostics.refuse(
            fmt::format("task {} '{}'", task.pid, task.name),
            fmt::format("{} belongs to its session, which is part of the tree", object.value->describe()),
            "dump without the leader of the session (the shell), with --shell-job");
        break;
      }
    }
    return {};
  }

  // ---- images

  /// As CRIU has it: a regular file entry for the path beside the terminal's own.
  Status encode(const model::Application& application, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    const auto& terminal = *description.state.as<Terminal>();
    const uint32_t info = terminal.device.value & ~terminal_bit;
    image::FileRecord record;
    record.set_type(TTY), record.set_id(description.id.value);
    auto& tty = *record.mutable_tty();
    tty.set_id(description.id.value), tty.set_tty_info_id(info), tty.set_flags(description.flags);
    tty.set_regf_id(path_record_id(description.id));
    encode_owner(description.owner, *tty.mutable_fown());
    records.files.push_back(std::move(record));
    records.files.push_back(path_record(description, terminal.path, S_IFCHR));
    if (!records.first_time("terminal", info)) return {};
    return TRY(records.side("tty-info"))->append(record_of(device_of(application, description), info));
  }

  bool decodes(const image::FileRecords&, const image::FileRecord& record) const override {
    return record.type() == TTY;
  }

  std::vector<uint32_t> parts(const image::FileRecords&, const image::FileRecord& record) const override {
    if (!record.has_tty() || !record.tty().has_regf_id()) return {};
    return {record.tty().regf_id()};
  }

  Result<model::OpenDescription> decode(const image::FileRecords& records, const image::FileRecord& record,
                                        model::Application& application) const override {
    const std::string subject = fmt::format("files.img, file {}", record.id());
    if (!record.has_tty())
      return fail(Error::invalid("decode terminal", "the entry of type TTY has no tty field", subject));
    const auto& tty = record.tty();
    auto terminal = std::make_shared<Terminal>();
    terminal->device = ObjectId{tty.tty_info_id() | terminal_bit};
    const auto* path = tty.has_regf_id() ? records.find(tty.regf_id()) : nullptr;
    terminal->path = path != nullptr && path->has_reg() ? path->reg().name() : "?";
    auto& object = application.objects[terminal->device];
    if (!object.value) object = {TRY(decode_device(records, tty.tty_info_id(), subject))};
    if (object.as<TerminalDevice>() == nullptr) {
      return fail(
          Error::invalid("decode terminal", fmt::format("object {} is no terminal", terminal->device), subject));
    }
    model::OpenDescription description;
    description.id = ObjectId{record.id()}, description.flags = tty.flags();
    description.owner = decode_owner(tty.fown());
    description.state = {std::move(terminal)};
    return description;
  }

  // ---- before a restore

  void validate_all(const model::Application& application, Diagnostics& diagnostics) const override {
    const auto found = std::ranges::find_if(application.descriptions, [](const auto& entry) {
      return entry.second.state.template as<Terminal>() != nullptr;
    });
    if (found == application.descriptions.end()) return;
    const std::string subject = found->second.state.value->describe();
    if (!application.shell_job) {
      diagnostics.refuse(subject, "it belonged to a session outside of the tree",
                         "pass --shell-job, and the tree gets the terminal you restore it from");
      return;
    }
    for (const auto& [id, object] : application.objects) {
      const auto* device = object.as<TerminalDevice>();
      if (device == nullptr) continue;
      if (device->inherited < 0 && device->type != CTTY) {
        diagnostics.refuse(subject, "there is no terminal here that it could be replaced by",
                           "restore from a terminal: standard input, output or error must be one");
      } else if (device->type == CTTY && !UniqueFd(open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY)).valid()) {
        diagnostics.refuse("terminal /dev/tty", "this session has no controlling terminal",
                           "restore from the shell of a terminal, without setsid");
      }
    }
  }

  // ---- restore

  Status make(const model::Application& application, std::span<const plan::Placement> placements,
              plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      const auto& description = *placement.description;
      const auto path = path_at_restore(device_of(application, description));
      sink.add(plan::Open{path, reopen_flags(description.flags), 0, placement.fd, description.id});
      set_status_flags(description, placement.fd, sink);
    }
    return {};
  }
  bool reopenable() const override { return true; }

  /// The terminal gets its modes and its foreground group when the job is complete, and only then: until then they are
  /// those of the shell that waits for us.
  void contribute(plan::Stage stage, const model::Application& application, plan::Sink& sink) const override {
    if (stage != plan::Stage::settle) return;
    const TerminalDevice* device = main_device(application);
    if (device == nullptr || device->inherited < 0) return;
    const int own = device->inherited;
    using Expected = plan::Expectation::Kind;
    plan::Calls calls;
    if (device->locked_modes) {  // needs CAP_SYS_ADMIN, and is hardly ever more than zeros
      calls.push_back(plan::expecting(call(SYS_ioctl, own, TIOCSLCKTRMIOS, plan::struct_in(*device->locked_modes)),
                                      Expected::anything));
    }
    if (device->modes) {
      calls.push_back(
          plan::expecting(call(SYS_ioctl, own, TCSETS, plan::struct_in(*device->modes)), Expected::anything));
    }
    const auto* root = application.find(application.root);
    if (root != nullptr && root->group == root->pid && !application.root_is_namespace_init) {
      // Fails where the terminal is not that of our session: then nobody is in its foreground.
      calls.push_back(
          plan::expecting(call(SYS_ioctl, own, TIOCSPGRP, plan::struct_in(root->group.value)), Expected::anything));
    }
    sink.perform("terminal", std::string(plan::only_on_success), std::move(calls));
  }

 private:
  static Result<std::shared_ptr<TerminalDevice>> capture_device(CaptureContext& context, const DescriptorProbe& probe,
                                                                TtyType type) {
    auto device = std::make_shared<TerminalDevice>();
    device->type = type, device->device = static_cast<uint32_t>(probe.stat.st_rdev);
    device->filesystem = static_cast<uint32_t>(probe.stat.st_dev);
    device->uid = probe.stat.st_uid, device->gid = probe.stat.st_gid;
    const int fd = TRY(probe.duplicate());
    KernelTermios modes;
    if (ioctl(fd, TCGETS, &modes) != 0) {
      context.diagnostics.refuse(probe.subject, "the terminal has hung up", "close it before the dump");
      return device;
    }
    device->modes = modes;
    if (ioctl(fd, TIOCGLCKTRMIOS, &modes) == 0) device->locked_modes = modes;
    (void)ioctl(fd, TIOCGWINSZ, &device->window);
    int exclusive = 0;
    if (ioctl(fd, TIOCGEXCL, &exclusive) == 0) device->exclusive = exclusive != 0;
    const auto stat = kernel::read_stat(probe.witness);
    if (stat && static_cast<uint32_t>(stat->tty_nr) == device->device) {
      const auto group = context.host_to_tree.find(stat->tty_pgrp);
      if (group != context.host_to_tree.end()) device->foreground = group->second;
    }
    return device;
  }

  static Result<std::shared_ptr<TerminalDevice>> decode_device(const image::FileRecords& records, uint32_t id,
                                                               const std::string& subject) {
    for (const auto& entry : TRY(records.all<tty_info_entry>("tty-info"))) {
      if (entry.id() != id) continue;
      if (major(entry.rdev()) == tty_major && minor(entry.rdev()) == pts_master) {
        return fail(Error::unsupported("decode terminal", "it is the master side of a pseudo-terminal", subject));
      }
      auto device = std::make_shared<TerminalDevice>();
      device->type = entry.type(), device->device = entry.rdev(), device->filesystem = entry.dev();
      device->uid = entry.uid(), device->gid = entry.gid(), device->exclusive = entry.exclusive();
      device->foreground = static_cast<pid_t>(entry.pgrp());
      if (entry.has_termios()) device->modes = read_modes(entry.termios());
      if (entry.has_termios_locked()) device->locked_modes = read_modes(entry.termios_locked());
      if (entry.has_termios() != device->modes.has_value()) {
        return fail(Error::invalid("decode terminal", "field termios.c_cc is too short",
                                   fmt::format("tty-info.img, terminal {}", id)));
      }
      const auto& window = entry.winsize();
      device->window = {static_cast<unsigned short>(window.ws_row()), static_cast<unsigned short>(window.ws_col()),
                        static_cast<unsigned short>(window.ws_xpixel()),
                        static_cast<unsigned short>(window.ws_ypixel())};
      device->inherited = own_terminal();
      return device;
    }
    return fail(Error::invalid("decode terminal", fmt::format("terminal {} is not in tty-info.img", id), subject));
  }

  /// The one that the root is controlled by, or else the first.
  static const TerminalDevice* main_device(const model::Application& application) {
    const TerminalDevice* chosen = nullptr;
    const auto* root = application.find(application.root);
    for (const auto& [id, object] : application.objects) {
      const auto* device = object.as<TerminalDevice>();
      if (device == nullptr || device->type == CTTY) continue;
      const bool controls = root != nullptr && root->controlling_terminal == device->device;
      if (chosen == nullptr || controls) chosen = device;
    }
    return chosen;
  }
};

}  // namespace

const FileRoom& terminal_room() {
  static const TerminalRoom room;
  return room;
}

}  // namespace stasis::resource
