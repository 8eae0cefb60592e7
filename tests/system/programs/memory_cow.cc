// Pages that parent and child share copy-on-write are shared again after the restore, as prefork servers need.
// ROOT: looks at page frames
// FILTERS
// LAZY
#include "probe.h"

namespace {

constexpr size_t pages = 256, page = 4096;

uint64_t frame_of(const void* address) {
  const int pagemap = open("/proc/self/pagemap", O_RDONLY);
  CHECK(pagemap >= 0);
  uint64_t word = 0;
  CHECK(pread(pagemap, &word, sizeof word, reinterpret_cast<uintptr_t>(address) / page * sizeof word) == sizeof word);
  close(pagemap);
  CHECK(word >> 63);
  return word & ((1ull << 55) - 1);
}

struct Board {
  uint64_t child_frames[pages];
  volatile int child_done, parent_done;
};

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  auto* board = probe::shared_memory<Board>();
  auto* area = static_cast<unsigned char*>(
      mmap(nullptr, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  CHECK(area != MAP_FAILED);
  for (size_t i = 0; i < pages; ++i) area[i * page] = static_cast<unsigned char>(i + 1);
  const pid_t child = fork();
  if (child == 0) {
    for (size_t i = 0; i < 16; ++i) area[i * page] = 200;  // the child's own from here on
    probe::wait_for_go();
    for (size_t i = 0; i < pages; ++i) {
      CHECK_EQUAL(area[i * page], i < 16 ? 200 : static_cast<unsigned char>(i + 1));
      board->child_frames[i] = frame_of(area + i * page);
    }
    __atomic_store_n(&board->child_done, 1, __ATOMIC_RELEASE);
    probe::await(&board->parent_done, 1);  // its frames would be given to its parent's pages
    _exit(0);
  }
  usleep(20'000);
  probe::ready();
  probe::wait_for_go();
  probe::await(&board->child_done, 1);
  for (size_t i = 0; i < pages; ++i) {
    CHECK_EQUAL(area[i * page], static_cast<unsigned char>(i + 1));
    const bool shared = frame_of(area + i * page) == board->child_frames[i];
    if (shared != (i >= 16)) probe::failed("page %zu is %sshared with the child", i, shared ? "" : "not ");
  }
  __atomic_store_n(&board->parent_done, 1, __ATOMIC_RELEASE);
  probe::expect_child_passed(child);
  return probe::passed();
}
