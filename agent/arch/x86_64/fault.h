// Instructions that the processor refuses: each makes the kernel send a signal of its own (arch/x86/kernel/traps.c).
#pragma once

#include <asm/signal.h>

#include <cstdint>

namespace stasis::agent {

/// Does nothing for signals that no fault leads to.
inline void fault(uint64_t signal) {
  switch (signal) {
    case SIGILL:
      asm volatile("ud2");
      break;
    case SIGTRAP:
      asm volatile("int3");
      break;
    case SIGFPE:
      asm volatile("xor %%ecx, %%ecx; div %%ecx" ::: "eax", "ecx", "edx");
      break;
    case SIGSEGV:
      asm volatile("hlt");
      break;
    case SIGBUS: {  // a word that is not aligned, where that is checked (EFLAGS.AC)
      const uint64_t words[2] = {};
      asm volatile("pushfq; orl $0x40000, (%%rsp); popfq; mov 1(%0), %%rax" ::"r"(words) : "rax", "memory");
      break;
    }
    default:
      break;
  }
}

}  // namespace stasis::agent
