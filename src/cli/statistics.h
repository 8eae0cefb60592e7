// stats-dump and stats-restore: the files that podman, Incus and crit read, and --display-stats.
#pragma once

#include "capture/capture.h"
#include "cli/session.h"
#include "resource/codec.h"

namespace stasis::cli {

// Statistics that cannot be written are a warning: what they tell of is done by then.

struct DumpStatistics {
  capture::CaptureTimes times;
  uint64_t write_us = 0;
  resource::EncodeStats encoded;
};
void write_dump_statistics(const Session&, const DumpStatistics&);

struct RestoreStatistics {
  uint64_t forking_us = 0, restore_us = 0;
  uint64_t pages_restored = 0, pages_inherited = 0;
};
void write_restore_statistics(const Session&, const RestoreStatistics&);

}  // namespace stasis::cli
