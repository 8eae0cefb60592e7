#include "execute/arch/x86_64/final_registers.h"

#include <sys/syscall.h>
#include <sys/user.h>

#include <algorithm>
#include <cstring>

namespace stasis::execute {
namespace {

constexpr size_t legacy_area = 512, header_size = 64;

user_regs_struct general_of(ByteView bytes) {
  user_regs_struct registers{};
  std::memcpy(&registers, bytes.data(), std::min(bytes.size(), sizeof registers));
  return registers;
}

}  // namespace

Result<Bytes> final_general(const model::Registers& saved) {
  if (saved.general.size() != sizeof(user_regs_struct)) {
    return fail(Error::invalid("set registers", "the general register set has a wrong size"));
  }
  auto registers = general_of(saved.general);
  registers.orig_rax = ~0ull;
  return bytes_of(registers);
}

Result<Bytes> final_extended(const model::Registers& saved, size_t machine_size) {
  Bytes state = saved.extended;
  if (state.size() < legacy_area + header_size) {
    return fail(Error::invalid("set registers", "the extended register state is too small"));
  }
  if (state.size() > machine_size) {
    const auto cut = ByteView(state).subspan(machine_size);
    if (std::ranges::any_of(cut, [](uint8_t byte) { return byte != 0; })) {
      return fail(Error::conflict("set registers", "the task uses CPU features that this machine does not have")
                      .advise("restore on a machine with the same CPU features"));
    }
  }
  state.resize(machine_size);
  return state;
}

Bytes registers_for_call(ByteView general_now, uint64_t syscall_instruction, uint64_t number,
                         const kernel::CallArguments& arguments) {
  auto registers = general_of(general_now);
  registers.rip = syscall_instruction;
  registers.rax = number;
  registers.orig_rax = ~0ull;
  registers.rdi = arguments[0];
  registers.rsi = arguments[1];
  registers.rdx = arguments[2];
  registers.r10 = arguments[3];
  registers.r8 = arguments[4];
  registers.r9 = arguments[5];
  return bytes_of(registers);
}

kernel::CallArguments call_arguments(ByteView general) {
  const auto registers = general_of(general);
  return {registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9};
}

Bytes registers_after_call(ByteView general, int64_t result) {
  constexpr uint64_t instruction_size = 2;
  auto registers = general_of(general);
  registers.orig_rax = registers.rax;
  registers.rax = static_cast<uint64_t>(result);
  registers.rip += instruction_size;
  return bytes_of(registers);
}

uint64_t stack_pointer(ByteView general) {
  constexpr uint64_t alignment = 16;
  return general_of(general).rsp & ~(alignment - 1);
}

Result<uint64_t> find_syscall_instruction(ByteView code) {
  constexpr uint8_t pattern[] = {0x0f, 0x05};
  const auto found = std::search(code.begin(), code.end(), std::begin(pattern), std::end(pattern));
  if (found == code.end()) return fail(Error::internal("resume", "the agent has no system call instruction"));
  return static_cast<uint64_t>(found - code.begin());
}

int64_t call_result(ByteView general) { return static_cast<int64_t>(general_of(general).rax); }

}  // namespace stasis::execute
