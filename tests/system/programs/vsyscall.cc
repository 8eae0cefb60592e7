// The page of the kernel's that old programs call for the time: no mapping of the program's own.
// REQUIRES: grep -q vsyscall /proc/self/maps || { echo "this kernel has no vsyscall page (vsyscall=none)"; false; }
#include "probe.h"

namespace {

/// arch/x86/include/uapi/asm/vsyscall.h
const auto old_time = reinterpret_cast<time_t (*)(time_t*)>(0xffffffffff600400);

void expect_time() {
  const time_t before = time(nullptr), told = old_time(nullptr), after = time(nullptr);
  CHECK(before <= told && told <= after);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  expect_time();

  probe::ready();
  probe::wait_for_go();

  expect_time();
  return probe::passed();
}
