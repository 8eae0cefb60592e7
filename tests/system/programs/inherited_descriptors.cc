// A thousand processes that share ten thousand descriptors in random ways: by birth, under other numbers, and without
// their creators.
// VARIANTS: host pidns
#include <linux/futex.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "probe.h"

constexpr int processes = 1000, of_the_first = 5000, of_each_other = 5, kept_at_most = 40;

struct Board {
  int settled, next_value, go;
};
Board* board;

/// A thousand processes that look for a file again and again would be all that the machine does.
void wait_for_the_first() {
  while (__atomic_load_n(&board->go, __ATOMIC_ACQUIRE) == 0)
    syscall(SYS_futex, &board->go, FUTEX_WAIT, 0, nullptr, nullptr, 0);
}
void tell_the_others() {
  __atomic_store_n(&board->go, 1, __ATOMIC_RELEASE);
  syscall(SYS_futex, &board->go, FUTEX_WAKE, processes, nullptr, nullptr, 0);
}

using Held = std::vector<std::pair<int, unsigned>>;  // number, and what its counter shows

void open_one(Held& held) {
  const unsigned value = static_cast<unsigned>(__atomic_add_fetch(&board->next_value, 1, __ATOMIC_RELAXED));
  held.emplace_back(eventfd(value, 0), value);
  CHECK(held.back().first >= 0);
}

unsigned counter_of(int fd) {
  char path[64], text[256] = {};
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
  const int info = open(path, O_RDONLY | O_CLOEXEC);
  CHECK(info >= 0 && read(info, text, sizeof text - 1) > 0);
  close(info);
  const char* at = strstr(text, "eventfd-count:");
  CHECK(at != nullptr);
  return static_cast<unsigned>(strtoul(at + strlen("eventfd-count:"), nullptr, 16));
}

void check(const Held& held) {
  for (const auto& [fd, value] : held) CHECK_EQUAL(counter_of(fd), value);
}

/// Of what the parent has, some, each maybe elsewhere. `random` is the child's own.
Held chosen(const Held& all, std::mt19937& random) {
  const size_t wanted = random() % kept_at_most;
  std::vector<char> wants(all.size());
  for (size_t i = 0; i < wanted; ++i) wants[random() % all.size()] = 1;
  Held held;
  for (size_t i = 0; i < all.size(); ++i)
    if (wants[i] != 0) held.push_back(all[i]);
  std::sort(held.begin(), held.end());
  unsigned from = 3;
  for (const auto& [fd, value] : held) {
    if (static_cast<unsigned>(fd) > from) close_range(from, static_cast<unsigned>(fd) - 1, 0);
    from = static_cast<unsigned>(fd) + 1;
  }
  close_range(from, ~0u, 0);
  for (auto& [fd, value] : held) {
    if (random() % 4 != 0) continue;
    const int moved = fcntl(fd, F_DUPFD, 3 + static_cast<int>(random() % 100));
    CHECK(moved >= 0);
    close(fd);
    fd = moved;
  }
  return held;
}

/// This process and `count - 1` below it; does not return.
[[noreturn]] void grow(Held held, int count, unsigned seed) {
  auto& random = *new std::mt19937(seed);
  std::vector<pid_t> children;
  for (int left = count - 1; left > 0;) {
    const int below = 1 + static_cast<int>(random() % static_cast<unsigned>(left));
    const unsigned seed_below = static_cast<unsigned>(random());
    left -= below;
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    auto& own = *new std::mt19937(seed_below ^ 1);
    Held mine = chosen(held, own);
    for (int i = 0; i < of_each_other; ++i) open_one(mine);
    grow(std::move(mine), below, seed_below);
  }
  __atomic_add_fetch(&board->settled, 1, __ATOMIC_RELEASE);
  const bool is_first = count == processes;
  if (is_first) {
    probe::await(&board->settled, processes);
    probe::ready();
    probe::wait_for_go();
    tell_the_others();
  } else {
    wait_for_the_first();
  }
  check(held);
  for (const pid_t child : children) probe::expect_child_passed(child);
  exit(is_first ? probe::passed() : 0);
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(probe::raise_descriptor_limit() > 2 * of_the_first);
  board = probe::shared_memory<Board>();
  Held held;
  for (int i = 0; i < of_the_first; ++i) open_one(held);
  grow(std::move(held), processes, 20261126);
}
