// Small BPF programs as the kernel takes them, instruction by instruction (Documentation/bpf/standardization), and the
// running of one that answers a question.
#pragma once

#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace stasis::kernel::bpf {

/// The register that leads to the program's own memory, which lies below it.
inline constexpr int frame = 10;

constexpr bpf_insn instruction(int code, int to, int from, int offset, int value) {
  return {static_cast<uint8_t>(code), static_cast<uint8_t>(to & 15), static_cast<uint8_t>(from & 15),
          static_cast<int16_t>(offset), value};
}
constexpr bpf_insn move(int to, int from) { return instruction(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0); }
constexpr bpf_insn set(int to, int value) { return instruction(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value); }
constexpr bpf_insn add(int to, int value) {
  return instruction(BPF_ALU64 | BPF_ADD, to, 0, 0, value);  // and BPF_K, which is 0, too
}
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

/// The address of a map that is behind a descriptor; takes the room of two instructions.
constexpr bpf_insn address_of_map(int to, int fd) {
  return instruction(BPF_LD | BPF_IMM | BPF_DW, to, BPF_PSEUDO_MAP_FD, 0, fd);
}
constexpr bpf_insn second_half() { return instruction(0, 0, 0, 0, 0); }

inline int64_t call(int command, bpf_attr& attributes) {
  return syscall(SYS_bpf, command, &attributes, sizeof attributes);
}

/// A program that is given a word, the first of its context, and leaves its answer in the second.
class Question {
 public:
  static constexpr int answer_at = sizeof(uint64_t);

  /// `what` it does is for messages.
  static Result<Question> load(std::span<const bpf_insn> program, std::string what);
  /// A program that leaves anything but 0 has found nothing (ErrorCode::conflict).
  Result<uint64_t> ask(uint64_t argument) const;

 private:
  std::string what_;
  UniqueFd program_;
};

}  // namespace stasis::kernel::bpf
