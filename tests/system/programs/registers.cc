// General, SSE, AVX and (where the CPU has it) AVX-512 registers survive in a thread that computes without system
// calls.
// LAZY
#include <immintrin.h>
#include <pthread.h>

#include "probe.h"

namespace {

volatile int stop_now = 0, spinning = 0;

/// Loads patterns into all vector registers, spins, stores them again. No call in between may touch them.
__attribute__((target("avx512f"), noinline)) bool spin_avx512() {
  alignas(64) uint64_t in[8], out[32][8];
  for (int i = 0; i < 8; ++i) in[i] = 0x0123456789abcdefull * (i + 1);
  asm volatile(
      "vmovdqa64 %[in], %%zmm0\n\t"
      "vpaddq %%zmm0, %%zmm0, %%zmm7\n\tvpaddq %%zmm7, %%zmm0, %%zmm15\n\tvpaddq %%zmm15, %%zmm0, %%zmm16\n\t"
      "vpaddq %%zmm16, %%zmm0, %%zmm31\n\t"
      "mov $0x5a5a, %%eax\n\tkmovw %%eax, %%k3\n\t"
      "movl $1, %[spinning]\n\t"
      "1: pause\n\tcmpl $0, %[stop]\n\tje 1b\n\t"
      "vmovdqa64 %%zmm0, %[o0]\n\tvmovdqa64 %%zmm7, %[o1]\n\tvmovdqa64 %%zmm15, %[o2]\n\tvmovdqa64 %%zmm16, %[o3]\n\t"
      "vmovdqa64 %%zmm31, %[o4]\n\tkmovw %%k3, %%eax\n\tmov %%rax, %[o5]\n\t"
      : [o0] "=m"(out[0]), [o1] "=m"(out[1]), [o2] "=m"(out[2]), [o3] "=m"(out[3]), [o4] "=m"(out[4]),
        [o5] "=m"(out[5][0]), [spinning] "=m"(spinning)
      : [in] "m"(in), [stop] "m"(stop_now)
      : "rax", "memory", "cc", "xmm0", "xmm7", "xmm15", "xmm16", "xmm31");
  bool good = (out[5][0] & 0xffff) == 0x5a5a;
  for (int i = 0; i < 8; ++i) {
    good = good && out[0][i] == in[i] && out[1][i] == 2 * in[i] && out[2][i] == 3 * in[i] && out[3][i] == 4 * in[i] &&
           out[4][i] == 5 * in[i];
  }
  return good;
}

__attribute__((noinline)) bool spin_sse() {
  alignas(16) uint64_t in[2] = {0x1122334455667788, 0x99aabbccddeeff00}, out[2][2];
  uint64_t general[4];
  asm volatile(
      "movdqa %[in], %%xmm0\n\tmovdqa %[in], %%xmm15\n\tfld1\n\tfldpi\n\t"
      "mov $0x1111, %%r12\n\tmov $0x2222, %%r13\n\tmov $0x3333, %%r14\n\tmov $0x4444, %%r15\n\t"
      "movl $1, %[spinning]\n\t"
      "1: pause\n\tcmpl $0, %[stop]\n\tje 1b\n\t"
      "movdqa %%xmm0, %[o0]\n\tmovdqa %%xmm15, %[o1]\n\tmov %%r12, %[g0]\n\tmov %%r13, %[g1]\n\tmov %%r14, %[g2]\n\t"
      "mov %%r15, %[g3]\n\tfstp %%st(0)\n\tfstp %%st(0)\n\t"
      : [o0] "=m"(out[0]), [o1] "=m"(out[1]), [g0] "=m"(general[0]), [g1] "=m"(general[1]), [g2] "=m"(general[2]),
        [g3] "=m"(general[3]), [spinning] "=m"(spinning)
      : [in] "m"(in), [stop] "m"(stop_now)
      : "r12", "r13", "r14", "r15", "xmm0", "xmm15", "memory", "cc");
  return memcmp(in, out[0], 16) == 0 && memcmp(in, out[1], 16) == 0 && general[0] == 0x1111 && general[1] == 0x2222 &&
         general[2] == 0x3333 && general[3] == 0x4444;
}

void* run(void* wide) {
  return reinterpret_cast<void*>(static_cast<long>(wide != nullptr ? spin_avx512() : spin_sse()));
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const bool wide = __builtin_cpu_supports("avx512f");
  pthread_t threads[2];
  CHECK(pthread_create(&threads[0], nullptr, run, nullptr) == 0);
  probe::await(&spinning, 1);
  spinning = 0;
  if (wide) {
    CHECK(pthread_create(&threads[1], nullptr, run, &threads) == 0);
    probe::await(&spinning, 1);
  }
  probe::ready();
  probe::wait_for_go();
  stop_now = 1;
  void* good = nullptr;
  CHECK(pthread_join(threads[0], &good) == 0 && good != nullptr);
  if (wide) CHECK(pthread_join(threads[1], &good) == 0 && good != nullptr);
  return probe::passed();
}
