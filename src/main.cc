#include <malloc.h>
#include <unistd.h>

#include <cstdio>

#include "cli/cli.h"

int main(int argc, char** argv) {
  // A short life that only grows: heaps are enlarged in few steps, each of which stops page faults of all threads for a
  // moment (mmap_lock), and nothing is given back before the end.
  // Large buffers come from the heap too: fresh mappings would be faulted in again each time.
  constexpr int step = 1 << 20, never = 1 << 30, large = 32 << 20;
  mallopt(M_TOP_PAD, step);
  mallopt(M_TRIM_THRESHOLD, never);
  mallopt(M_MMAP_THRESHOLD, large);
  const int status = stasis::cli::run(argc, argv);
  // Everything is written and closed by now; the destructors of libraries would only free memory.
  if (std::fflush(nullptr) != 0 && status == 0) {
    std::perror("Error: write the output");
    _exit(1);
  }
  _exit(status);
}
