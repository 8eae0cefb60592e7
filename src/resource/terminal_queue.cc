#include "resource/terminal_queue.h"

#include <asm/ioctls.h>
#include <asm/termbits.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <span>

#include "base/patience.h"
#include "base/unique_fd.h"

namespace stasis::resource {
namespace {

using plan::call;

constexpr size_t line_discipline_room = 4095;  ///< N_TTY_BUF_SIZE - 1: more of the input has not been worked through
constexpr int patience_ms = std::chrono::milliseconds(patience).count();

bool is_canonical(const KernelTermios& modes) { return (modes.local & ICANON) != 0 && (modes.local & EXTPROC) == 0; }

bool ends_line(const KernelTermios& modes, uint8_t byte) {
  const auto& special = modes.characters;
  if (byte == '\n') return true;
  if (byte == 0) return false;
  return byte == special[VEOL] || ((modes.local & IEXTEN) != 0 && byte == special[VEOL2]);
}

/// How input is put back: what is typed, under which modes, and how many bytes of it are echoed.
struct Typing {
  KernelTermios modes;
  Bytes keys;
  size_t echoes = 0;
};

/// Bytes that mean nothing and do not occur; as many zeros as there are too few.
std::array<uint8_t, 3> unused_bytes(const TerminalDevice& device) {
  std::bitset<256> used;
  for (const uint8_t byte : device.input) used.set(byte);
  for (const uint8_t byte : {uint8_t{'\n'}, device.modes->characters[VEOL], device.modes->characters[VEOL2]})
    used.set(byte);
  std::array<uint8_t, 3> unused{};
  size_t found = 0;
  for (size_t byte = 1; byte < used.size() && found < unused.size(); ++byte)
    if (!used.test(byte)) unused[found++] = static_cast<uint8_t>(byte);
  return unused;
}

Typing typing_of_lines(const TerminalDevice& device, Typing typing) {
  auto& [modes, keys, echoes] = typing;
  const auto [end_of_file, erase, any] = unused_bytes(device);
  modes.local |= ICANON | (device.modes->local & IEXTEN);
  modes.characters[VEOL] = device.modes->characters[VEOL];
  modes.characters[VEOL2] = device.modes->characters[VEOL2];
  modes.characters[VEOF] = end_of_file;
  size_t at = 0;
  for (const uint32_t end : device.input_ends) {
    keys.insert(keys.end(), device.input.begin() + static_cast<ptrdiff_t>(at),
                device.input.begin() + static_cast<ptrdiff_t>(end));
    keys.push_back(end_of_file);
    at = end;
  }
  keys.insert(keys.end(), device.input.begin() + static_cast<ptrdiff_t>(at), device.input.end());
  // That the last key is an end of file would not be seen: a byte more is typed, and erased again.
  if (!keys.empty() && keys.back() == end_of_file && erase != 0 && any != 0 &&
      keys.size() + 2 <= line_discipline_room) {
    modes.characters[VERASE] = erase;
    keys.push_back(any);
    keys.push_back(erase);
  }
  const auto worked_through = std::span(keys).first(std::min(keys.size(), line_discipline_room));
  echoes = worked_through.size() - static_cast<size_t>(std::ranges::count(worked_through, end_of_file));
  return typing;
}

/// Every byte of input is echoed once, an end of file is not.
Typing typing_of(const TerminalDevice& device) {
  Typing typing{.modes = {.control = device.modes->control, .local = ECHO, .line = device.modes->line}};
  typing.modes.characters[VMIN] = 1;
  if (is_canonical(*device.modes)) return typing_of_lines(device, std::move(typing));
  typing.keys = device.input;
  typing.echoes = std::min(device.input.size(), line_discipline_room);
  return typing;
}

class Queues {
 public:
  Queues(int master, int slave, TerminalDevice& device, const std::string& subject)
      : master_(master), slave_(slave), device_(device), subject_(subject) {}

  /// Somebody has pressed the stop key: nothing may be written, though nothing waits.
  bool is_stopped() const { return !ready(master_, POLLIN, 0) && !ready(slave_, POLLOUT, 0); }

  Status take() {
    device_.output = TRY(read_master(~size_t{0}));
    if (is_canonical(*device_.modes)) TRY(take_lines());
    return take_rest();
  }

  Status put_back() {
    if (device_.input.empty() && device_.input_ends.empty() && device_.output.empty()) return {};
    const auto typing = typing_of(device_);
    TRY(set_modes(typing.modes));
    auto status = put_back(typing);
    TRY(set_modes(*device_.modes));
    return status;
  }

 private:
  static bool ready(int fd, short events, int milliseconds) {
    pollfd asked{fd, events, 0};
    return poll(&asked, 1, milliseconds) > 0 && (asked.revents & events) != 0;
  }
  Status set_modes(const KernelTermios& modes) {
    if (ioctl(master_, set_termios, &modes) != 0) return fail_errno("TCSETS2", subject_);
    return {};
  }

