// mlockall(MCL_FUTURE), with and without MCL_CURRENT and MCL_ONFAULT: what is mapped afterwards is locked as it would
// have been, and what was there is locked only if it was.
#include "smaps.h"

namespace {

constexpr size_t page = 4096;
constexpr int modes[] = {0, MCL_FUTURE, MCL_FUTURE | MCL_CURRENT, MCL_FUTURE | MCL_ONFAULT,
                         MCL_FUTURE | MCL_CURRENT | MCL_ONFAULT};
constexpr int processes = sizeof modes / sizeof *modes;

struct Locked {
  bool at_all, on_fault, present;
};

void* map() {
  void* memory = mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  return memory;
}

void expect(void* memory, const Locked& locked) {
  unsigned char present = 0;
  CHECK(mincore(memory, page, &present) == 0);
  CHECK_EQUAL(present & 1, locked.present);
  CHECK_EQUAL(probe::has_flag(memory, " lo"), locked.at_all);
  CHECK_EQUAL(probe::has_flag(memory, " lf"), locked.on_fault);
}

void live(int mode, volatile int* settled) {
  const bool future = (mode & MCL_FUTURE) != 0, current = (mode & MCL_CURRENT) != 0,
             on_fault = (mode & MCL_ONFAULT) != 0;
  const Locked of_old = {current, current && on_fault, current && !on_fault};
  const Locked of_new = {future, future && on_fault, future && !on_fault};
  void* const old = map();
  CHECK(mode == 0 || mlockall(mode) == 0);
  expect(old, of_old);
  expect(map(), of_new);
  __atomic_add_fetch(settled, 1, __ATOMIC_RELEASE);
  probe::wait_for_go();
  expect(old, of_old);
  expect(map(), of_new);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  auto* const settled = probe::shared_memory<volatile int>();
  pid_t children[processes];
  for (int i = 0; i < processes; ++i) children[i] = probe::start([&] { live(modes[i], settled); });
  probe::await(settled, processes);

  probe::ready();
  probe::wait_for_go();

  for (const pid_t child : children) probe::expect_child_passed(child);
  return probe::passed();
}
