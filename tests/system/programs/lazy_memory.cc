// Memory that is used in every way while parts of it may still be missing: in random order by threads, in system calls,
// by children, moved, discarded, unmapped, replaced, protected, and left behind by exec and exit.
// LAZY
#include <spawn.h>
#include <sys/uio.h>
#include <thread>
#include <vector>

#include "probe.h"

extern char** environ;

namespace {

constexpr size_t page = 4096, area_pages = 1024, area_size = area_pages * page, words = page / sizeof(uint64_t);

uint64_t word_of(size_t area, size_t index, size_t word) {
  uint64_t x = (area << 48) ^ (index << 16) ^ word ^ 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  return (x ^ (x >> 27)) | 1;
}
bool is_hole(size_t index) { return index % 7 == 3; }  // never written: zeros

/// An area of its own, with a pattern that no other has.
struct Area {
  size_t number = 0;
  unsigned char* at = nullptr;

  void fill() const {
    for (size_t index = 0; index < area_pages; ++index) {
      auto* word = reinterpret_cast<uint64_t*>(at + index * page);
      for (size_t i = 0; !is_hole(index) && i < words; ++i) word[i] = word_of(number, index, i);
    }
  }
  void check_page(size_t index, const unsigned char* where) const {
    const auto* word = reinterpret_cast<const uint64_t*>(where);
    for (size_t i = 0; i < words; i += 37) {
      const uint64_t expected = is_hole(index) ? 0 : word_of(number, index, i);
      if (word[i] != expected)
        probe::failed("area %zu, page %zu, word %zu: %#lx instead of %#lx", number, index, i, word[i], expected);
    }
  }
  void check_page(size_t index) const { check_page(index, at + index * page); }
  void check(size_t first = 0, size_t last = area_pages) const {
    for (size_t index = first; index < last; ++index) check_page(index);
  }
};

void check_zeros(const unsigned char* from, size_t size) {
  for (size_t i = 0; i < size; i += 64) CHECK_EQUAL(from[i], 0);
}

void random_order(const Area& area) {
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&area, thread] {
      for (size_t i = 0; i < area_pages; ++i) area.check_page((i * 389 + thread * 257) % area_pages);
    });
  }
  for (auto& thread : threads) thread.join();
}

void in_system_calls(const Area& area) {
  int ends[2];
  CHECK(pipe(ends) == 0);
  static unsigned char copy[page];
  for (size_t index = 0; index < area_pages; index += 5) {
    CHECK_EQUAL(write(ends[1], area.at + index * page, page), page);
    CHECK_EQUAL(read(ends[0], copy, page), page);
    area.check_page(index, copy);
    // Into a page that may be missing: what is around the bytes stays.
    const size_t next = (index + 1) % area_pages;
    CHECK_EQUAL(write(ends[1], "x", 1), 1);
    CHECK_EQUAL(read(ends[0], area.at + next * page + 1, 1), 1);
    CHECK_EQUAL(area.at[next * page + 1], 'x');
    const uint64_t kept = is_hole(next) ? 0 : word_of(area.number, next, 0);
    memcpy(area.at + next * page + 1, reinterpret_cast<const unsigned char*>(&kept) + 1, 1);
  }
  close(ends[0]), close(ends[1]);
  area.check();
}

/// Each of them has a memory of its own from the fork on.
void forks(const Area& area) {
  const pid_t child = fork();
  if (child == 0) {
    const pid_t grandchild = fork();
    if (grandchild == 0) {
      for (size_t i = 0; i < area_pages; ++i) area.check_page(area_pages - 1 - i);
      _exit(0);
    }
    for (size_t index = 0; index < area_pages; index += 2) memset(area.at + index * page, 'c', page);
    for (size_t index = 1; index < area_pages; index += 2) area.check_page(index);
    probe::expect_child_passed(grandchild);
    _exit(0);
  }
  for (size_t index = 1; index < area_pages; index += 2) memset(area.at + index * page, 'p', page);
  for (size_t index = 0; index < area_pages; index += 2) area.check_page(index);
  probe::expect_child_passed(child);
  for (size_t index = 1; index < area_pages; index += 2) CHECK_EQUAL(area.at[index * page + 9], 'p');
}

