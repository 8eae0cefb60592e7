#include "agent/area.h"

#include <fmt/format.h>
#include <linux/sched.h>

#include <algorithm>
#include <cstring>

extern "C" {
extern const uint8_t stasis_agent_blob_begin[];
extern const uint8_t stasis_agent_blob_end[];
}

namespace stasis::agent {

extern "C" void stasis_agent_run(uint8_t* area, uint64_t slot);

namespace {

static_assert(sizeof(clone_args) == clone_args_size);

constexpr uint64_t align(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

Operation operation_of(uint32_t number) {
  switch (number) {
    case plan::Call::read_fully:
      return Operation::read_fully;
    case plan::Call::write_fully:
      return Operation::write_fully;
    case plan::Call::get_actions:
      return Operation::get_actions;
    case plan::Call::move_fd:
      return Operation::move_fd;
    case plan::Call::start_overrun_timer:
      return Operation::start_overrun_timer;
    case plan::Call::epoll_add_fired:
      return Operation::epoll_add_fired;
    case plan::Call::open_at:
      return Operation::open_at;
    case plan::Call::setup_aio:
      return Operation::setup_aio;
    case plan::Call::setup_io_uring:
      return Operation::setup_io_uring;
    case plan::Call::map_in_place:
      static_assert(plan::Call::room_for_choices == spans_of_address_space * sizeof(AddressSpan));
      return Operation::map_in_place;
    case plan::Call::open_terminal:
      return Operation::open_terminal;
    case plan::Call::make_segment:
      return Operation::make_segment;
    case plan::Call::remove_segment:
      return Operation::remove_segment;
    case plan::Call::hold_directory:
      return Operation::hold_directory;
    case plan::Call::lead_packet_rings:
      return Operation::lead_packet_rings;
    default:
      return Operation::call;
  }
}

Expect lowered(plan::Expectation::Kind kind) {
  switch (kind) {
    case plan::Expectation::Kind::anything:
      return Expect::anything;
    case plan::Expectation::Kind::exactly:
      return Expect::exactly;
    case plan::Expectation::Kind::success_or:
      return Expect::success_or;
    case plan::Expectation::Kind::success:
      break;
  }
  return Expect::success;
}

template <typename T>
void put(std::span<uint8_t> bytes, uint64_t offset, const T& value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

template <typename T>
T get(ByteView bytes, uint64_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

/// Those of one instruction.
std::span<const OutArgument> outs_in(const std::vector<OutArgument>& all, uint32_t instruction) {
  return {std::ranges::equal_range(all, instruction, {}, &OutArgument::instruction)};
}

}  // namespace

ByteView blob() { return {stasis_agent_blob_begin, stasis_agent_blob_end}; }

void run_here(uint8_t* area, uint32_t slot) { stasis_agent_run(area, slot); }

uint64_t SlotProgram::add_data(ByteView bytes) {
  const uint64_t offset = align(data_.size(), 16);
  data_.resize(offset + bytes.size());
  std::ranges::copy(bytes, data_.begin() + static_cast<ptrdiff_t>(offset));
  return offset;
}

uint32_t SlotProgram::call(const plan::Call& call, uint32_t origin) {
  Instruction made{};
  made.operation = operation_of(call.number);
  made.number = call.number;
  made.expect = lowered(call.expect.kind);
  made.expected = call.expect.value;
  made.origin = origin;
  made.result_slot = size();
  for (size_t i = 0; i < call.arguments.size() && i < 6; ++i) {
    const auto data = [&](ByteView bytes, bool readable) {
      made.kinds[i] = ArgumentKind::data;
      made.args[i] = add_data(bytes);
      if (readable) outs_.push_back({size(), made.args[i], bytes.size()});
    };
    const auto& argument = call.arguments[i];
    if (const auto* value = std::get_if<uint64_t>(&argument))
      made.args[i] = *value;
    else if (const auto* in = std::get_if<plan::In>(&argument)) {
      data(in->bytes, false);
      for (const auto& [at, target] : in->pointers) pointers_.emplace_back(made.args[i] + at, made.args[i] + target);
    } else if (const auto* both = std::get_if<plan::InOut>(&argument))
      data(both->bytes, true);
    else if (const auto* out = std::get_if<plan::Out>(&argument))
      data(Bytes(out->size), true);
    else if (const auto* word = std::get_if<plan::WordOf>(&argument)) {
      const auto earlier = outs_in(outs_, static_cast<uint32_t>(static_cast<int64_t>(size()) + word->relative));
      if (!earlier.empty()) {
        made.kinds[i] = ArgumentKind::word;
        made.args[i] = earlier.front().offset + word->offset;
      }
    } else if (const auto* result = std::get_if<plan::ResultOf>(&argument)) {
      made.kinds[i] = ArgumentKind::result;
      made.args[i] = static_cast<uint64_t>(static_cast<int64_t>(size()) + result->relative);
    }
  }
  instructions_.push_back(made);
  return size() - 1;
}

void SlotProgram::control(Operation operation, uint64_t a, uint64_t b, uint32_t origin, uint64_t c) {
  Instruction made{};
  made.operation = operation;
  made.args[0] = a;
  made.args[1] = b;
  made.args[2] = c;
  made.origin = origin;
  made.expect = Expect::success;
  made.result_slot = size();
  instructions_.push_back(made);
}

void SlotProgram::spawn(uint64_t flags, uint64_t exit_signal, const std::vector<int32_t>& set_tid, uint32_t child,
                        uint32_t origin) {
  clone_args arguments{};
  arguments.flags = flags;
  arguments.exit_signal = exit_signal;
  arguments.set_tid_size = set_tid.size();
  Spawned made{size(), 0, ~0ull};
  made.clone_args = add_data(bytes_of(arguments));
  if (!set_tid.empty()) {
    made.set_tid = add_data({reinterpret_cast<const uint8_t*>(set_tid.data()), set_tid.size() * sizeof(int32_t)});
  }
  control(Operation::spawn, made.clone_args, child, origin);
  instructions_.back().kinds[0] = ArgumentKind::data;
  spawned_.push_back(made);
}

std::optional<uint32_t> SlotProgram::first_of(uint32_t origin) const {
  for (uint32_t i = 0; i < size(); ++i) {
    if (instructions_[i].origin == origin) return i;
  }
  return std::nullopt;
}

/// Lays slots out one after another: sizes first, so that every offset is known before a byte is written.
class AreaBuilder {
 public:
  AreaBuilder(uint64_t base, std::vector<SlotProgram>& programs, uint32_t counter_count)
      : base_(base), programs_(programs), counter_count_(counter_count) {
    place();
  }

  uint64_t content_size() const { return content_size_; }
  uint64_t size() const { return area_.size; }

  Result<Area> build(std::span<uint8_t> memory) {
    if (blob().size() > code_space)
      return fail(Error::internal("build the agent area", "the agent does not fit into its space"));
    memory_ = memory;
    write_header();
    for (uint32_t index = 0; index < programs_.size(); ++index) TRY(write_slot(index));
    return std::move(area_);
  }

 private:
  struct Place {
    uint64_t stack_top, instructions, results, data, leave_code;
  };

  void place() {
    area_.counters = align(code_space + sizeof(Header), 64);
    slots_ = align(area_.counters + counter_count_ * sizeof(uint32_t), 64);
    uint64_t next = align(slots_ + programs_.size() * sizeof(Slot), 64);
    for (const auto& program : programs_) {
      Place place{};
      place.instructions = align(next, 16);
      place.results = place.instructions + program.instructions_.size() * sizeof(Instruction);
      place.data = align(place.results + program.instructions_.size() * sizeof(int64_t), 16);
      place.leave_code = align(place.data + program.data_.size(), 64);
      next = place.leave_code + program.leave_code_.size();
      places_.push_back(place);
    }
    content_size_ = align(next, page_size);
    // Stacks come last, all together: they need neither be written nor be read back.
    next = content_size_;
    for (size_t index = 0; index < programs_.size(); ++index)
      next = places_[index].stack_top = next + align(programs_[index].stack_size_, 16);
    area_.size = align(next, page_size);
  }

  void write_header() {
    std::ranges::copy(blob(), memory_.begin());
    Header header{};
    header.magic = magic;
    header.version = abi_version;
    header.area_size = area_.size;
    header.slots = slots_;
    header.slot_count = static_cast<uint32_t>(programs_.size());
    header.counter_count = counter_count_;
    header.counters = area_.counters;
    put(memory_, code_space, header);
  }

  /// The stack and the ids of every child that the slot spawns, as addresses.
  Status resolve_spawns(SlotProgram& program, const Place& place) {
    for (const auto& spawned : program.spawned_) {
      const uint64_t child = program.instructions_[spawned.instruction].args[1];
      if (child >= programs_.size()) return fail(Error::internal("build the agent area", "a spawn names no slot"));
      auto arguments = get<clone_args>(program.data_, spawned.clone_args);
      if (programs_[child].stack_size_ != 0) {
        arguments.stack = base_ + places_[child].stack_top - programs_[child].stack_size_;
        arguments.stack_size = programs_[child].stack_size_;
      }
      if (spawned.set_tid != ~0ull) arguments.set_tid = base_ + place.data + spawned.set_tid;
      put(program.data_, spawned.clone_args, arguments);
    }
    return {};
  }

  Status write_slot(uint32_t index) {
    auto& program = programs_[index];
    const Place& place = places_[index];
    TRY(resolve_spawns(program, place));
    for (const auto& [at, target] : program.pointers_) put(program.data_, at, base_ + place.data + target);
    Area::SlotPlace known{slots_ + index * sizeof(Slot), place.stack_top, place.data, place.results, {}, {}};
    known.origins.reserve(program.size());
    uint64_t at = place.instructions;
    for (auto instruction : program.instructions_) {
      for (int i = 0; i < 6; ++i) {
        if (instruction.kinds[i] == ArgumentKind::data || instruction.kinds[i] == ArgumentKind::word) {
          instruction.args[i] += place.data;
        }
      }
      put(memory_, at, instruction);
      at += sizeof instruction;
      known.origins.push_back(instruction.origin);
    }
    known.outs = std::move(program.outs_);
    for (auto& out : known.outs) out.offset += place.data;
    Slot slot{};
    slot.instructions = place.instructions;
    slot.instruction_count = program.size();
    slot.end_mode = program.end_mode_;
    slot.results = place.results;
    slot.stack_top = place.stack_top;
    slot.leave_code = place.leave_code;
    slot.notify_signal = program.notify_signal_;
    put(memory_, known.slot, slot);
    std::ranges::copy(program.data_, memory_.begin() + static_cast<ptrdiff_t>(place.data));
    std::ranges::copy(program.leave_code_, memory_.begin() + static_cast<ptrdiff_t>(place.leave_code));
    area_.slots.push_back(std::move(known));
    return {};
  }

  uint64_t base_;
  std::vector<SlotProgram>& programs_;
  uint32_t counter_count_;
  uint64_t slots_ = 0, content_size_ = 0;
  std::span<uint8_t> memory_;
  std::vector<Place> places_;
  Area area_;
};

Result<Area> build_area(uint64_t base, std::vector<SlotProgram> programs, uint32_t counter_count) {
  AreaBuilder builder(base, programs, counter_count);
  Bytes bytes(builder.content_size());
  auto area = TRY(builder.build(bytes));
  area.bytes = std::move(bytes);
  return area;
}

Result<Area> build_area_in(std::span<uint8_t> memory, uint64_t base, std::vector<SlotProgram> programs,
                           uint32_t counter_count) {
  AreaBuilder builder(base, programs, counter_count);
  if (memory.size() < builder.size()) {
    return fail(Error::internal("build the agent area", fmt::format("the program needs {} bytes, the plan reserved {}",
                                                                    builder.size(), memory.size())));
  }
  return builder.build(memory);
}

int64_t result_of(const Area& area, ByteView bytes, uint32_t slot, uint32_t instruction) {
  return get<int64_t>(bytes, area.slots[slot].results + instruction * sizeof(int64_t));
}

std::vector<Bytes> outs_of(const Area& area, ByteView bytes, uint32_t slot, uint32_t instruction) {
  std::vector<Bytes> answers;
  for (const auto& out : outs_in(area.slots[slot].outs, instruction)) {
    const auto view = bytes.subspan(out.offset, out.size);
    answers.emplace_back(view.begin(), view.end());
  }
  return answers;
}

}  // namespace stasis::agent
