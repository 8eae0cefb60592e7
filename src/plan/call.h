// A system call as data: the common tongue of rooms, planner, verifier and agent.
//
// Capture asks questions with it (and reads Out arguments back), a Program carries it inside PERFORM commands.
// Its JSON form is {"call": "prctl", "args": [15, {"in": "hex"}, {"out": 64}, {"result": -1}], "expect": "success"}.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/types.h"

namespace stasis::plan {

struct In {  ///< pointer to these bytes
  Bytes bytes;
  /// Words inside the bytes that are pointers themselves: at the first offset stands the address of the second.
  std::vector<std::pair<uint32_t, uint32_t>> pointers = {};
  friend bool operator==(const In&, const In&) = default;
};
struct Out {  ///< pointer to this many zeroed bytes, readable afterwards
  uint64_t size = 0;
  friend bool operator==(const Out&, const Out&) = default;
};
struct InOut {  ///< both
  Bytes bytes;
  friend bool operator==(const InOut&, const InOut&) = default;
};
/// The result of an earlier call of the same list: -1 is the one just before.
struct ResultOf {
  int relative = -1;
  friend bool operator==(const ResultOf&, const ResultOf&) = default;
};
/// The 32-bit number at `offset` of the first output argument of an earlier call of the same list: pipe2's descriptors.
struct WordOf {
  int relative = -1;
  uint32_t offset = 0;
  friend bool operator==(const WordOf&, const WordOf&) = default;
};
using Argument = std::variant<uint64_t, In, Out, InOut, ResultOf, WordOf>;

struct Expectation {
  enum class Kind : uint8_t { success, anything, exactly, success_or };
  Kind kind = Kind::success;
  int64_t value = 0;
  friend bool operator==(const Expectation&, const Expectation&) = default;
};

struct Call {
  /// Pseudo numbers beside real system calls: whole transfers, retried until complete.
  static constexpr uint32_t read_fully = 0x10000;  ///< args: descriptor, address, length, offset (~0: current)
  static constexpr uint32_t write_fully = 0x10001;
  /// args: descriptor, wanted number, O_CLOEXEC or 0, and 1 if it was opened with just that. Moves a descriptor to its
  /// number unless it has it already.
  static constexpr uint32_t move_fd = 0x10002;
  /// args: Out of 64 kernel sigaction structures. 64 separate questions would be most of an interview.
  static constexpr uint32_t get_actions = 0x10003;
  /// args: timer id, clock, struct itimerspec (interval and what remains), signal, overruns. Starts an interval timer
  /// as if its last signal had come after so many overruns (timer_getoverrun).
  static constexpr uint32_t start_overrun_timer = 0x10004;
  /// args: epoll, target, struct epoll_event for all events, and one for those that a fired one-shot keeps.
  static constexpr uint32_t epoll_add_fired = 0x10005;
  /// args: path, flags, mode, wanted number. openat and move_fd in one: trees have thousands of files.
  static constexpr uint32_t open_at = 0x10006;
  /// args: requests, address and length of the ring, agent::AioRingState with the events that nobody has taken.
  static constexpr uint32_t setup_aio = 0x10007;
  /// args: index, flags, Out of 4 bytes for each lower index. Opens the master side of the pseudo-terminal with this
  /// index; -EBUSY if somebody else has it.
  static constexpr uint32_t open_terminal = 0x10008;

  /// args: InOut of struct io_uring_params, agent::IoUringState with the entries. Makes an io_uring that stands so.
  static constexpr uint32_t setup_io_uring = 0x10009;
  /// args: descriptor, address, length, offset, protection, Out for the kernel's choices. Maps what can only be mapped
  /// where the kernel chooses: for the moment nothing else is left to choose.
  static constexpr uint32_t map_in_place = 0x1000a;
  static constexpr uint64_t room_for_choices = 65536;
  /// args: id, key, size, flags of shmget, the sysctl that chooses ids, the id as text. Makes a System V segment with
  /// this id, which others want to be chosen for them at the same time; -EBUSY if somebody else has it.
  static constexpr uint32_t make_segment = 0x1000b;
  /// args: id. Removes the System V segment if the caller's process has made it.
  static constexpr uint32_t remove_segment = 0x1000c;
  /// args: path. Opens the directory and holds it (flock(2)) against all who do the same, until the descriptor is
  /// closed. Whoever has it for longer than a moment is none of these, and not waited for.
  static constexpr uint32_t hold_directory = 0x1000d;
  /// args: packet socket, file of what is in its rings, agent::PacketRings. Has the kernel go on in its new rings where
  /// it did in others, and fills them.
  static constexpr uint32_t lead_packet_rings = 0x1000e;

  uint32_t number = 0;
  std::vector<Argument> arguments;
  Expectation expect;
  friend bool operator==(const Call&, const Call&) = default;
};
using Calls = std::vector<Call>;

/// Arguments from anything convertible: `call(SYS_prctl, PR_SET_NAME, In{…})`.
template <typename T>
Argument argument(T&& value) {
  using Plain = std::remove_cvref_t<T>;
  if constexpr (std::is_enum_v<Plain>)
    return static_cast<uint64_t>(value);
  else if constexpr (std::is_integral_v<Plain>)
    return static_cast<uint64_t>(static_cast<int64_t>(value));
  else
    return std::forward<T>(value);
}
template <typename... Args>
Call call(uint32_t number, Args&&... args) {
  return Call{number, {argument(std::forward<Args>(args))...}, {}};
}
inline Call expecting(Call made, Expectation::Kind kind, int64_t value = 0) {
  made.expect = {kind, value};
  return made;
}

/// A structure followed by what it points to: the pointer at `offset_of_pointer` is that of `pointee`.
template <typename T>
In struct_pointing_to(const T& value, size_t offset_of_pointer, ByteView pointee) {
  In in{bytes_of(value)};
  in.bytes.resize((in.bytes.size() + 7) / 8 * 8);
  in.pointers.emplace_back(offset_of_pointer, in.bytes.size());
  in.bytes.insert(in.bytes.end(), pointee.begin(), pointee.end());
  return in;
}

/// A NUL-terminated path or name.
In text(std::string_view value);
/// The bytes of a plain structure.
template <typename T>
In struct_in(const T& value) {
  return In{bytes_of(value)};
}

/// "prctl", or "syscall 999" where the name is not known. From the generated table of the architecture.
std::string call_name(uint32_t number);
/// The number for a name; -1 if there is none.
int64_t call_number(std::string_view name);

}  // namespace stasis::plan
