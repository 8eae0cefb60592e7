// Handlers and what they return through, masks, pending signals of process and thread with their siginfo and order,
// alternate stack.
// LAZY
#include <pthread.h>

#include <initializer_list>

#include "probe.h"

namespace {

volatile int order[16], values[16], seen = 0;
volatile uintptr_t stack_in_handler = 0;
volatile int thread_ready = 0, thread_seen = 0;
char alternate[64 << 10];

void queued(int signal, siginfo_t* info, void*) {
  order[seen] = signal;
  values[seen] = info->si_value.sival_int;
  seen = seen + 1;
}

void on_stack(int, siginfo_t*, void*) {
  char here = 0;
  stack_in_handler = reinterpret_cast<uintptr_t>(&here);
}

void in_thread(int) { thread_seen = thread_seen + 1; }

void install(int signal, void (*handler)(int, siginfo_t*, void*), int flags) {
  struct sigaction action = {};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | flags;
  sigaddset(&action.sa_mask, SIGWINCH);
  CHECK(sigaction(signal, &action, nullptr) == 0);
}

/// struct sigaction as the kernel has it: the C library puts a restorer of its own into all others.
struct KernelAction {
  void (*handler)(int);
  unsigned long flags;
  void (*restorer)();
  unsigned long mask;
};
constexpr unsigned long sa_restorer = 0x04000000;
volatile int urgent = 0;
void on_urgent(int) { urgent = urgent + 1; }

/// rt_sigreturn(2)
extern "C" void own_restorer();
asm(".pushsection .text\nown_restorer: mov $15, %eax\nsyscall\n.popsection");

void install_with_restorer() {
  const KernelAction action = {on_urgent, sa_restorer | SA_NODEFER, own_restorer, 1ul << (SIGWINCH - 1)};
  CHECK(syscall(SYS_rt_sigaction, SIGURG, &action, nullptr, sizeof action.mask) == 0);
}

void expect_restorer() {
  KernelAction action;
  CHECK(syscall(SYS_rt_sigaction, SIGURG, nullptr, &action, sizeof action.mask) == 0);
  CHECK(action.handler == on_urgent && action.restorer == own_restorer);
  CHECK_EQUAL(action.flags, sa_restorer | SA_NODEFER);
  CHECK_EQUAL(action.mask, 1ul << (SIGWINCH - 1));
  raise(SIGURG);
  CHECK_EQUAL(urgent, 1);
}

void* thread(void*) {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &mask, nullptr);
  pthread_kill(pthread_self(), SIGUSR2);
  __atomic_store_n(&thread_ready, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  sigset_t now, pending;
  pthread_sigmask(SIG_SETMASK, nullptr, &now);
  CHECK(sigismember(&now, SIGUSR2) && sigismember(&now, SIGUSR1) && !sigismember(&now, SIGHUP));  // USR1 by inheritance
  sigpending(&pending);
  CHECK(sigismember(&pending, SIGUSR2));
  CHECK_EQUAL(thread_seen, 0);
  pthread_sigmask(SIG_UNBLOCK, &mask, nullptr);
  CHECK_EQUAL(thread_seen, 1);
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  install(SIGRTMIN, queued, 0);
  install(SIGRTMIN + 1, queued, SA_RESTART);
  install(SIGUSR1, on_stack, SA_ONSTACK | SA_RESETHAND);
  signal(SIGUSR2, in_thread);
  signal(SIGHUP, SIG_IGN);
  install_with_restorer();
  const stack_t stack = {alternate, 0, sizeof alternate};
  CHECK(sigaltstack(&stack, nullptr) == 0);
  sigset_t blocked;
  sigemptyset(&blocked);
  for (int signal : {SIGRTMIN, SIGRTMIN + 1, SIGUSR1}) sigaddset(&blocked, signal);
  CHECK(sigprocmask(SIG_BLOCK, &blocked, nullptr) == 0);
  for (int i = 0; i < 6; ++i) CHECK(sigqueue(getpid(), SIGRTMIN + i % 2, sigval{100 + i}) == 0);
  kill(getpid(), SIGUSR1);
  pthread_t other;
  pthread_create(&other, nullptr, thread, nullptr);
  probe::await(&thread_ready, 1);

  probe::ready();
  probe::wait_for_go();

  pthread_join(other, nullptr);
  sigset_t now, pending;
  sigprocmask(SIG_SETMASK, nullptr, &now);
  CHECK(memcmp(&now, &blocked, 8) == 0);
  sigpending(&pending);
  CHECK(sigismember(&pending, SIGUSR1) && sigismember(&pending, SIGRTMIN) && !sigismember(&pending, SIGUSR2));
  CHECK_EQUAL(seen, 0);
  sigprocmask(SIG_UNBLOCK, &blocked, nullptr);
  CHECK_EQUAL(seen, 6);
  int next[2] = {100, 101};
  for (int i = 0; i < 6; ++i) {
    const int which = order[i] - SIGRTMIN;
    CHECK(which == 0 || which == 1);
    CHECK_EQUAL(values[i], next[which]);
    next[which] += 2;
  }
  const auto base = reinterpret_cast<uintptr_t>(alternate);
  CHECK(stack_in_handler > base && stack_in_handler < base + sizeof alternate);
  struct sigaction action;
  CHECK(sigaction(SIGUSR1, nullptr, &action) == 0 && action.sa_handler == SIG_DFL);  // SA_RESETHAND
  CHECK(sigaction(SIGHUP, nullptr, &action) == 0 && action.sa_handler == SIG_IGN);
  CHECK(sigaction(SIGRTMIN + 1, nullptr, &action) == 0);
  CHECK(action.sa_flags & SA_RESTART && sigismember(&action.sa_mask, SIGWINCH));
  expect_restorer();
  return probe::passed();
}
