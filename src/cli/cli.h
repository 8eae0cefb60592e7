// The command line: `stasis <subcommand>`, and the same program under the name `criu`.
#pragma once

namespace stasis::cli {

/// Parses, dispatches, prints. Returns the process's exit status: 0 done, 1 failed (criu's convention), 2 wrong usage.
int run(int argc, char** argv);

}  // namespace stasis::cli
