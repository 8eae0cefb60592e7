#include "resource/terminal_device.h"

#include <asm/ioctls.h>
#include <fmt/format.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <tuple>
#include <utility>

namespace stasis::resource {
namespace {

constexpr unsigned console_major = 4, tty_major = 5, first_pts_major = 136, last_pts_major = 143;
constexpr unsigned current_terminal = 0, system_console = 1, multiplexer = 2;  ///< minors of tty_major
constexpr unsigned consoles = 64;                                              ///< minors below it: ttyN; above: ttySN
/// CRIU numbers its tty-info records by device, times 2: index of the pseudo-terminal (at most 1000), or one of these.
/// The master side has the odd number.
constexpr uint32_t console_index = 1002, vt_index = 1004, current_index = 1006, serial_index = 1010;
constexpr uint32_t highest_of_criu = 1000, beyond_criu = 128;
/// CRIU has one number for all virtual terminals, and one for all serial lines: only one of each has it. Further ones
/// follow the pseudo-terminals, by minor number.
constexpr uint32_t first_of_machine = model::last_terminal_index + beyond_criu + 1;
constexpr uint32_t master_bit = 1, terminal_bit = 0x80000000;

uint32_t number_of(TtyType type, dev_t device) {
  switch (type) {
    case CTTY:
      return current_index;
    case CONSOLE:
      return console_index;
    case VT:
    case SERIAL:
      return first_of_machine + minor(device);
    default:
      break;
  }
  const uint32_t index = model::index_of_terminal(device);
  return index <= highest_of_criu ? index : index + beyond_criu;
}

ObjectId terminal_object_of_info(uint32_t info_id) { return ObjectId{(info_id & ~master_bit) | terminal_bit}; }

bool has_number_of_criu(TtyType type, uint32_t info_id) {
  return (type == VT && info_id == vt_index << 1) || (type == SERIAL && info_id == serial_index << 1);
}

void write_modes(const KernelTermios& modes, termios_entry& entry) {
  entry.set_c_iflag(modes.input), entry.set_c_oflag(modes.output);
  entry.set_c_cflag(modes.control), entry.set_c_lflag(modes.local);
  entry.set_c_line(modes.line), entry.set_c_ispeed(modes.input_speed), entry.set_c_ospeed(modes.output_speed);
  for (const uint8_t character : modes.characters) entry.add_c_cc(character);
}

Result<KernelTermios> read_modes(const termios_entry& entry, uint32_t id) {
  KernelTermios modes{entry.c_iflag(),  entry.c_oflag(), entry.c_cflag(), entry.c_lflag(), 0, {},
                      entry.c_ispeed(), entry.c_ospeed()};
  modes.line = static_cast<uint8_t>(entry.c_line());
  if (static_cast<size_t>(entry.c_cc_size()) < modes.characters.size()) {
    return fail(Error::invalid("decode terminal", "field termios.c_cc is too short",
                               fmt::format("tty-info.img, terminal {}", id)));
  }
  for (size_t i = 0; i < modes.characters.size(); ++i) {
    modes.characters[i] = static_cast<uint8_t>(entry.c_cc(static_cast<int>(i)));
  }
  return modes;
}

tty_info_entry record_of(const TerminalDevice& device, uint32_t id, bool is_master) {
  tty_info_entry entry;
  entry.set_id(id), entry.set_type(device.type), entry.set_rdev(device.device), entry.set_dev(device.filesystem);
  entry.set_uid(device.uid), entry.set_gid(device.gid);
  entry.set_locked(device.locked), entry.set_exclusive(device.exclusive);
  entry.set_packet_mode(is_master && device.packet_mode);
  entry.set_sid(static_cast<uint32_t>(device.session.value));
  const bool is_ours = device.is_pair || device.of_machine;
  entry.set_pgrp(static_cast<uint32_t>(is_ours ? device.foreground.value : device.group));
  if (!device.of_machine && is_of_machine(device.type)) entry.set_of_shell_job(true);
  if (device.modes) write_modes(*device.modes, *entry.mutable_termios());
  if (device.locked_modes) write_modes(*device.locked_modes, *entry.mutable_termios_locked());
  if (device.modes) {
    auto& window = *entry.mutable_winsize();
    window.set_ws_row(device.window.ws_row), window.set_ws_col(device.window.ws_col);
    window.set_ws_xpixel(device.window.ws_xpixel), window.set_ws_ypixel(device.window.ws_ypixel);
  }
  if (device.type == PTY) entry.mutable_pty()->set_index(model::index_of_terminal(device.device));
  if (!is_master) return entry;
  entry.set_rdev(static_cast<uint32_t>(makedev(tty_major, multiplexer)));
  entry.set_uid(0), entry.set_gid(0), entry.set_exclusive(device.master_exclusive);
  entry.set_slave_opened(device.slave_opened);
  entry.set_slave_mode(device.mode), entry.set_slave_uid(device.uid), entry.set_slave_gid(device.gid);
  return entry;
}

const tty_info_entry* info_with(std::span<const tty_info_entry> all, uint32_t id) {
  for (const auto& entry : all) {
    if (entry.id() == id) return &entry;
  }
  return nullptr;
}

Result<const tty_info_entry*> needed_info(std::span<const tty_info_entry> all, uint32_t id,
                                          const std::string& subject) {
  if (const auto* info = info_with(all, id)) return info;
  return fail(Error::invalid("decode terminal", fmt::format("terminal {} is not in tty-info.img", id), subject));
}

/// What both sides have in common.
Status read_common(const tty_info_entry& entry, TerminalDevice& device) {
  if (entry.has_termios()) device.modes = TRY(read_modes(entry.termios(), entry.id()));
  if (entry.has_termios_locked()) device.locked_modes = TRY(read_modes(entry.termios_locked(), entry.id()));
  const auto& window = entry.winsize();
  device.window = {static_cast<unsigned short>(window.ws_row()), static_cast<unsigned short>(window.ws_col()),
                   static_cast<unsigned short>(window.ws_xpixel()), static_cast<unsigned short>(window.ws_ypixel())};
  device.type = entry.type(), device.device = entry.rdev(), device.filesystem = entry.dev();
  device.uid = entry.uid(), device.gid = entry.gid();
  return {};
}

Status read_master(const tty_info_entry& entry, TerminalDevice& device) {
  device.is_pair = true;
  device.master_exclusive = entry.exclusive(), device.locked = entry.locked(), device.packet_mode = entry.packet_mode();
  device.session = Pid{static_cast<pid_t>(entry.sid())}, device.foreground = Pid{static_cast<pid_t>(entry.pgrp())};
  device.slave_opened = entry.slave_opened();
  constexpr uint32_t permissions = 07777;
  device.mode = entry.slave_mode() & permissions;
  if (entry.has_slave_uid()) device.uid = entry.slave_uid();
  if (entry.has_slave_gid()) device.gid = entry.slave_gid();
  return {};
}

/// Of a pseudo-terminal; either side may be without a record: `any` is the slave's, or else the master's.
Status read_pair(const tty_info_entry& any, const tty_info_entry* master, const tty_info_entry* slave,
                 TerminalDevice& device) {
  const auto reject = [&](std::string problem) {
    return fail(
        Error::invalid("decode terminal", std::move(problem), fmt::format("tty-info.img, terminal {}", any.id())));
  };
  if (!any.has_pty() || any.pty().index() > model::last_terminal_index)
    return reject("field pty.index is missing or too large");
  if (master != nullptr && slave != nullptr && master->pty().index() != slave->pty().index())
    return reject("field pty.index is not that of its other side");
  const uint32_t index = any.pty().index();
  if (terminal_object(PTY, model::terminal_with_index(index)) != terminal_object_of_info(any.id()))
    return reject(fmt::format("it has the index {} of another", index));
  if (master != nullptr) TRY(read_common(*master, device));
  if (slave != nullptr) {
    TRY(read_common(*slave, device));
    device.exclusive = slave->exclusive();
    device.group = static_cast<pid_t>(slave->pgrp());
  }
  device.type = PTY, device.device = static_cast<uint32_t>(model::terminal_with_index(index));
  if (master == nullptr) {
    device.hung_up = !any.has_termios();
    return {};
  }
  if (!any.has_termios()) return reject("field termios is missing");
  TRY(read_master(*master, device));
  // CRIU tells of it by the slave's existence.
  if (slave != nullptr) device.slave_opened = true;
  if (slave != nullptr && device.session.value == 0) {
    device.session = Pid{static_cast<pid_t>(slave->sid())}, device.foreground = Pid{static_cast<pid_t>(slave->pgrp())};
  }
  return {};
}

}  // namespace

std::optional<TtyType> terminal_type(dev_t device) {
  const unsigned high = major(device), low = minor(device);
  if (high == tty_major && low == current_terminal) return CTTY;
  if (high == tty_major && low == system_console) return CONSOLE;
  if (is_multiplexer(device) || (high >= first_pts_major && high <= last_pts_major)) return PTY;
  if (high == console_major) return low < consoles ? VT : SERIAL;
  return std::nullopt;
}

bool is_multiplexer(dev_t device) { return major(device) == tty_major && minor(device) == multiplexer; }

bool TerminalDevice::equals(const model::KindValue& other) const {
  const auto* terminal = dynamic_cast<const TerminalDevice*>(&other);
  if (terminal == nullptr || is_pair != terminal->is_pair || hung_up != terminal->hung_up) return false;
  if ((type == CTTY) != (terminal->type == CTTY)) return false;
  if (modes != terminal->modes || locked_modes != terminal->locked_modes) return false;
  if (hung_up) return device == terminal->device;
  if (of_machine != terminal->of_machine) return false;
  if (!is_pair && !of_machine) return true;
  const auto all = [](const TerminalDevice& d) {
    return std::tuple(d.device, d.uid, d.gid, d.mode, d.exclusive, d.master_exclusive, d.locked, d.packet_mode,
                      d.slave_opened, d.session, d.foreground, d.window.ws_row, d.window.ws_col, d.window.ws_xpixel,
                      d.window.ws_ypixel);
  };
  return all(*this) == all(*terminal) && input == terminal->input && input_ends == terminal->input_ends &&
         output == terminal->output;
}

std::string TerminalDevice::describe() const {
  if (type == PTY) return fmt::format("terminal /dev/pts/{}", model::index_of_terminal(device));
  return fmt::format("terminal {}:{}", major(device), minor(device));
}

bool Terminal::equals(const model::KindValue& other) const {
  const auto* terminal = dynamic_cast<const Terminal*>(&other);
  if (terminal == nullptr || is_master != terminal->is_master || is_current != terminal->is_current) return false;
  if (known->is_foreign() && terminal->known->is_foreign()) return true;
  return known->equals(*terminal->known);
}

const TerminalDevice& device_of(const model::OpenDescription& description) {
  return *description.state.as<Terminal>()->known;
}

void capture_modes(int fd, TerminalDevice& device) {
  KernelTermios modes, locked;  // the latter without speeds
  if (ioctl(fd, get_termios, &modes) == 0) device.modes = modes;
  if (ioctl(fd, TIOCGLCKTRMIOS, &locked) == 0) device.locked_modes = locked;
  (void)ioctl(fd, TIOCGWINSZ, &device.window);
  int exclusive = 0;
  if (ioctl(fd, TIOCGEXCL, &exclusive) == 0) device.exclusive = exclusive != 0;
}

ObjectId terminal_object(TtyType type, dev_t device) { return ObjectId{number_of(type, device) << 1 | terminal_bit}; }

bool is_master_info(uint32_t info_id) { return (info_id & master_bit) != 0; }

uint32_t terminal_info_id(const model::Application& application, const Terminal& terminal) {
  if (terminal.is_current) return current_index << 1;
  const TtyType type = terminal.known->type;
  if (type == VT || type == SERIAL) {
    const auto has_lower = [&](const auto& entry) {
      const auto* other = entry.second.template as<TerminalDevice>();
      return other != nullptr && other->type == type && other->device < terminal.known->device;
    };
    if (std::ranges::none_of(application.objects, has_lower)) return (type == VT ? vt_index : serial_index) << 1;
  }
  return (terminal.device.value & ~terminal_bit) | (terminal.is_master ? master_bit : 0);
}

namespace {

/// As CRIU has it: under the id of the side that would have read it. Between two records of input stands an end of
/// file.
Status encode_queues(uint32_t slave_id, const TerminalDevice& device, image::FileRecords& records) {
  const auto append = [&](uint32_t id, ByteView bytes) -> Status {
    tty_data_entry entry;
    entry.set_tty_id(id), entry.set_data(bytes.data(), bytes.size());
    return TRY(records.side("tty-data"))->append(entry);
  };
  size_t begin = 0;
  for (const uint32_t end : device.input_ends) {
    TRY(append(slave_id, ByteView(device.input).subspan(begin, end - begin)));
    begin = end;
  }
  const auto rest = ByteView(device.input).subspan(begin);
  if (!rest.empty() || !device.input_ends.empty()) TRY(append(slave_id, rest));
  return device.output.empty() ? Status() : append(slave_id | master_bit, device.output);
}

Status decode_queues(const image::FileRecords& records, uint32_t info_id, TerminalDevice& device) {
  bool has_input = false;
  for (const auto& entry : TRY(records.all<tty_data_entry>("tty-data"))) {
    if ((entry.tty_id() & ~master_bit) != (info_id & ~master_bit)) continue;
    const bool is_output = is_master_info(entry.tty_id());
    auto& queue = is_output ? device.output : device.input;
    if (queue.size() + entry.data().size() > longest_terminal_queue ||
        device.input_ends.size() > longest_terminal_queue) {
      return fail(Error::invalid("decode terminal", "field data is longer than what the kernel keeps",
                                 fmt::format("tty-data.img, terminal {}", entry.tty_id())));
    }
    if (!is_output && std::exchange(has_input, true)) device.input_ends.push_back(static_cast<uint32_t>(queue.size()));
    queue.insert(queue.end(), entry.data().begin(), entry.data().end());
  }
  return {};
}

}  // namespace

Status encode_terminal_info(const model::Application& application, const Terminal& terminal,
                            image::FileRecords& records) {
  const uint32_t id = terminal_info_id(application, terminal);
  if (!records.first_time("terminal", id)) return {};
  if (terminal.is_master) TRY(encode_queues(id & ~master_bit, *terminal.known, records));
  auto record = record_of(*terminal.known, id, terminal.is_master);
  if (terminal.is_current) record.set_type(CTTY), record.clear_pty(), record.set_rdev(makedev(tty_major, 0));
  TRY(TRY(records.side("tty-info"))->append(record));
  if (!terminal.is_current || !terminal.known->of_machine) return {};
  Terminal behind = terminal;  // nobody else may have it open
  behind.is_current = false;
  return encode_terminal_info(application, behind, records);
}

Result<uint32_t> find_terminal_info(const image::FileRecords& records, uint64_t device) {
  for (const auto& entry : TRY(records.all<tty_info_entry>("tty-info"))) {
    if (is_of_machine(entry.type()) && entry.rdev() == device) return entry.id();
  }
  return 0;
}

Result<ObjectId> terminal_object_of_info(const image::FileRecords& records, uint32_t info_id,
                                         const std::string& subject) {
  const auto* info = TRY(needed_info(TRY(records.all<tty_info_entry>("tty-info")), info_id, subject));
  const ObjectId by_id = terminal_object_of_info(info_id);
  if (info->type() == PTY) return by_id;
  const ObjectId by_device = terminal_object(info->type(), info->rdev());
  if (by_device == by_id || has_number_of_criu(info->type(), info_id)) return by_device;
  return fail(Error::invalid("decode terminal", "fields type and id do not belong together",
                             fmt::format("tty-info.img, terminal {}", info_id)));
}

Result<std::shared_ptr<TerminalDevice>> decode_terminal_device(const image::FileRecords& records, uint32_t info_id,
                                                               const std::string& subject) {
  const auto infos = TRY(records.all<tty_info_entry>("tty-info"));
  const auto* own = TRY(needed_info(infos, info_id, subject));
  auto device = std::make_shared<TerminalDevice>();
  if (own->type() == PTY) {
    const auto *master = info_with(infos, info_id | master_bit), *slave = info_with(infos, info_id & ~master_bit);
    TRY(read_pair(slave != nullptr ? *slave : *own, master, slave, *device));
    TRY(decode_queues(records, info_id, *device));
    return device;
  }
  TRY(read_common(*own, *device));
  device->exclusive = own->exclusive(), device->group = static_cast<pid_t>(own->pgrp());
  device->of_machine = is_of_machine(device->type) && !own->of_shell_job();
  if (device->of_machine && own->sid() != 0) {
    device->session = Pid{static_cast<pid_t>(own->sid())}, device->foreground = Pid{device->group};
    device->group = 0;
  }
  return device;
}

}  // namespace stasis::resource
