// The subset of classic BPF that kernel/seccomp.c (seccomp_check_filter) accepts: it only jumps forward, so every
// program ends.
#include "resource/seccomp_simulation.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

#include <cstring>

namespace stasis::resource {
namespace {

constexpr uint32_t refused = SECCOMP_RET_KILL_PROCESS;

class Machine {
 public:
  Machine(std::span<const sock_filter> code, const seccomp_data& data) : code_(code), data_(data) {}

  uint32_t run() {
    for (at_ = 0; at_ < code_.size() && !failed_; ++at_) {
      const auto& now = code_[at_];
      if (BPF_CLASS(now.code) == BPF_RET) return BPF_RVAL(now.code) == BPF_A ? a_ : now.k;
      step(now);
    }
    return refused;
  }

 private:
  void step(const sock_filter& now) {
    switch (BPF_CLASS(now.code)) {
      case BPF_LD:
        a_ = load(now);
        break;
      case BPF_LDX:
        x_ = load(now);
        break;
      case BPF_ST:
      case BPF_STX:
        if (now.k >= BPF_MEMWORDS) return fail();
        memory_[now.k] = BPF_CLASS(now.code) == BPF_ST ? a_ : x_;
        break;
      case BPF_ALU:
        compute(BPF_OP(now.code), BPF_SRC(now.code) == BPF_X ? x_ : now.k);
        break;
      case BPF_JMP:
        jump(now);
        break;
      case BPF_MISC:
        if (BPF_MISCOP(now.code) == BPF_TAX) {
          x_ = a_;
        } else {
          a_ = x_;
        }
        break;
      default:
        fail();
    }
  }

  uint32_t load(const sock_filter& now) {
    switch (BPF_MODE(now.code)) {
      case BPF_IMM:
        return now.k;
      case BPF_LEN:
        return sizeof(seccomp_data);
      case BPF_MEM:
        if (now.k < BPF_MEMWORDS) return memory_[now.k];
        break;
      case BPF_ABS:
        if (now.k % 4 == 0 && now.k < sizeof(seccomp_data)) {
          uint32_t word = 0;
          std::memcpy(&word, reinterpret_cast<const uint8_t*>(&data_) + now.k, sizeof word);
          return word;
        }
        break;
      default:
        break;
    }
    fail();
    return 0;
  }

  void compute(int operation, uint32_t operand) {
    switch (operation) {
      case BPF_ADD:
        a_ += operand;
        break;
      case BPF_SUB:
        a_ -= operand;
        break;
      case BPF_MUL:
        a_ *= operand;
        break;
      case BPF_DIV:
        if (operand == 0) return fail();  // the kernel answers 0 at once, which kills the thread
        a_ /= operand;
        break;
      case BPF_AND:
        a_ &= operand;
        break;
      case BPF_OR:
        a_ |= operand;
        break;
      case BPF_XOR:
        a_ ^= operand;
        break;
      case BPF_LSH:
        a_ <<= operand & 31;
        break;
      case BPF_RSH:
        a_ >>= operand & 31;
        break;
      case BPF_NEG:
        a_ = -a_;
        break;
      default:
        fail();
    }
  }

  void jump(const sock_filter& now) {
    const uint32_t operand = BPF_SRC(now.code) == BPF_X ? x_ : now.k;
    bool taken = false;
    switch (BPF_OP(now.code)) {
      case BPF_JA:
        if (now.k >= code_.size()) return fail();
        at_ += now.k;
        return;
      case BPF_JEQ:
        taken = a_ == operand;
        break;
      case BPF_JGT:
        taken = a_ > operand;
        break;
      case BPF_JGE:
        taken = a_ >= operand;
        break;
      case BPF_JSET:
        taken = (a_ & operand) != 0;
        break;
      default:
        return fail();
    }
    at_ += taken ? now.jt : now.jf;
  }

  void fail() { failed_ = true; }

  std::span<const sock_filter> code_;
  const seccomp_data& data_;
  size_t at_ = 0;
  uint32_t a_ = 0, x_ = 0, memory_[BPF_MEMWORDS]{};
  bool failed_ = false;
};

int32_t severity(uint32_t answer) { return static_cast<int32_t>(answer & SECCOMP_RET_ACTION_FULL); }

}  // namespace

uint32_t seccomp_answer(std::span<const model::SeccompFilter> chain, uint32_t number,
                        const std::array<uint64_t, 6>& arguments) {
  seccomp_data data{};
  data.nr = static_cast<int>(number);
  data.arch = AUDIT_ARCH_X86_64;
  std::memcpy(data.args, arguments.data(), sizeof data.args);
  uint32_t answer = SECCOMP_RET_ALLOW;
  for (const auto& filter : chain) {
    std::vector<sock_filter> code(filter.program.size() / sizeof(sock_filter));
    std::memcpy(code.data(), filter.program.data(), code.size() * sizeof(sock_filter));
    const uint32_t one = Machine(code, data).run();
    if (severity(one) < severity(answer)) answer = one;  // as signed numbers: KILL_PROCESS comes first
  }
  return answer;
}

bool seccomp_allows(std::span<const model::SeccompFilter> chain, uint32_t number,
                    const std::array<uint64_t, 6>& arguments) {
  const uint32_t action = seccomp_answer(chain, number, arguments) & SECCOMP_RET_ACTION_FULL;
  return action == SECCOMP_RET_ALLOW || action == SECCOMP_RET_LOG;
}

}  // namespace stasis::resource
