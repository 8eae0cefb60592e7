#include "resource/stored_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "image/names.h"
#include "kernel/extents.h"
#include "kernel/huge_pages.h"
#include "memory/increments.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::ResultOf;

constexpr uint32_t pages_id_of_files = 0x40000000;  ///< the codec counts pages files from 1
constexpr uint64_t largest_send = 1ull << 30;

std::string name_of(const memory::StoredRun& run) { return run.directory + image::file_name("pages-{}", run.pages_id); }

/// Copies one run from its pages file; the last page may reach beyond the file's end.
void fill(const memory::StoredRun& run, uint64_t size, int file, int pages, int images, plan::Calls& calls) {
  if (run.range.begin >= size) return;
  calls.push_back(call(SYS_openat, images, plan::text(name_of(run)), O_RDONLY | O_CLOEXEC, 0));
  calls.push_back(call(plan::Call::move_fd, ResultOf{-1}, pages, O_CLOEXEC));
  uint64_t left = std::min(run.range.end, size) - run.range.begin, offset = run.file_offset;
  calls.push_back(call(SYS_lseek, file, run.range.begin, SEEK_SET));
  while (left > 0) {
    const uint64_t part = std::min(left, largest_send);
    calls.push_back(plan::expecting(call(SYS_sendfile, file, pages, plan::InOut{bytes_of(offset)}, part),
                                    plan::Expectation::Kind::exactly, static_cast<int64_t>(part)));
    left -= part;
    offset += part;
  }
  calls.push_back(call(SYS_close, pages));
}

}  // namespace

Status store_file(image::FileRecords& records, uint32_t number, int fd, uint64_t size, const std::string& subject) {
  std::vector<model::PageRun> runs;
  for (const auto& range : TRY(kernel::data_pages(fd, size, subject))) runs.push_back({range});
  memory::FilePages source(fd, subject);
  const auto written = TRY(memory::write_compared(records.directory(), fmt::format("shmem-{}", number),
                                                  pages_id_of_files + number, runs, source));
  records.pages_written += written.pages_written;
  return {};
}

void add_stored_file(const StoredFile& wanted, int file, int pages, plan::Sink& sink) {
  const uint64_t size = wanted.size;
  const auto is_filled_by_stasis = [&](const memory::StoredRun& run) {
    return run.through_stasis || wanted.huge_page_order != 0;
  };
  plan::Perform create{wanted.purpose, "", {}, {{file, ObjectId{}}}, {}};
  create.calls.push_back(
      call(SYS_memfd_create, plan::text(wanted.name),
           MFD_CLOEXEC | MFD_ALLOW_SEALING | kernel::huge_page_flags(wanted.huge_page_order, MFD_HUGETLB)));
  create.calls.push_back(call(plan::Call::move_fd, ResultOf{-1}, file, O_CLOEXEC));
  create.calls.push_back(call(SYS_ftruncate, file, size));
  for (const auto& run : wanted.stored)
    if (run.in_file() && !is_filled_by_stasis(run)) fill(run, size, file, pages, sink.images_fd(), create.calls);
  sink.add(std::move(create));
  for (const auto& run : wanted.stored) {
    if (!run.in_file() || !is_filled_by_stasis(run) || run.range.begin >= size) continue;
    const uint64_t length = std::min(run.range.end, size) - run.range.begin;
    sink.add(plan::DecodeFile{name_of(run), run.file_offset, length, file, "", run.range.begin});
  }
}

}  // namespace stasis::resource
