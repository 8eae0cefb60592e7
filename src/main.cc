#include "cli/cli.h"

int main(int argc, char** argv) { return stasis::cli::run(argc, argv); }