  /// At most so much; less if there is no more. In packet mode a byte stands before the data, and what is no data is
  /// news of the slave side.
  Result<Bytes> read_master(size_t most) const {
    Bytes all;
    uint8_t buffer[8192];
    while (all.size() < most && ready(master_, POLLIN, 0)) {
      const size_t prefix = device_.packet_mode ? 1 : 0;
      const size_t room = std::min(sizeof buffer - prefix, most - all.size());
      const ssize_t got = read(master_, buffer, prefix + room);
      if (got < 0 && errno == EIO) break;  // the slave side is closed, and there is no more
      if (got < 0) return fail_errno("read", subject_);
      if (got == 0) break;
      if (prefix == 0 || buffer[0] == TIOCPKT_DATA) all.insert(all.end(), buffer + prefix, buffer + got);
    }
    return all;
  }

  Status take_lines() {
    uint8_t buffer[8192];
    for (;;) {
      const ssize_t got = read(slave_, buffer, sizeof buffer);
      if (got < 0 && errno == EAGAIN) return {};
      if (got < 0) return fail_errno("read", subject_);
      auto& input = device_.input;
      input.insert(input.end(), buffer, buffer + got);
      if (got == 0 || !ends_line(*device_.modes, buffer[got - 1]))
        device_.input_ends.push_back(static_cast<uint32_t>(input.size()));
      if (input.size() > longest_terminal_queue || device_.input_ends.size() > longest_terminal_queue) return {};
    }
  }

  /// A line that is still being typed is not shown in canonical mode.
  Status take_rest() {
    auto raw = *device_.modes;
    raw.local &= ~static_cast<uint32_t>(ICANON);
    raw.characters[VMIN] = 1, raw.characters[VTIME] = 0;
    if (is_canonical(*device_.modes)) TRY(set_modes(raw));
    uint8_t buffer[8192];
    ssize_t got = 0;
    while ((got = read(slave_, buffer, sizeof buffer)) > 0)
      device_.input.insert(device_.input.end(), buffer, buffer + got);
    return is_canonical(*device_.modes) ? set_modes(*device_.modes) : Status();
  }

  Status put_back(const Typing& typing) {
    TRY(write_all(master_, typing.keys));
    for (size_t seen = 0; seen < typing.echoes;) {
      if (!ready(master_, POLLIN, patience_ms)) return fail(Error::internal("put back the input", "it is not echoed"));
      seen += TRY(read_master(typing.echoes - seen)).size();
    }
    return write_all(slave_, device_.output);
  }
  Status write_all(int fd, const Bytes& bytes) const {
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t wrote = write(fd, bytes.data() + done, bytes.size() - done);
      if (wrote < 0 && errno == EAGAIN && ready(fd, POLLOUT, patience_ms)) continue;
      if (wrote <= 0) return fail_errno("write", subject_);
      done += static_cast<size_t>(wrote);
    }
    return {};
  }

  int master_, slave_;
  TerminalDevice& device_;
  const std::string& subject_;
};

}  // namespace

Status capture_queues(int master, TerminalDevice& device, const std::string& subject, Diagnostics& diagnostics) {
  // Where nobody has opened the slave side, looking there could not be undone.
  if (!device.slave_opened) return {};
  const UniqueFd slave(ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC));
  Queues queues(master, slave.get(), device, subject);
  const int access = fcntl(master, F_GETFL) & O_ACCMODE;
  if (!slave.valid() || access != O_RDWR || queues.is_stopped()) {
    const char* why = !slave.valid()     ? "it is locked"
                      : access != O_RDWR ? "its master side is open in one direction only"
                                         : "its output has been stopped (Ctrl-S)";
    diagnostics.warn(subject,
                     fmt::format("what waits to be read from {} cannot be looked at: {}", device.describe(), why),
                     "it is lost by a restore, after which output goes on");
    return {};
  }
  TRY(queues.take());
  return queues.put_back();
}

plan::Calls fill_queues(const TerminalDevice& device, int master, int slave) {
  plan::Calls calls;
  if (slave >= 0 && (!device.input.empty() || !device.input_ends.empty() || !device.output.empty())) {
    constexpr uint64_t in_sequence = ~0ull;
    const auto [modes, keys, echoes] = typing_of(device);
    calls.push_back(call(SYS_ioctl, master, set_termios, plan::struct_in(modes)));
    // Nobody waits for room: it is there, or the image says more than a kernel holds.
    calls.push_back(call(SYS_fcntl, master, F_SETFL, O_NONBLOCK));
    calls.push_back(call(plan::Call::write_fully, master, plan::In{keys}, keys.size(), in_sequence));
    calls.push_back(call(SYS_fcntl, master, F_SETFL, 0));
    if (echoes != 0) calls.push_back(call(plan::Call::read_fully, master, plan::Out{echoes}, echoes, in_sequence));
    if (!device.output.empty())
      calls.push_back(call(plan::Call::write_fully, slave, plan::In{device.output}, device.output.size(), in_sequence));
  }
  calls.push_back(call(SYS_ioctl, master, set_termios, plan::struct_in(*device.modes)));
  return calls;
}

}  // namespace stasis::resource
