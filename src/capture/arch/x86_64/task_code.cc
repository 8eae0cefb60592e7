#include "capture/arch/x86_64/task_code.h"

#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/user.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <vector>

#include <fmt/format.h>

#include "kernel/process.h"
#include "kernel/ptrace.h"

namespace stasis::capture {
namespace {

using Registers = user_regs_struct;

constexpr uint64_t user_code_segment = 0x33;  // __USER_CS; 0x23 is 32-bit code
constexpr uint64_t syscall_size = 2;
constexpr int64_t restart_sys = -512, restart_no_interrupt = -513, restart_no_handler = -514, restart_block = -516;
constexpr uint64_t no_call = ~uint64_t{0};
constexpr uint64_t trap_flag = 0x100, direction_flag = 0x400, alignment_flag = 0x40000;

Registers load(ByteView general) {
  Registers registers{};
  std::memcpy(&registers, general.data(), std::min(general.size(), sizeof registers));
  return registers;
}

// ---- a very small assembler: instructions that load from, or jump through, 64-bit constants behind the code

class Code {
 public:
  Code() {
    code_.reserve(usual_size);
    references_.reserve(usual_references);
  }
  void bytes(std::initializer_list<uint8_t> list) { code_.insert(code_.end(), list); }
  /// An instruction whose last four bytes are the distance to this constant.
  void with_constant(std::initializer_list<uint8_t> opcode, uint64_t constant) {
    bytes(opcode);
    references_.push_back({code_.size(), constant});
    bytes({0, 0, 0, 0});
  }
  void with_immediate(std::initializer_list<uint8_t> opcode, uint32_t value) {
    bytes(opcode);
    for (int shift = 0; shift < 32; shift += 8) code_.push_back(static_cast<uint8_t>(value >> shift));
  }
  size_t size() const { return code_.size(); }
  /// Sets the one-byte distance at `position` to reach the current end.
  void land(size_t position) { code_[position] = static_cast<uint8_t>(code_.size() - position - 1); }

  Bytes finish() {
    while (code_.size() % sizeof(uint64_t) != 0) code_.push_back(0xcc);
    for (const auto& reference : references_) {
      const auto distance = static_cast<uint32_t>(code_.size() - reference.position - sizeof(uint32_t));
      std::memcpy(code_.data() + reference.position, &distance, sizeof distance);
      const auto value = bytes_of(reference.constant);
      code_.insert(code_.end(), value.begin(), value.end());
    }
    return std::move(code_);
  }

