#include "memory/local_pages.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <vector>

#include "image/names.h"
#include "memory/io_parts.h"
#include "memory/pagemap_writer.h"

namespace stasis::memory {
namespace {

using image::PageEntry;

class LocalSink final : public image::PageSink {
 public:
  LocalSink(const image::Directory& directory, UniqueFd fd, std::string name, PagemapWriter pagemap)
      : directory_(directory), fd_(std::move(fd)), name_(std::move(name)), pagemap_(std::move(pagemap)) {}

  Status add(std::span<const PageEntry> entries, std::span<const iovec> bytes) override {
    for (const PageEntry& entry : entries) TRY(pagemap_.add(entry));
    std::vector<iovec> parts(bytes.begin(), bytes.end());
    TRY(write_at(fd_.get(), parts, size_, name_));
    size_ += size_of_parts(bytes);
    return {};
  }

  Status store(const std::string& name, const Content& content) override {
    auto writer = TRY(directory_.create(name));
    TRY(content(writer));
    return writer.finish();
  }

  Status finish() override {
    // close(2) is where a network file system reports that the data never arrived.
    if (::close(fd_.release()) < 0) return fail_errno("close image", name_);
    return pagemap_.finish();
  }

 private:
  const image::Directory& directory_;
  UniqueFd fd_;
  std::string name_;
  PagemapWriter pagemap_;
  uint64_t size_ = 0;
};

}  // namespace

Result<std::unique_ptr<image::PageSink>> LocalPages::open(const image::PageImages& images, bool) {
  const std::string name = image::file_name("pages-{}", images.pages_id);
  const std::string pagemap = image::file_name("pagemap-" + images.suffix);
  auto fd = TRY(create_raw(directory_, name, existing_));
  UniqueFd map = TRY(create_raw(directory_, pagemap, existing_));
  auto writer = TRY(PagemapWriter::begin(TRY(image::create_in(directory_, std::move(map), pagemap)), images.pages_id));
  return std::make_unique<LocalSink>(directory_, std::move(fd), name, std::move(writer));
}

Result<UniqueFd> create_raw(const image::Directory& directory, const std::string& name, LocalPages::Existing existing) {
  const int how = existing == LocalPages::Existing::refuse ? O_EXCL : O_TRUNC;
  UniqueFd fd(openat(directory.fd(), name.c_str(), O_WRONLY | O_CREAT | how | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return fail_errno("create image", name);
  return fd;
}

Status write_at(int fd, std::span<iovec> parts, uint64_t offset, const std::string& name) {
  parts = rest_of(parts, 0);
  while (!parts.empty()) {
    const int count = static_cast<int>(std::min<size_t>(parts.size(), IOV_MAX));
    const ssize_t written = pwritev(fd, parts.data(), count, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      auto error = Error::system("write pages", errno, name);
      if (error.errno_value() != ENOSPC && error.errno_value() != EDQUOT) return fail(std::move(error));
      return fail(std::move(error).advise("free space there, or name another image directory with -D"));
    }
    offset += static_cast<uint64_t>(written);
    parts = rest_of(parts, static_cast<size_t>(written));
  }
  return {};
}

}  // namespace stasis::memory
