// The agent area as stasis builds and reads it: slots with programs made of plan::Calls and control instructions.
//
// Used for both directions: a dump uploads the finished bytes into a task and downloads them again; a restore writes
// them into shared memory that every process maps.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "agent/abi.h"
#include "base/result.h"
#include "base/types.h"
#include "plan/call.h"

namespace stasis::agent {

/// The agent's machine code.
ByteView blob();

/// Runs a slot of an area in this process with the interpreter compiled into stasis (EndMode::return_to_caller).
void run_here(uint8_t* area, uint32_t slot);

/// Where an Out or InOut argument of an instruction lies, for reading the answer.
struct OutArgument {
  uint32_t instruction = 0;
  uint64_t offset = 0;  ///< in the area
  uint64_t size = 0;
};

/// One slot's program under construction. Offsets into the area are known only when the area is finished: until then
/// data is numbered from the slot's own data.
class SlotProgram {
 public:
  /// `stack_size` 0: of a child that is born with a copy of its parent's memory, and goes on with that of its stack.
  explicit SlotProgram(EndMode end_mode, uint64_t stack_size = 2048) : end_mode_(end_mode), stack_size_(stack_size) {}

  /// Appends a call; `origin` is reported when it fails. Returns its index in this program.
  uint32_t call(const plan::Call& call, uint32_t origin);
  /// A list whose ResultOf arguments refer to each other.
  void calls(const plan::Calls& calls, uint32_t origin) {
    for (const auto& one : calls) call(one, origin);
  }
  void wait(uint32_t counter, uint32_t value, uint32_t origin) { control(Operation::wait, counter, value, origin); }
  void post(uint32_t counter, uint32_t amount, uint32_t wake_from, uint32_t origin) {
    control(Operation::post, counter, amount, origin, wake_from);
  }
  void exit(uint64_t how, uint64_t value, uint32_t origin) { control(Operation::exit, how, value, origin); }
  void await_child(pid_t child, uint32_t origin) {
    control(Operation::await_child, static_cast<uint64_t>(child), 0, origin);
  }
  /// clone3 with these arguments (struct clone_args; stack is filled in), running `child` afterwards. `set_tid`: ids
  /// from the innermost pid namespace outwards.
  void spawn(uint64_t flags, uint64_t exit_signal, const std::vector<int32_t>& set_tid, uint32_t child,
             uint32_t origin);

  void set_end_mode(EndMode mode) { end_mode_ = mode; }
  EndMode end_mode() const { return end_mode_; }
  void set_leave_code(Bytes code) { leave_code_ = std::move(code); }
  void set_notify_signal(int signal) { notify_signal_ = signal; }
  uint32_t size() const { return static_cast<uint32_t>(instructions_.size()); }
  /// The number of instructions that carry this origin begin here; nothing if there are none.
  std::optional<uint32_t> first_of(uint32_t origin) const;
  Instruction& instruction(uint32_t index) { return instructions_[index]; }

 private:
  friend class AreaBuilder;
  struct Spawned {
    uint32_t instruction;
    uint64_t clone_args;  ///< offset in data_
    uint64_t set_tid;     ///< offset in data_, ~0: none
  };
  void control(Operation operation, uint64_t a, uint64_t b, uint32_t origin, uint64_t c = 0);
  uint64_t add_data(ByteView bytes);

  EndMode end_mode_;
  uint64_t stack_size_;
  int notify_signal_ = 0;
  Bytes leave_code_;
  std::vector<Instruction> instructions_;
  std::vector<OutArgument> outs_;  ///< in the order of the instructions, offsets in data_
  std::vector<Spawned> spawned_;
  std::vector<std::pair<uint64_t, uint64_t>> pointers_;  ///< offsets in data_: where an address stands, and of what
  Bytes data_;
};

/// A finished area: its bytes and where the slots' parts lie.
struct Area {
  struct SlotPlace {
    uint64_t slot = 0, stack_top = 0, data = 0, results = 0;
    std::vector<OutArgument> outs;  ///< in the order of the instructions, offsets in the area
    std::vector<uint32_t> origins;  ///< per instruction
  };
  uint64_t size = 0;  ///< of the whole area, in whole pages
  Bytes bytes;        ///< its beginning: all but the stacks, which are zeros. Empty if the area was built in place
  uint64_t counters = 0;
  std::vector<SlotPlace> slots;
};

/// Lays everything out for an area at `base` and resolves all references.
Result<Area> build_area(uint64_t base, std::vector<SlotProgram> programs, uint32_t counter_count);
/// The same in memory that is all zeros: a large area is written once, and its stacks are not touched.
Result<Area> build_area_in(std::span<uint8_t> memory, uint64_t base, std::vector<SlotProgram> programs,
                           uint32_t counter_count);

/// Results read back from the bytes of an area after its slots have run.
int64_t result_of(const Area& area, ByteView bytes, uint32_t slot, uint32_t instruction);
std::vector<Bytes> outs_of(const Area& area, ByteView bytes, uint32_t slot, uint32_t instruction);

}  // namespace stasis::agent