 private:
  struct Reference {
    size_t position;
    uint64_t constant;
  };
  static constexpr size_t usual_size = 384, usual_references = 24;  ///< one allocation instead of many
  Bytes code_;
  std::vector<Reference> references_;
};

constexpr std::initializer_list<uint8_t> system_call = {0x0f, 0x05};

/// What a call of a C function would keep: flags, stack pointer and the callee-saved registers. Flags come first, while
/// the stack pointer is free to point at them; nothing after it changes them. From here on the stack is the task's own,
/// so that a handler finds room there.
void emit_kept_registers(Code& code, const Registers& registers) {
  code.with_constant({0x48, 0x8d, 0x25}, registers.eflags);  // lea flags(%rip), %rsp
  code.bytes({0x9d});                                        // popfq
  code.with_constant({0x48, 0x8b, 0x25}, registers.rsp);     // mov …(%rip), %rsp
  code.with_constant({0x48, 0x8b, 0x2d}, registers.rbp);
  code.with_constant({0x48, 0x8b, 0x1d}, registers.rbx);
  code.with_constant({0x4c, 0x8b, 0x25}, registers.r12);
  code.with_constant({0x4c, 0x8b, 0x2d}, registers.r13);
  code.with_constant({0x4c, 0x8b, 0x35}, registers.r14);
  code.with_constant({0x4c, 0x8b, 0x3d}, registers.r15);
}

/// rt_sigprocmask(SIG_SETMASK, &mask, NULL, 8). No instruction here touches the flags.
void emit_signal_mask(Code& code, uint64_t mask) {
  code.with_immediate({0xb8}, SYS_rt_sigprocmask);      // mov $…, %eax
  code.with_immediate({0xbf}, SIG_SETMASK);             // mov $…, %edi
  code.with_constant({0x48, 0x8d, 0x35}, mask);         // lea mask(%rip), %rsi
  code.with_immediate({0xba}, 0);                       // mov $0, %edx
  code.with_immediate({0x41, 0xba}, sizeof(uint64_t));  // mov $8, %r10d
  code.bytes(system_call);
}

/// What a system call and its arguments change, and the jump back.
void emit_call_registers(Code& code, const Registers& registers) {
  code.with_constant({0x48, 0x8b, 0x05}, registers.rax);
  code.with_constant({0x48, 0x8b, 0x0d}, registers.rcx);
  code.with_constant({0x48, 0x8b, 0x15}, registers.rdx);
  code.with_constant({0x48, 0x8b, 0x35}, registers.rsi);
  code.with_constant({0x48, 0x8b, 0x3d}, registers.rdi);
  code.with_constant({0x4c, 0x8b, 0x05}, registers.r8);
  code.with_constant({0x4c, 0x8b, 0x0d}, registers.r9);
  code.with_constant({0x4c, 0x8b, 0x15}, registers.r10);
  code.with_constant({0x4c, 0x8b, 0x1d}, registers.r11);
  code.with_constant({0xff, 0x25}, registers.rip);  // jmp *…(%rip)
}

}  // namespace

bool is_native(ByteView general) {
  return general.size() == sizeof(Registers) && load(general).cs == user_code_segment;
}

bool may_have_exchanged_mask(ByteView general) {
  constexpr uint64_t last_known = 469;  // file_setattr, of Linux 6.17
  constexpr uint64_t exchanging[] = {SYS_rt_sigsuspend, SYS_ppoll,         SYS_pselect6,      SYS_epoll_pwait,
                                     SYS_epoll_pwait2,  SYS_io_pgetevents, SYS_io_uring_enter};
  if (!is_native(general)) return true;
  const uint64_t number = load(general).orig_rax;
  return number != no_call && (number > last_known || std::ranges::find(exchanging, number) != std::end(exchanging));
}

Bytes plain_registers(ByteView general, Resumption resumption, Handler handler) {
  Registers registers = load(general);
  if (registers.orig_rax != no_call) {
    const auto code = static_cast<int64_t>(registers.rax);
    const bool restarts =
        code == restart_sys || code == restart_no_interrupt || code == restart_no_handler || code == restart_block;
    const bool ends = (handler != Handler::none && (code == restart_no_handler || code == restart_block)) ||
                      (handler == Handler::interrupts && code == restart_sys);
    if (ends) {
      registers.rax = static_cast<uint64_t>(-int64_t{EINTR});
    } else if (restarts) {
      const bool continues = code == restart_block && resumption == Resumption::live;
      registers.rax = continues ? static_cast<uint64_t>(SYS_restart_syscall) : registers.orig_rax;
      registers.rip -= syscall_size;
    }
    registers.orig_rax = no_call;
  }
  return bytes_of(registers);
}

std::optional<uint64_t> restartable_call(ByteView general) {
  const Registers registers = load(general);
  if (registers.orig_rax == no_call || static_cast<int64_t>(registers.rax) != restart_block) return std::nullopt;
  return registers.orig_rax;
}

kernel::CallArguments call_arguments(ByteView general) {
  const Registers registers = load(general);
  return {registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9};
}

Bytes with_call_number(ByteView general, uint64_t number) {
  Registers registers = load(general);
  registers.orig_rax = number;
  return bytes_of(registers);
}

Status leave_restartable_sequence(pid_t tid, Bytes& general) {
  // include/uapi/linux/rseq.h: struct rseq has the pointer to the descriptor at 8; 0 outside of a section.
  struct Descriptor {
    uint32_t version, flags;
    uint64_t start, length, abort;
  } descriptor{};
  constexpr uint64_t descriptor_pointer = 8;

  // A system call is not allowed inside such a section (kernel/rseq.c, rseq_syscall).
  if (load(general).orig_rax != no_call) return {};
  const auto registered = kernel::ptrace_get_rseq(tid);
  if (!registered && registered.error().code() != ErrorCode::gone) return {};  // a kernel without rseq
  if (!registered) return fail(registered.error());
  if (registered->address == 0) return {};
  uint64_t address = 0;
  const auto read = [&](uint64_t from, auto& into) {
    return kernel::read_memory(tid, RemoteAddress{from}, {reinterpret_cast<uint8_t*>(&into), sizeof into});
  };
  // Unreadable: the kernel will say so to the task itself, in its own way.
  if (!read(registered->address + descriptor_pointer, address) || address == 0 || !read(address, descriptor)) return {};
  Registers registers = load(general);
  if (registers.rip - descriptor.start >= descriptor.length) return {};
  registers.rip = descriptor.abort;
  general = bytes_of(registers);
  return {};
}

Bytes call_registers(ByteView general, uint64_t rip, uint64_t number, const uint64_t (&arguments)[6]) {
  Registers registers = load(general);
  registers.rip = rip;
  registers.rax = number;
  registers.orig_rax = no_call;
  registers.rdi = arguments[0];
  registers.rsi = arguments[1];
  registers.rdx = arguments[2];
  registers.r10 = arguments[3];
  registers.r8 = arguments[4];
  registers.r9 = arguments[5];
  return bytes_of(registers);
}

Bytes registers_at(ByteView general, uint64_t rip) {
  Registers registers = load(general);
  registers.rip = rip;
  registers.orig_rax = no_call;
  return bytes_of(registers);
}

Bytes agent_registers(ByteView general, uint64_t area, uint64_t slot, uint64_t stack) {
  Registers registers = load(general);
  registers.rip = area;
  registers.rdi = area;
  registers.rsi = slot;
  registers.rsp = stack;
  registers.eflags &= ~(trap_flag | direction_flag | alignment_flag);
  registers.orig_rax = no_call;
  return bytes_of(registers);
}

int64_t call_result(ByteView general) { return static_cast<int64_t>(load(general).rax); }

uint64_t call_number(ByteView general) { return load(general).orig_rax; }

uint64_t program_counter(ByteView general) { return load(general).rip; }

bool is_leaving(ByteView general) {
  const Registers registers = load(general);
  const auto entering = static_cast<int64_t>(registers.rax) == -int64_t{ENOSYS};  // how the kernel marks the entry
  return entering && (registers.orig_rax == SYS_rt_sigprocmask || registers.orig_rax == SYS_munmap);
}

Stub make_stub(ByteView plain, uint64_t signal_mask, AddressRange area) {
  const Registers registers = load(plain);
  Stub stub;
  Code code;
  code.bytes(system_call);
  // Was it the mmap, and did it succeed? rax == area.begin, found without touching the flags.
  code.with_constant({0x48, 0x8b, 0x0d}, uint64_t{0} - area.begin);  // mov -area(%rip), %rcx
  code.bytes({0x48, 0x8d, 0x0c, 0x01});                              // lea (%rcx,%rax), %rcx
  code.bytes({0xe3, 0x02});                                          // jrcxz unmap
  code.bytes({0xeb, 0x00});                                          // jmp mask
  const size_t jump_distance = code.size() - 1;
  stub.unmap_entry = code.size();
  code.with_immediate({0xb8}, SYS_munmap);
  code.with_constant({0x48, 0x8b, 0x3d}, area.begin);   // mov …(%rip), %rdi
  code.with_constant({0x48, 0x8b, 0x35}, area.size());  // mov …(%rip), %rsi
  code.bytes(system_call);
  code.land(jump_distance);
  emit_signal_mask(code, signal_mask);
  emit_call_registers(code, registers);
  stub.code = code.finish();
  return stub;
}

Bytes make_leave_code(ByteView plain, uint64_t signal_mask) {
  const Registers registers = load(plain);
  Code code;
  emit_kept_registers(code, registers);
  emit_signal_mask(code, signal_mask);
  emit_call_registers(code, registers);
  return code.finish();
}

Bytes make_leave_code_through(ByteView plain, uint64_t stub_unmap_address) {
  Code code;
  emit_kept_registers(code, load(plain));
  code.with_constant({0xff, 0x25}, stub_unmap_address);
  return code.finish();
}

}  // namespace stasis::capture