void moves(Area area) {
  auto* grown = static_cast<unsigned char*>(mremap(area.at, area_size, 2 * area_size, MREMAP_MAYMOVE));
  CHECK(grown != MAP_FAILED);
  area.at = grown;
  area.check_page(17);
  check_zeros(grown + area_size, 8 * page);
  // A part, to a place that is mapped already.
  auto* target =
      static_cast<unsigned char*>(mmap(nullptr, area_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  CHECK(target != MAP_FAILED);
  memset(target, 't', area_size);
  constexpr size_t part = 256;
  CHECK(mremap(grown + part * page, part * page, part * page, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target);
  for (size_t index = 0; index < part; ++index) area.check_page(part + index, target + index * page);
  CHECK_EQUAL(target[part * page], 't');
  area.check(0, part);
  // What stays where pages were moved from is empty.
  void* elsewhere =
      mremap(grown + 2 * part * page, part * page, part * page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr);
  CHECK(elsewhere != MAP_FAILED);
  check_zeros(grown + 2 * part * page, part * page);
  for (size_t index = 0; index < part; ++index)
    area.check_page(2 * part + index, static_cast<unsigned char*>(elsewhere) + index * page);
  area.check(3 * part, area_pages);
  CHECK(mremap(grown, part * page, 8 * page, 0) == grown);
  area.check(0, 8);
}

void discards(const Area& area) {
  CHECK(madvise(area.at + 100 * page, 200 * page, MADV_DONTNEED) == 0);
  check_zeros(area.at + 100 * page, 200 * page);
  memset(area.at + 150 * page, 'n', page);
  CHECK(munmap(area.at + 400 * page, 100 * page) == 0);
  void* again = mmap(area.at + 400 * page, 100 * page, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  CHECK(again == area.at + 400 * page);
  check_zeros(area.at + 400 * page, 100 * page);
  CHECK(mmap(area.at + 600 * page, 50 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
        MAP_FAILED);
  check_zeros(area.at + 600 * page, 50 * page);
  CHECK(mprotect(area.at + 700 * page, 20 * page, PROT_NONE) == 0);
  CHECK(mprotect(area.at + 720 * page, 20 * page, PROT_READ) == 0);
  area.check(720, 740);
  CHECK(mprotect(area.at + 700 * page, 40 * page, PROT_READ | PROT_WRITE) == 0);
  area.check(0, 100), area.check(300, 400), area.check(500, 600), area.check(650, area_pages);
  CHECK_EQUAL(area.at[150 * page], 'n');
}

/// Children whose memory is never used.
void left_behind(const Area& area) {
  for (int how = 0; how < 4; ++how) {
    const pid_t child = how == 3 ? -1 : fork();
    if (child == 0) {
      if (how == 0) _exit(0);
      if (how == 1) {
        execl("/bin/true", "true", nullptr);
        _exit(1);
      }
      madvise(area.at, area_size, MADV_DONTNEED);
      check_zeros(area.at, area_size);
      CHECK(munmap(area.at, area_size) == 0);
      _exit(0);
    }
    pid_t spawned = child;
    char name[] = "true";
    char* arguments[] = {name, nullptr};
    if (how == 3) CHECK(posix_spawn(&spawned, "/bin/true", nullptr, nullptr, arguments, environ) == 0);
    probe::expect_child_passed(spawned);
  }
  const pid_t killed = fork();
  if (killed == 0) {
    for (size_t index = 0;; index = (index + 1) % area_pages) area.check_page(index);
  }
  kill(killed, SIGKILL);
  CHECK(waitpid(killed, nullptr, 0) == killed);
  area.check();
}

/// The heap grows beside what is missing of it.
void grows(unsigned char* heap) {
  const size_t size = 64 * page;
  auto* more = static_cast<unsigned char*>(sbrk(size));
  CHECK(more >= heap + size);
  memset(more, 'g', size);
  for (size_t i = 0; i < size; ++i) CHECK_EQUAL(heap[i], i % 251);
  for (size_t i = 0; i < size; ++i) CHECK_EQUAL(more[i], 'g');
}

volatile int handled = 0;

void deep(int depth) {
  volatile unsigned char room[page];
  for (size_t i = 0; i < page; i += 64) room[i] = static_cast<unsigned char>(depth);
  if (depth > 0) deep(depth - 1);
  CHECK_EQUAL(room[128], static_cast<unsigned char>(depth));
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  std::vector<Area> areas;
  for (size_t number = 0; number < 6; ++number) {
    void* at = mmap(nullptr, area_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    areas.push_back({number, static_cast<unsigned char*>(at)});
    areas.back().fill();
    CHECK(mmap(nullptr, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);  // areas stay apart
  }
  auto* heap = static_cast<unsigned char*>(sbrk(64 * page));
  for (size_t i = 0; i < 64 * page; ++i) heap[i] = static_cast<unsigned char>(i % 251);
  stack_t alternate{};
  alternate.ss_sp = mmap(nullptr, 16 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  alternate.ss_size = 16 * page;
  memset(alternate.ss_sp, 'a', alternate.ss_size);
  CHECK(sigaltstack(&alternate, nullptr) == 0);
  struct sigaction action{};
  action.sa_handler = [](int) { handled = 1; };
  action.sa_flags = SA_ONSTACK;
  CHECK(sigaction(SIGUSR1, &action, nullptr) == 0);
  deep(100);
  probe::ready();
  probe::wait_for_go();
  raise(SIGUSR1);
  CHECK_EQUAL(handled, 1);
  deep(400);
  random_order(areas[0]);
  in_system_calls(areas[1]);
  forks(areas[2]);
  moves(areas[3]);
  discards(areas[4]);
  left_behind(areas[5]);
  grows(heap);
  return probe::passed();
}
