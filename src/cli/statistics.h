// stats-dump and stats-restore: the files that podman, Incus and crit read, and --display-stats.
#pragma once

#include "capture/capture.h"
#include "cli/session.h"
#include "resource/codec.h"

namespace stasis::cli {

// Statistics that cannot be written are a warning: what they tell of is done by then.

struct DumpStatistics {
  uint64_t earlier_pause_us = 0;  ///< the longest in which it was found in a state of a moment
  capture::CaptureTimes times;
  uint64_t write_us = 0;
  resource::EncodeStats encoded;
  // -- of a tree that ran on while its memory was written
  bool live = false;
  capture::SnapshotReport snapshot;
  resource::EncodeStats encoded_while_stopped;
  capture::SnapshotGrowth growth;
  uint64_t shared_while_stopped() const { return encoded_while_stopped.shared_pages_written * page_size; }
  uint64_t private_while_stopped() const { return encoded_while_stopped.pages_written * page_size; }
};
/// What it has cost, for the log.
void log_snapshot(const Session&, const DumpStatistics&);
void write_dump_statistics(const Session&, const DumpStatistics&);

struct RestoreStatistics {
  uint64_t forking_us = 0, restore_us = 0;
  uint64_t pages_restored = 0, pages_inherited = 0;
};
void write_restore_statistics(const Session&, const RestoreStatistics&);

}  // namespace stasis::cli
