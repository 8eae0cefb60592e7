// Pipes and socket pairs that are made while exactly one number is free below those that a restore uses in passing:
// what pipe(2) and socketpair(2) give are then one number of each sort.
#include "probe.h"

#include <sys/socket.h>

#include <initializer_list>

namespace {

constexpr int first = 3, last = 40;

/// Every number up to `last` is taken: by neighbours of another kind.
void fill_numbers() {
  for (int fd = first; fd <= last; ++fd) {
    if (fcntl(fd, F_GETFD) < 0) CHECK(open("/dev/null", O_RDWR) == fd);
  }
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  fill_numbers();
  // The last numbers: ends of pipes whose other ends nobody has any more, and whole ones.
  int ends[2];
  for (const int fd : {last - 8, last - 4, last}) {
    CHECK(close(fd) == 0 && pipe(ends) == 0 && write(ends[1], "left", 4) == 4);
    CHECK(ends[0] == fd && close(ends[1]) == 0);
  }
  int pair[2];
  CHECK(close(last - 2) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && write(pair[1], "left", 4) == 4);
  CHECK(pair[0] == last - 2 && pair[1] == last + 1 && close(pair[1]) == 0);

  probe::ready();
  probe::wait_for_go();

  for (const int fd : {last - 8, last - 4, last - 2, last}) {
    char text[8] = {};
    CHECK_EQUAL(read(fd, text, sizeof text), 4);
    CHECK(memcmp(text, "left", 4) == 0);
    CHECK_EQUAL(read(fd, text, sizeof text), 0);
  }
  probe::passed();
}
