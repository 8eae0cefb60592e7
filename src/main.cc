#include <unistd.h>

#include <cstdio>

#include "cli/cli.h"

int main(int argc, char** argv) {
  const int status = stasis::cli::run(argc, argv);
  // Everything is written and closed by now; the destructors of libraries would only free memory.
  std::fflush(nullptr);
  _exit(status);
}
