// Contexts of asynchronous I/O: events that nobody has taken yet, also where the ring's end is passed, in contexts of a
// process and of another user's child.
// ROOT: has a process of another user
// LAZY
#include <linux/aio_abi.h>

#include <initializer_list>

#include "probe.h"

namespace {

struct Ring {  // struct aio_ring of fs/aio.c
  unsigned id, slots, head, tail;
};

aio_context_t set_up(unsigned requests) {
  aio_context_t context = 0;
  CHECK(syscall(SYS_io_setup, requests, &context) == 0);
  return context;
}

int file;
char buffer[16];

void read_some(aio_context_t context, unsigned number) {
  iocb request = {};
  request.aio_data = number, request.aio_lio_opcode = IOCB_CMD_PREAD, request.aio_fildes = static_cast<unsigned>(file);
  request.aio_buf = reinterpret_cast<uint64_t>(buffer), request.aio_nbytes = number % 10;
  iocb* list[] = {&request};
  CHECK_EQUAL(syscall(SYS_io_submit, context, 1, list), 1);
}

void take(aio_context_t context, unsigned number) {
  io_event event = {};
  CHECK_EQUAL(syscall(SYS_io_getevents, context, 1, 1, &event, nullptr), 1);
  CHECK_EQUAL(event.data, number);
  CHECK_EQUAL(event.res, number % 10);
  CHECK_EQUAL(event.res2, 0);
}

void expect_nothing(aio_context_t context) {
  io_event event = {};
  timespec none = {};
  CHECK_EQUAL(syscall(SYS_io_getevents, context, 0, 1, &event, &none), 0);
}

/// How many fit in before one is taken.
unsigned room(aio_context_t context) {
  unsigned count = 0;
  iocb request = {};
  request.aio_data = 7, request.aio_lio_opcode = IOCB_CMD_PREAD, request.aio_fildes = static_cast<unsigned>(file);
  request.aio_buf = reinterpret_cast<uint64_t>(buffer), request.aio_nbytes = 7;
  iocb* list[] = {&request};
  while (syscall(SYS_io_submit, context, 1, list) == 1) ++count;
  CHECK_EQUAL(errno, EAGAIN);
  return count;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  char path[4096];
  snprintf(path, sizeof path, "%s/file", probe::directory);
  file = open(path, O_CREAT | O_RDWR, 0666);
  CHECK(file >= 0 && write(file, "0123456789abcdef", 16) == 16);

  const aio_context_t idle = set_up(1), some = set_up(100), around = set_up(8), full = set_up(20);
  for (unsigned i = 0; i < 5; ++i) read_some(some, i);
  take(some, 0), take(some, 1);
  const unsigned slots = reinterpret_cast<const Ring*>(around)->slots;
  for (unsigned i = 0; i + 2 < slots; ++i) read_some(around, i), take(around, i);
  for (unsigned i = 0; i < 6; ++i) read_some(around, i);
  const unsigned fitting = room(full);

  int* const ready = probe::shared_memory<int>();
  const pid_t child = fork();
  if (child == 0) {
    for (const aio_context_t inherited : {idle, some, around, full}) {  // nothing to a child
      const unsigned size = reinterpret_cast<const Ring*>(inherited)->slots * 32 + 32;
      CHECK(munmap(reinterpret_cast<void*>(inherited), size) == 0);
    }
    CHECK(setresgid(12345, 12345, 12345) == 0 && setresuid(12345, 12345, 12345) == 0);
    const aio_context_t own = set_up(4);
    read_some(own, 9);
    *ready = 1;
    probe::wait_for_go();
    take(own, 9);
    expect_nothing(own);
    _exit(0);
  }
  probe::await(ready, 1);

  probe::ready();
  probe::wait_for_go();

  expect_nothing(idle);
  read_some(idle, 3), take(idle, 3);
  for (unsigned i = 2; i < 5; ++i) take(some, i);
  expect_nothing(some);
  for (unsigned i = 0; i < 6; ++i) take(around, i);
  for (unsigned i = 0; i < 2 * slots; ++i) read_some(around, i), take(around, i);
  expect_nothing(around);
  iocb request = {};
  iocb* list[] = {&request};
  request.aio_lio_opcode = IOCB_CMD_PREAD, request.aio_fildes = static_cast<unsigned>(file);
  CHECK(syscall(SYS_io_submit, full, 1, list) < 0 && errno == EAGAIN);  // it is as full as it was
  for (unsigned i = 0; i < fitting; ++i) take(full, 7);
  CHECK_EQUAL(room(full), fitting);
  for (const aio_context_t context : {idle, some, around, full}) CHECK(syscall(SYS_io_destroy, context) == 0);
  probe::expect_child_passed(child);
  return probe::passed();
}
