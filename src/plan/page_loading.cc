#include "plan/page_loading.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace stasis::plan {
namespace {

auto first_beyond(const std::vector<PageLocation>& pages, uint64_t address) {
  return std::ranges::upper_bound(pages, address, {}, [](const PageLocation& page) { return page.range.end; });
}

}  // namespace

const std::vector<PageLocation>& stored_pages(const Emission& out, ObjectId id) {
  static const std::vector<PageLocation> none;
  const auto found = out.options.pages.find(id);
  return found == out.options.pages.end() ? none : found->second;
}

std::vector<PageLocation> pages_within(const std::vector<PageLocation>& pages, AddressRange where) {
  std::vector<PageLocation> found;
  auto page = first_beyond(pages, where.begin);
  for (; page != pages.end() && page->range.begin < where.end; ++page) {
    PageLocation part = *page;
    if (part.range.begin < where.begin) {
      part.offset += where.begin - part.range.begin;
      part.range.begin = where.begin;
    }
    part.range.end = std::min(part.range.end, where.end);
    found.push_back(std::move(part));
  }
  return found;
}

bool any_within(const std::vector<PageLocation>& pages, AddressRange where) {
  const auto page = first_beyond(pages, where.begin);
  return !where.empty() && page != pages.end() && page->range.begin < where.end;
}

void PageLoader::load(const PageLocation& location, uint64_t at) {
  if (location.file != file_) {
    finish();
    file_ = location.file;
    through_stasis_ = location.through_stasis;
    if (!through_stasis_) open();
  }
  if (!runs_.empty() && next_offset_ != location.offset) flush();
  if (runs_.empty()) offset_ = location.offset;
  if (!runs_.empty() && runs_[runs_.size() - 2] + runs_.back() == at)
    runs_.back() += location.range.size();
  else
    runs_.insert(runs_.end(), {at, location.range.size()});
  next_offset_ = location.offset + location.range.size();
}

void PageLoader::open() {
  fd_ = out_.temporary_fd();
  auto sink = out_.process(pid_);
  Perform open{fmt::format("pages from {}", file_), "", {}, {{fd_, ObjectId{}}}, {}};
  open.calls.push_back(call(SYS_openat, sink.images_fd(), text(file_), O_RDONLY | O_CLOEXEC, 0));
  open.calls.push_back(call(Call::move_fd, ResultOf{-1}, fd_, O_CLOEXEC));
  sink.add(std::move(open));
}

void PageLoader::flush() {
  if (runs_.empty()) return;
  if (through_stasis_)
    out_.process(pid_).add(DecodePages{file_, offset_, std::move(runs_)});
  else
    out_.process(pid_).add(LoadPages{fd_, offset_, std::move(runs_)});
  runs_.clear();
}

void PageLoader::finish() {
  flush();
  if (!file_.empty() && !through_stasis_) out_.process(pid_).add(Close{fd_});
  file_.clear();
}

void populate(Sink& sink, AddressRange range) {
  if (range.size() < populate_from) return;
  // Failure costs nothing: the pages come one by one then.
  sink.perform(
      "allocate pages", "",
      {expecting(call(SYS_madvise, range.begin, range.size(), MADV_POPULATE_WRITE), Expectation::Kind::anything)});
}

}  // namespace stasis::plan
