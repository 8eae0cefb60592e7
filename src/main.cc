#include <unistd.h>

#include <cstdio>

#include "cli/cli.h"

int main(int argc, char** argv) {
  const int status = stasis::cli::run(argc, argv);
  // Everything is written and closed by now; the destructors of libraries would only free memory.
  if (std::fflush(nullptr) != 0 && status == 0) {
    std::perror("Error: write the output");
    _exit(1);
  }
  _exit(status);
}
