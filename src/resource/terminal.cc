// Terminals.
//
// A pseudo-terminal whose master side is part of the tree is made again with the same index, by the tree's root before
// it creates anybody (plan::OpenTerminal): its session's processes are born with it. The master's one description is
// passed on from there, slave sides are opened anew under their names (pseudo_terminal.h). Where the master is closed,
// nothing but the hang-up is left.
//
// Terminals of the machine (machine_terminal.h) are opened again.
//
// What is at the other end of any other terminal (an emulator, sshd) belongs to somebody else. A shell job
// (--shell-job) therefore gets the terminal that stasis itself runs under: every description is opened anew through
// stasis' own descriptor, with its modes (termios) as they were and, once everything is complete, with the job in the
// foreground. Its window size is its own. If its session leader is part of the tree, it cannot be saved: with the other
// end gone, there would be nothing to lead.
#include "resource/terminal.h"

#include <asm/ioctls.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "resource/descriptors.h"
#include "resource/machine_terminal.h"
#include "resource/pseudo_terminal.h"

namespace stasis::resource {
namespace {

using plan::call;

/// The descriptor of ours that is a terminal; -1: we have none.
int own_terminal() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (isatty(fd) != 0) return fd;
  }
  return -1;
}

std::string path_at_restore(const Terminal& terminal) {
  const auto& device = *terminal.known;
  if (terminal.is_current || device.type == CTTY) return "/dev/tty";
  if (device.of_machine) return path_of_machine_terminal(terminal);
  if (device.is_pair) return fmt::format("/dev/pts/{}", model::index_of_terminal(device.device));
  return fmt::format("{}fd/{}", plan::supervisor_directory, device.inherited);
}

class TerminalRoom final : public FileRoom {
 public:
  std::string_view kind() const override { return "terminal"; }

  // ---- capture

  bool recognises(const DescriptorProbe& probe) const override {
    return S_ISCHR(probe.stat.st_mode) && terminal_type(probe.stat.st_rdev).has_value();
  }

