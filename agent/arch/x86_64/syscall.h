// System calls without libc: the kernel's own convention, raw results (-errno on failure). Numbers from
// asm/unistd_64.h.
#pragma once

#include <cstdint>

namespace stasis::agent {

inline constexpr uint32_t call_read = 0, call_write = 1, call_close = 3, call_rt_sigaction = 13, call_mremap = 25,
                          call_io_setup = 206, call_io_submit = 209, call_memfd_create = 319, call_rt_sigprocmask = 14,
                          call_ioctl = 16, call_pread = 17, call_pwrite = 18, call_getpid = 39, call_exit = 60,
                          call_kill = 62, call_fcntl = 72, call_rt_sigtimedwait = 128, call_gettid = 186,
                          call_futex = 202, call_timer_settime = 223, call_clock_gettime = 228, call_exit_group = 231,
                          call_waitid = 247, call_epoll_ctl = 233, call_tgkill = 234, call_openat = 257,
                          call_epoll_pwait = 281, call_dup3 = 292, call_mmap = 9, call_munmap = 11,
                          call_io_uring_setup = 425, call_io_uring_enter = 426, call_shmget = 29, call_shmctl = 31,
                          call_flock = 73, call_socket = 41, call_sendto = 44, call_bind = 49, call_setsockopt = 54,
                          call_getsockopt = 55, call_nanosleep = 35;

inline int64_t raw_syscall(uint64_t number, uint64_t a0 = 0, uint64_t a1 = 0, uint64_t a2 = 0, uint64_t a3 = 0,
                           uint64_t a4 = 0, uint64_t a5 = 0) {
  register uint64_t r10 asm("r10") = a3;
  register uint64_t r8 asm("r8") = a4;
  register uint64_t r9 asm("r9") = a5;
  int64_t result;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(a0), "S"(a1), "d"(a2), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

extern "C" {
/// clone3 whose child continues in stasis_agent_run(area, slot), on the stack that the clone_args name. Returns the
/// child's id in the parent.
int64_t spawn_slot(const void* clone_args, uint64_t size, uint8_t* area, uint64_t slot);
/// Jumps to a task's leave code: the end of the agent in a task that goes on with its own life.
[[noreturn]] void jump_to(const uint8_t* code);
}

}  // namespace stasis::agent
