// What is behind descriptors of terminals, and its records.
//
// A pseudo-terminal is a pair: what is written to its master side is the input of its slave side. One object stands for
// both; CRIU has a tty-info record for each side.
#pragma once

#include <sys/ioctl.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "image/file_records.h"
#include "model/application.h"

namespace stasis::resource {

/// struct termios2 of the kernel (include/uapi/asm-generic/termbits.h), which is not that of the C library.
struct KernelTermios {
  uint32_t input = 0, output = 0, control = 0, local = 0;
  uint8_t line = 0;
  std::array<uint8_t, 19> characters{};
  uint32_t input_speed = 0, output_speed = 0;  ///< those that have no name (BOTHER)
  friend bool operator==(const KernelTermios&, const KernelTermios&) = default;
};
static_assert(sizeof(KernelTermios) == 44);
inline constexpr unsigned long get_termios = _IOR('T', 0x2A, KernelTermios);  ///< TCGETS2
inline constexpr unsigned long set_termios = _IOW('T', 0x2B, KernelTermios);  ///< TCSETS2

/// The kind of terminal behind a device number; nothing: it is none.
std::optional<TtyType> terminal_type(dev_t device);
/// There without anybody's doing (TerminalDevice::of_machine).
inline bool is_of_machine(TtyType type) { return type == VT || type == CONSOLE || type == SERIAL; }
/// Opening it makes a new pseudo-terminal.
bool is_multiplexer(dev_t device);

/// More than the kernel's buffers hold (drivers/tty/pty.c, pty_common_install).
inline constexpr size_t longest_terminal_queue = 32 << 10;

/// The device.
struct TerminalDevice final : model::KindValue {
  TtyType type = UNKNOWN;
  uint32_t device = 0;  ///< its number; of a pair that of the slave side
  uint32_t filesystem = 0, uid = 0, gid = 0, mode = 0;
  bool exclusive = false;
  std::optional<KernelTermios> modes, locked_modes;
  winsize window{};

  // Of a pseudo-terminal whose master side is part of the tree.
  bool is_pair = false;
  bool master_exclusive = false, locked = false, packet_mode = false, slave_opened = false;
  Pid session, foreground;  ///< as in model::Terminal; also of one of the machine

  Bytes input;                       ///< that the slave side has not read yet
  std::vector<uint32_t> input_ends;  ///< ends of files in it: so many bytes stand before each
  Bytes output;                      ///< that the master side has not read yet

  /// Of a pseudo-terminal whose master side has been closed: nothing is left of it.
  bool hung_up = false;
  /// A virtual terminal, a serial line, the console, which is there without anybody's doing: it is opened again, unless
  /// the tree was lent it (--shell-job). Session and foreground as above.
  bool of_machine = false;

  // Of one that belongs to somebody else: not compared, as the window is not.
  pid_t group = 0;     ///< in its foreground, in the tree's namespace; 0: none of the tree
  int inherited = -1;  ///< restore: the descriptor of ours that is a terminal; -1: there is none

  /// Neither made again nor opened again.
  bool is_foreign() const { return !is_pair && !hung_up && !of_machine; }

  std::string_view kind() const override { return "terminal device"; }
  bool equals(const model::KindValue& other) const override;
  std::string describe() const override;
};

/// What a description refers to. Its path changes when a terminal of somebody else is another one after the restore.
struct Terminal final : model::KindValue {
  ObjectId device;
  std::string path;
  bool is_master = false;
  bool is_current = false;                      ///< opened as /dev/tty by a process that a terminal of ours controls
  std::shared_ptr<const TerminalDevice> known;  ///< the device
  uint64_t opened_on = 0;                       ///< of an image: the number of that terminal, if it says so

  std::string_view kind() const override { return "terminal"; }
  bool equals(const model::KindValue& other) const override;
  std::string describe() const override { return "terminal " + path; }
};

const TerminalDevice& device_of(const model::OpenDescription&);

/// Modes, window and exclusive use, from a descriptor of it, as far as it tells.
void capture_modes(int fd, TerminalDevice&);

/// The object of a device. They are no ids of ours: as objects they have numbers that nothing else has.
ObjectId terminal_object(TtyType, dev_t device);

/// The tty-info record of the description's side, where it is the first of it, and what is queued there.
Status encode_terminal_info(const model::Application&, const Terminal&, image::FileRecords&);
uint32_t terminal_info_id(const model::Application&, const Terminal&);
/// The object of the device that the record of files.img refers to. `subject` is for errors.
Result<ObjectId> terminal_object_of_info(const image::FileRecords&, uint32_t info_id, const std::string& subject);
/// That device, from the records of both of its sides.
Result<std::shared_ptr<TerminalDevice>> decode_terminal_device(const image::FileRecords&, uint32_t info_id,
                                                               const std::string& subject);
/// The tty-info record of a device of the machine; 0: there is none.
Result<uint32_t> find_terminal_info(const image::FileRecords&, uint64_t device);
/// Whether the tty-info record is that of a master side.
bool is_master_info(uint32_t info_id);

}  // namespace stasis::resource