  /// What it means is known when all descriptors are: whether the master side is among them.
  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    auto terminal = std::make_shared<Terminal>();
    terminal->path = probe.link;
    const int fd = TRY(probe.duplicate());
    dev_t device = probe.stat.st_rdev;
    TtyType type = *terminal_type(device);
    // /dev/tty and the multiplexer are doors: what is behind them the kernel tells by its number.
    terminal->is_current = type == CTTY;
    if (is_multiplexer(device) || terminal->is_current) {
      unsigned int behind = 0;
      terminal->is_master = ioctl(fd, TIOCGDEV, &behind) == 0 && is_multiplexer(device);
      if (!terminal->is_master && is_multiplexer(device))
        context.diagnostics.refuse(probe.subject, "the master side has hung up", "close it before the dump");
      const auto found = terminal_type(behind);
      if (found == PTY || (found && is_of_machine(*found) && !context.policy.shell_job)) device = behind, type = *found;
    }
    auto& captured = context.kept<CapturedTerminals>()[static_cast<uint32_t>(device)];
    if (!captured.device) {
      captured.device = std::make_shared<TerminalDevice>();
      captured.device->type = type, captured.device->device = static_cast<uint32_t>(device);
      captured.subject = probe.subject;
    }
    TRY(note(captured, probe, *terminal, fd));
    terminal->device = terminal_object(type, device), terminal->known = captured.device;
    context.application.objects[terminal->device] = {captured.device};
    return model::KindState{std::move(terminal)};
  }

  Status finish_capture(CaptureContext& context) const override {
    find_masters(context);
    auto& all = context.kept<CapturedTerminals>();
    for (auto& [number, captured] : all) {
      if (captured.master.value != 0)
        TRY(capture_pair(context, captured));
      else if (captured.slave_hung_up && !captured.slave_fd.valid() && captured.device->type == PTY)
        captured.device->hung_up = true;
      else if (is_of_machine(captured.device->type) && !context.policy.shell_job)
        capture_machine_terminal(context, captured);
      else
        capture_foreign(context, captured);
    }
    all.clear();
    refuse_led_terminals(context);
    refuse_lost_doors(context);
    return {};
  }

  // ---- images

  /// As CRIU has it: a regular file entry for the path beside the terminal's own.
  Status encode(const model::Application& application, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    const auto& terminal = *description.state.as<Terminal>();
    image::FileRecord record;
    record.set_type(TTY), record.set_id(description.id.value);
    auto& tty = *record.mutable_tty();
    tty.set_id(description.id.value), tty.set_tty_info_id(terminal_info_id(application, terminal)),
        tty.set_flags(description.flags);
    tty.set_regf_id(path_record_id(description.id));
    if (terminal.is_current && !terminal.known->is_foreign()) tty.set_opened_on(terminal.known->device);
    encode_owner(description.owner, *tty.mutable_fown());
    records.files.push_back(std::move(record));
    records.files.push_back(path_record(description, terminal.path, S_IFCHR));
    return encode_terminal_info(application, terminal, records);
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
    const auto* path = tty.has_regf_id() ? records.find(tty.regf_id()) : nullptr;
    terminal->path = path != nullptr && path->has_reg() ? path->reg().name() : "?";
    terminal->known = TRY(device_with(records, tty.tty_info_id(), subject, application));
    terminal->is_current = terminal->known->type == CTTY;
    if (const uint32_t behind = terminal->is_current ? TRY(find_terminal_info(records, tty.opened_on())) : 0;
        behind != 0)
      terminal->known = TRY(device_with(records, behind, subject, application));
    terminal->device = terminal_object(terminal->known->type, terminal->known->device);
    terminal->is_master = terminal->known->is_pair && is_master_info(tty.tty_info_id());
    terminal->opened_on = tty.opened_on();
    model::OpenDescription description;
    description.id = ObjectId{record.id()}, description.flags = tty.flags();
    description.owner = decode_owner(tty.fown());
    description.state = {std::move(terminal)};
    return description;
  }

  Status finish_decode(model::Application& application) const override { return link_terminals(application); }

  // ---- before a restore

  void validate_all(const model::Application& application, Diagnostics& diagnostics) const override {
    std::set<const TerminalDevice*> validated;
    for (const auto& [id, description] : application.descriptions) {
      const auto* terminal = description.state.as<Terminal>();
      if (terminal == nullptr || !validated.insert(terminal->known.get()).second) continue;
      if (terminal->known->of_machine)
        validate_machine_terminal(*terminal, diagnostics);
      else if (terminal->known->is_foreign())
        validate_foreign(application, *terminal->known, diagnostics);
      else
        validate_index(*terminal->known, diagnostics);
    }
  }

  // ---- restore

  /// Those that hang up, all at once, when the master side is closed.
  ObjectId made_together(const model::OpenDescription& description) const override {
    const auto& terminal = *description.state.as<Terminal>();
    return terminal.known->hung_up ? terminal.device : ObjectId{};
  }
  uint64_t needs_terminal(const model::Application& application,
                          const model::OpenDescription& description) const override {
    const auto& terminal = *description.state.as<Terminal>();
    return terminal.is_current && application.terminals.contains(terminal.known->device) ? terminal.known->device : 0;
  }
  void furnish_terminal(const model::Application& application, uint64_t number, int master, int slave,
                        plan::Sink& sink) const override {
    const auto description = application.descriptions.find(application.terminals.at(number).master);
    if (description != application.descriptions.end())
      furnish_pair(device_of(description->second), master, slave, sink);
  }

  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    const auto& first = device_of(*placements.front().description);
    if (first.hung_up) {
      make_hung_up(first, placements, sink);
      return {};
    }
    for (const auto& placement : placements) {
      const auto& description = *placement.description;
      const auto& terminal = *description.state.as<Terminal>();
      if (terminal.is_master) {
        sink.add(plan::Dup2{placement.inherited, placement.fd, false});
        const uint32_t flags = settable_flags(description.flags);
        if (flags != 0) sink.perform("status flags", "", {call(SYS_fcntl, placement.fd, F_SETFL, flags)});
      } else {
        const bool may_wait = first.of_machine && (description.flags & O_NONBLOCK) == 0;  // for a line's carrier
        sink.add(plan::Open{path_at_restore(terminal), reopen_flags(description.flags) | (may_wait ? O_NONBLOCK : 0), 0,
                            placement.fd, description.id});
        if (may_wait)
          sink.perform("status flags", "", {call(SYS_fcntl, placement.fd, F_SETFL, settable_flags(description.flags))});
        else
          set_status_flags(description, placement.fd, sink);
      }
    }
    return {};
  }
  void start(const model::Application&, const model::OpenDescription& description, int fd,
             plan::Sink& sink) const override {
    start_pair(device_of(description), description, fd, sink);
  }

  /// A terminal of somebody else gets its modes and its foreground group when the job is complete, and only then: until
  /// then they are those of the shell that waits for us.
  void contribute(plan::Stage stage, const model::Application& application, plan::Sink& sink) const override {
    if (stage != plan::Stage::settle) return;
    std::set<const TerminalDevice*> furnished;
    for (const auto& [id, description] : application.descriptions) {
      const auto* terminal = description.state.as<Terminal>();
      if (terminal != nullptr && terminal->known->of_machine && furnished.insert(terminal->known.get()).second)
        furnish_machine_terminal(*terminal, sink);
    }
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
          plan::expecting(call(SYS_ioctl, own, set_termios, plan::struct_in(*device->modes)), Expected::anything));
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
  /// Keeps descriptors through which the device is looked at when all are known.
  static Status note(CapturedTerminal& captured, const DescriptorProbe& probe, const Terminal& terminal, int fd) {
    auto& device = *captured.device;
    const auto keep = [&](UniqueFd& kept) -> Status {
      if (!kept.valid()) kept = UniqueFd(fcntl(fd, F_DUPFD_CLOEXEC, 0));
      return kept.valid() ? Status() : fail_errno("duplicate", probe.subject);
    };
    if (terminal.is_master) return keep(captured.master_fd);
    KernelTermios modes;
    // Other errors are those of a line discipline without modes (drivers/tty/tty_io.c, hung_up_tty_ioctl).
    if (ioctl(fd, get_termios, &modes) != 0 && errno == EIO) {
      captured.slave_hung_up = true;
      return {};
    }
    if (!terminal.is_current) {
      device.filesystem = static_cast<uint32_t>(probe.stat.st_dev);
      device.uid = probe.stat.st_uid, device.gid = probe.stat.st_gid;
    }
    return keep(captured.slave_fd);
  }

  static void find_masters(CaptureContext& context) {
    auto& all = context.kept<CapturedTerminals>();
    for (const auto& [id, description] : context.application.descriptions) {
      const auto* terminal = description.state.as<Terminal>();
      if (terminal != nullptr && terminal->is_master) all.at(terminal->known->device).master = id;
    }
  }

  static void capture_foreign(CaptureContext& context, CapturedTerminal& captured) {
    auto& device = *captured.device;
    if (captured.slave_hung_up)
      context.diagnostics.refuse(captured.subject, "the terminal has hung up", "close it before the dump");
    if (!captured.slave_fd.valid()) return;
    if (!context.policy.shell_job) {
      context.diagnostics.refuse(captured.subject, "what is at the other end of this terminal is not part of the tree",
                                 "pass --shell-job, or start the program with its streams redirected to files");
    }
    const int fd = captured.slave_fd.get();
    capture_modes(fd, device);
    for (const auto& task : context.application.tasks) {
      if (task.controlling_terminal != device.device || task.state == model::TaskState::zombie) continue;
      const auto stat = kernel::read_stat(context.witness(task));
      const auto group = stat ? context.host_to_tree.find(stat->tty_pgrp) : context.host_to_tree.end();
      if (group != context.host_to_tree.end()) device.group = group->second;
      return;
    }
  }

  /// Sessions of the tree are controlled by terminals of the tree.
  static void refuse_led_terminals(CaptureContext& context) {
    const auto& application = context.application;
    std::set<uint64_t> refused;
    for (const auto& task : application.tasks) {
      const uint64_t number = task.controlling_terminal;
      if (number == 0 || application.find(task.session) == nullptr || application.terminals.contains(number)) continue;
      if (!refused.insert(number).second) continue;
      context.diagnostics.refuse(
          fmt::format("task {} '{}'", task.pid, task.name),
          fmt::format("terminal {}:{} belongs to its session, which is part of the tree", major(number), minor(number)),
          "dump without the leader of the session (the shell), with --shell-job, or with what holds the other end of "
          "the "
          "terminal");
    }
  }

  /// A door that nobody can go through again.
  static void refuse_lost_doors(CaptureContext& context) {
    for (const auto& [id, description] : context.application.descriptions) {
      const auto* terminal = description.state.as<Terminal>();
      if (terminal == nullptr || !terminal->is_current || terminal->known->is_foreign()) continue;
      const auto is_controlled = [&](const model::Task& task) {
        return task.controlling_terminal == terminal->known->device;
      };
      if (std::ranges::any_of(context.application.tasks, is_controlled)) continue;
      context.diagnostics.refuse(
          fmt::format("{}, opened as /dev/tty", terminal->known->describe()),
          "it controls nobody any more, and only a process that it controls can open it by that name",
          "close it before the dump");
    }
  }

  static Result<std::shared_ptr<const TerminalDevice>> device_with(const image::FileRecords& records, uint32_t info,
                                                                   const std::string& subject,
                                                                   model::Application& application) {
    const ObjectId id = TRY(terminal_object_of_info(records, info, subject));
    auto& object = application.objects[id];
    if (!object.value) {
      auto device = TRY(decode_terminal_device(records, info, subject));
      if (device->is_foreign()) device->inherited = own_terminal();
      object = {std::move(device)};
    }
    auto known = std::dynamic_pointer_cast<const TerminalDevice>(object.value);
    if (!known) return fail(Error::invalid("decode terminal", fmt::format("object {} is no terminal", id), subject));
    return known;
  }

  static void validate_foreign(const model::Application& application, const TerminalDevice& device,
                               Diagnostics& diagnostics) {
    const std::string subject = device.describe();
    if (!application.shell_job) {
      diagnostics.refuse(subject, "it belonged to a session outside of the tree",
                         "pass --shell-job, and the tree gets the terminal you restore it from");
    } else if (device.inherited < 0 && device.type != CTTY) {
      diagnostics.refuse(subject, "there is no terminal here that it could be replaced by",
                         "restore from a terminal: standard input, output or error must be one");
    } else if (device.type == CTTY && !UniqueFd(open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY)).valid()) {
      diagnostics.refuse("terminal /dev/tty", "this session has no controlling terminal",
                         "restore from the shell of a terminal, without setsid");
    }
  }

  static void validate_index(const TerminalDevice& device, Diagnostics& diagnostics) {
    const auto path = fmt::format("/dev/pts/{}", model::index_of_terminal(device.device));
    struct stat about{};
    if (stat(path.c_str(), &about) != 0) return;
    diagnostics.refuse(device.describe(), "a terminal of this name is in use by somebody else",
                       "restore when it is closed, or in a container with a devpts of its own");
  }

  /// The one that the root is controlled by, or else the first.
  static const TerminalDevice* main_device(const model::Application& application) {
    const TerminalDevice* chosen = nullptr;
    const auto* root = application.find(application.root);
    for (const auto& [id, object] : application.objects) {
      const auto* device = object.as<TerminalDevice>();
      if (device == nullptr || device->type == CTTY || !device->is_foreign()) continue;
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
