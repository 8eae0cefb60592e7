#include "cli/statistics.h"

#include <algorithm>

#include <fmt/format.h>

#include "image/directory.h"
#include "stats.pb.h"

namespace stasis::cli {
namespace {

Status write(const Session& session, std::string_view file, const stats_entry& entry) {
  const auto& options = session.options();
  const auto directory = TRY(image::Directory::open(options.work_dir.empty() ? options.images_dir : options.work_dir));
  auto writer = TRY(directory.create(file));
  TRY(writer.append(entry));
  return writer.finish();
}

void write_or_warn(const Session& session, std::string_view file, const stats_entry& entry) {
  const Status written = write(session, file, entry);
  if (!written) session.log().warn("No statistics: {}", written.error().message());
}

void set_live(const DumpStatistics& statistics, dump_stats_entry& dump) {
  dump.set_twins(statistics.snapshot.twins);
  dump.set_shared_while_stopped(statistics.shared_while_stopped());
  dump.set_private_while_stopped(statistics.private_while_stopped());
  dump.set_small_copied(statistics.snapshot.copied_small);
  dump.set_beside_twins_copied(statistics.snapshot.copied_beside);
  dump.set_snapshot_growth(statistics.growth.most);
  dump.set_stopped_again_time(static_cast<uint32_t>(statistics.growth.stopped_us));
}

void print_live(const dump_stats_entry& dump) {
  fmt::print(
      "Address spaces with twins: {}\nCopied while stopped, shared memory: {} bytes\nCopied while stopped, small "
      "address spaces: {} bytes\nCopied while stopped, what fork does not copy: {} bytes\nCopied while stopped, "
      "address spaces without twins: {} bytes\nMemory that existed twice: {} bytes\nStopped again: {} us\n",
      dump.twins(), dump.shared_while_stopped(), dump.small_copied(), dump.beside_twins_copied(),
      dump.private_while_stopped(), dump.snapshot_growth(), dump.stopped_again_time());
}

}  // namespace

void log_snapshot(const Session& session, const DumpStatistics& statistics) {
  const auto kilobytes = [](uint64_t bytes) { return bytes >> 10; };
  const auto& snapshot = statistics.snapshot;
  session.log().info(
      "The application was stopped for {} us. {} address spaces were written from copy-on-write twins; copied while it "
      "was stopped: {} KiB of shared memory, {} KiB of small address spaces, {} KiB that fork does not copy, {} KiB of "
      "{} address spaces that could have no twins",
      statistics.times.frozen_us, snapshot.twins, kilobytes(statistics.shared_while_stopped()),
      kilobytes(snapshot.copied_small), kilobytes(snapshot.copied_beside),
      kilobytes(statistics.private_while_stopped()), snapshot.stopped);
  if (snapshot.twins == 0) return;
  session.log().info("While it ran on {} KiB of memory existed twice, of {} KiB that may",
                     kilobytes(statistics.growth.most), kilobytes(snapshot.memory_limit));
  if (statistics.growth.stopped_us == 0) return;
  session.log().info("That was too much: it was stopped again for {} us", statistics.growth.stopped_us);
}

void write_dump_statistics(const Session& session, const DumpStatistics& statistics) {
  stats_entry entry;
  auto& dump = *entry.mutable_dump();
  dump.set_freezing_time(statistics.times.freezing_us);
  // The longest time for which the application stood still.
  dump.set_frozen_time(
      std::max({statistics.times.frozen_us, statistics.earlier_pause_us, statistics.growth.stopped_us}));
  dump.set_memdump_time(statistics.write_us);
  dump.set_memwrite_time(statistics.write_us);
  dump.set_pages_scanned(statistics.encoded.pages_scanned);
  dump.set_pages_skipped_parent(statistics.encoded.pages_in_parent);
  dump.set_pages_written(statistics.encoded.pages_written);
  dump.set_irmap_resolve(0);
  dump.set_pages_lazy(statistics.encoded.pages_left_out);
  dump.set_page_pipes(0);
  dump.set_page_pipe_bufs(0);
  dump.set_shpages_scanned(statistics.encoded.shared_pages_scanned);
  dump.set_shpages_skipped_parent(statistics.encoded.shared_pages_in_parent);
  dump.set_shpages_written(statistics.encoded.shared_pages_written);
  if (statistics.live) set_live(statistics, dump);
  if (session.options().display_stats) {
    fmt::print(
        "Displaying dump stats:\nFreezing time: {} us\nFrozen time: {} us\nMemory dump time: {} us\n"
        "Memory write time: {} us\nMemory pages scanned: {} ({:#x})\nMemory pages skipped from parent: {} ({:#x})\n"
        "Memory pages written: {} ({:#x})\n"
        "Shared memory pages scanned: {} ({:#x})\nShared memory pages written: {} ({:#x})\n",
        dump.freezing_time(), dump.frozen_time(), dump.memdump_time(), dump.memwrite_time(), dump.pages_scanned(),
        dump.pages_scanned(), dump.pages_skipped_parent(), dump.pages_skipped_parent(), dump.pages_written(),
        dump.pages_written(), dump.shpages_scanned(), dump.shpages_scanned(), dump.shpages_written(),
        dump.shpages_written());
    if (statistics.live) print_live(dump);
  }
  write_or_warn(session, "stats-dump", entry);
}

void write_restore_statistics(const Session& session, const RestoreStatistics& statistics) {
  stats_entry entry;
  auto& restore = *entry.mutable_restore();
  restore.set_pages_compared(0);
  restore.set_pages_skipped_cow(statistics.pages_inherited);
  restore.set_pages_restored(statistics.pages_restored);
  restore.set_forking_time(statistics.forking_us);
  restore.set_restore_time(statistics.restore_us);
  if (session.options().display_stats) {
    fmt::print(
        "Displaying restore stats:\nPages inherited: {} ({:#x})\nPages restored: {} ({:#x})\nRestore time: {} us\n"
        "Forking time: {} us\n",
        restore.pages_skipped_cow(), restore.pages_skipped_cow(), restore.pages_restored(), restore.pages_restored(),
        restore.restore_time(), restore.forking_time());
  }
  write_or_warn(session, "stats-restore", entry);
}

}  // namespace stasis::cli
