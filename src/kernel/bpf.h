// Small BPF programs as the kernel takes them, instruction by instruction (Documentation/bpf/standardization).
#pragma once

#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace stasis::kernel::bpf {

/// The register that leads to the program's own memory, which lies below it.
inline constexpr int frame = 10;

constexpr bpf_insn instruction(int code, int to, int from, int offset, int value) {
  return {static_cast<uint8_t>(code), static_cast<uint8_t>(to & 15), static_cast<uint8_t>(from & 15),
          static_cast<int16_t>(offset), value};
}
constexpr bpf_insn move(int to, int from) { return instruction(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0); }
constexpr bpf_insn set(int to, int value) { return instruction(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value); }
constexpr bpf_insn add(int to, int value) { return instruction(BPF_ALU64 | BPF_ADD | BPF_K, to, 0, 0, value); }
constexpr bpf_insn load(int to, int from, int offset) {
  return instruction(BPF_LDX | BPF_MEM | BPF_DW, to, from, offset, 0);
}
constexpr bpf_insn store(int to, int offset, int from) {
  return instruction(BPF_STX | BPF_MEM | BPF_DW, to, from, offset, 0);
}
constexpr bpf_insn helper(int number) { return instruction(BPF_JMP | BPF_CALL, 0, 0, 0, number); }
constexpr bpf_insn leave() { return instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0); }
constexpr bpf_insn skip_if_zero(int what, int count) {
  return instruction(BPF_JMP | BPF_JEQ | BPF_K, what, 0, count, 0);
}

inline int64_t call(int command, bpf_attr& attributes) {
  return syscall(SYS_bpf, command, &attributes, sizeof attributes);
}

}  // namespace stasis::kernel::bpf
