// Pipes and FIFOs with their contents, sizes, flags and ends in several processes.
// FAIL_RESTORE
#include <sys/mman.h>

#include "probe.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  int plain[2], packets[2], orphan[2];
  CHECK(pipe(plain) == 0 && pipe2(packets, O_DIRECT | O_NONBLOCK) == 0 && pipe(orphan) == 0);
  CHECK(fcntl(plain[1], F_SETPIPE_SZ, 1 << 18) >= 0);
  char block[1000];
  for (int i = 0; i < 150; ++i) {
    memset(block, i, sizeof block);
    CHECK(write(plain[1], block, sizeof block) == sizeof block);
  }
  CHECK(write(packets[1], "first", 5) == 5 && write(packets[1], "second!", 7) == 7);
  CHECK(write(orphan[1], "left behind", 11) == 11);
  close(orphan[1]);  // no writer any more, data still in it

  char path[4096];
  snprintf(path, sizeof path, "%s/fifo", probe::directory);
  CHECK(mkfifo(path, 0600) == 0);
  const int fifo = open(path, O_RDWR);
  CHECK(fifo >= 0 && write(fifo, "through the fifo", 16) == 16);

  auto* settled = static_cast<int*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  CHECK(settled != MAP_FAILED);
  const pid_t child = fork();
  if (child == 0) {
    close(plain[0]);
    __atomic_store_n(settled, 1, __ATOMIC_RELEASE);
    probe::wait_for_go();
    CHECK(write(plain[1], "end", 3) == 3);
    _exit(0);
  }
  close(plain[1]);
  probe::await(settled, 1);
  probe::ready();
  probe::wait_for_go();

  probe::expect_child_passed(child);
  CHECK_EQUAL(fcntl(plain[0], F_GETPIPE_SZ), 1 << 18);
  for (int i = 0; i < 150; ++i) {
    CHECK(read(plain[0], block, sizeof block) == sizeof block);
    CHECK_EQUAL(block[0], static_cast<char>(i));
    CHECK_EQUAL(block[999], static_cast<char>(i));
  }
  CHECK(read(plain[0], block, sizeof block) == 3);
  CHECK(read(plain[0], block, sizeof block) == 0);  // the child was the last writer
  CHECK(fcntl(packets[0], F_GETFL) & O_NONBLOCK);
  CHECK(read(packets[0], block, sizeof block) == 5);
  CHECK(read(packets[0], block, sizeof block) == 7);
  CHECK(read(packets[0], block, sizeof block) < 0 && errno == EAGAIN);
  CHECK(read(orphan[0], block, sizeof block) == 11);
  CHECK(read(orphan[0], block, sizeof block) == 0);
  CHECK(read(fifo, block, sizeof block) == 16);
  CHECK(memcmp(block, "through the fifo", 16) == 0);
  return probe::passed();
}
