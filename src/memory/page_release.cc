#include "memory/page_release.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory/page_scan.h"

namespace stasis::memory {
namespace {

uint64_t page_down(uint64_t offset) { return offset / page_size * page_size; }
uint64_t page_up(uint64_t offset) { return page_down(offset + page_size - 1); }

Status punch(int fd, AddressRange range, const std::string& name) {
  if (range.empty()) return {};
  while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(range.begin),
                   static_cast<off_t>(range.size())) < 0) {
    if (errno == EINTR) continue;
    auto error = Error::system("release pages", errno, name);
    if (error.errno_value() != EOPNOTSUPP) return fail(std::move(error));
    return fail(
        std::move(error).advise("this file system cannot give back parts of a file: leave out --auto-dedup, or "
                                "keep the images elsewhere"));
  }
  return {};
}

}  // namespace

Status mark_released(const image::Directory& directory) {
  const UniqueFd fd(
      openat(directory.fd(), released_marker, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
  return fd.valid() ? Status{} : fail_errno("create image", directory.path() + "/" + released_marker);
}

Result<PageRelease> PageRelease::open(const image::Directory& directory, const std::string& file) {
  const auto holding = TRY(directory.holding(file));
  const std::string base = file.substr(file.rfind('/') + 1);  // npos + 1 is 0
  UniqueFd fd(openat(holding.fd(), base.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat status{};
  if (!fd.valid() || fstat(fd.get(), &status) < 0) return fail_errno("open image to release pages of it", file);
  return PageRelease(std::move(fd), static_cast<uint64_t>(status.st_size), file);
}

Status PageRelease::probe() const { return punch(fd_.get(), {page_up(size_), page_up(size_) + page_size}, name_); }

Status PageRelease::release(AddressRange range) {
  if (range.empty()) return {};
  TRY(punch(fd_.get(), range, name_));
  for (const uint64_t edge : {range.begin, range.end})
    if (edge % page_size != 0) TRY(release_if_empty({page_down(edge), page_up(edge)}));
  return {};
}

Status PageRelease::release_if_empty(AddressRange page) const {
  uint8_t bytes[page_size] = {};  // the file may end in it
  if (pread(fd_.get(), bytes, sizeof bytes, static_cast<off_t>(page.begin)) < 0) return fail_errno("read pages", name_);
  return is_zero_page(bytes) ? punch(fd_.get(), page, name_) : Status{};
}

Result<uint64_t> PageRelease::bytes_used() const {
  struct stat status{};
  if (fstat(fd_.get(), &status) < 0) return fail_errno("fstat", name_);
  constexpr uint64_t unit = 512;  // of st_blocks, whatever the file system
  return static_cast<uint64_t>(status.st_blocks) * unit;
}

}  // namespace stasis::memory
