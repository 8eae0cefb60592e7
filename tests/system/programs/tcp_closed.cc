// Connections that are dumped with --tcp-close have ended afterwards; their listening socket goes on.
// DUMP: --tcp-close
// RESTORE: --tcp-close
// VARIANTS: host pidns three
// IGNORE: files.state  (that is what the option is for)
// FAIL_RESTORE
#include "inet.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  constexpr int families[] = {AF_INET, AF_INET6};
  struct Case {
    int listener;
    inet::Pair idle, talking, half;
  } cases[2];
  for (int i = 0; i < 2; ++i) {
    auto& one = cases[i];
    one.listener = inet::listening(families[i], SO_REUSEADDR);  // the connections end like others, in TIME_WAIT
    one.idle = inet::connected(one.listener), one.talking = inet::connected(one.listener);
    one.half = inet::connected(one.listener);
    inet::write_pattern(one.talking.client, 0, 5000, 1);
    CHECK(shutdown(one.half.client, SHUT_WR) == 0);
  }

  probe::ready();
  probe::wait_for_go();

  for (const auto& one : cases) {
    for (const auto* pair : {&one.idle, &one.talking, &one.half}) {
      for (const int fd : {pair->client, pair->server}) {
        CHECK_EQUAL(inet::state_of(fd), TCP_CLOSE);
        inet::expect_end(fd), inet::expect_broken(fd);
        CHECK(close(fd) == 0);
      }
    }
    inet::expect_alive(inet::connected(one.listener));
  }
  return probe::passed();
}
