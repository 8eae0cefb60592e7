// Memory of another process. process_vm_readv(2) obeys the protections of the mappings; /proc/PID/mem does not
// (FOLL_FORCE), but bounces every page through a kernel buffer.
//
// process_vm_readv pins pages, and pinning an anonymous page that is shared copy-on-write makes the kernel give the
// task a copy of its own (mm/gup.c, gup_must_unshare): a dump would silently double the memory of a prefork server.
// Such pages, which the pagemap shows as not exclusively mapped, are read through /proc/PID/mem, which takes references
// without pinning.
#include <fcntl.h>
#include <sys/uio.h>

#include <algorithm>
#include <climits>
#include <cstring>

#include <fmt/format.h>

#include "kernel/process.h"
#include "memory/pages.h"

namespace stasis::memory {
namespace {

/// What remains to be read: a position in a list of ranges.
class Cursor {
 public:
  Cursor(std::span<const AddressRange> ranges, std::span<uint8_t> buffer) : ranges_(ranges), buffer_(buffer) {}
  bool done() const { return index_ == ranges_.size(); }
  /// Fills `parts` with what comes next; the sum of their lengths.
  size_t parts(std::vector<iovec>& parts) const {
    parts.clear();
    size_t sum = 0;
    uint64_t skip = inside_;
    for (size_t i = index_; i < ranges_.size() && parts.size() < IOV_MAX; ++i, skip = 0) {
      const size_t length = ranges_[i].size() - skip;
      parts.push_back({reinterpret_cast<void*>(ranges_[i].begin + skip), length});
      sum += length;
    }
    return sum;
  }
  uint8_t* target() const { return buffer_.data() + filled_; }
  void advance(size_t bytes) {
    filled_ += bytes;
    while (bytes > 0) {
      const size_t step = std::min<size_t>(bytes, ranges_[index_].size() - inside_);
      inside_ += step;
      bytes -= step;
      if (inside_ == ranges_[index_].size()) ++index_, inside_ = 0;
    }
  }
  /// The rest of the range at the position.
  AddressRange rest() const { return {ranges_[index_].begin + inside_, ranges_[index_].end}; }

 private:
  std::span<const AddressRange> ranges_;
  std::span<uint8_t> buffer_;
  size_t index_ = 0, filled_ = 0;
  uint64_t inside_ = 0;
};

}  // namespace

Status PageSource::read_ranges(std::span<const AddressRange> ranges, std::span<uint8_t> buffer) {
  for (const AddressRange& range : ranges) {
    TRY(read(range.begin, buffer.first(range.size())));
    buffer = buffer.subspan(range.size());
  }
  return {};
}

Status ProcessPages::read(uint64_t address, std::span<uint8_t> buffer) {
  const AddressRange range{address, address + buffer.size()};
  return read_ranges({&range, 1}, buffer);
}

Status ProcessPages::read_ranges(std::span<const AddressRange> ranges, std::span<uint8_t> buffer) {
  std::vector<AddressRange> exclusive;  // consecutive in the buffer, up to a page that is shared
  size_t exclusive_bytes = 0;
  const auto flush = [&]() -> Status {
    TRY(read_exclusive(exclusive, buffer.first(exclusive_bytes)));
    buffer = buffer.subspan(exclusive_bytes);
    exclusive.clear();
    exclusive_bytes = 0;
    return {};
  };
  for (const AddressRange& range : ranges) {
    for (const auto& part : TRY(split_by_sharing(range))) {
      if (!part.shared) {
        exclusive.push_back(part.range);
        exclusive_bytes += part.range.size();
        continue;
      }
      TRY(flush());
      TRY(read_forced(part.range.begin, buffer.first(part.range.size())));
      buffer = buffer.subspan(part.range.size());
    }
  }
  return flush();
}

Result<std::vector<ProcessPages::Part>> ProcessPages::split_by_sharing(AddressRange range) {
  {
    const std::lock_guard lock(opening_);
    if (!pagemap_.valid()) {
      pagemap_ = UniqueFd(open(fmt::format("/proc/{}/pagemap", host_pid_).c_str(), O_RDONLY | O_CLOEXEC));
      if (!pagemap_.valid()) return std::vector<Part>{{range, true}};  // slower, and always right
    }
  }
  std::vector<uint64_t> words((range.size() + page_size - 1) / page_size);
  const auto bytes = static_cast<ssize_t>(words.size() * sizeof(uint64_t));
  if (pread(pagemap_.get(), words.data(), words.size() * sizeof(uint64_t),
            static_cast<off_t>(range.begin / page_size * sizeof(uint64_t))) != bytes) {
    return std::vector<Part>{{range, true}};
  }
  std::vector<Part> parts;
  uint64_t at = range.begin;
  for (const uint64_t word : words) {
    const bool shared =
        (word & kernel::word_present) != 0 && (word & (kernel::word_of_file | kernel::word_exclusively_mapped)) == 0;
    const uint64_t end = std::min((at / page_size + 1) * page_size, range.end);
    if (!parts.empty() && parts.back().shared == shared)
      parts.back().range.end = end;
    else
      parts.push_back({{at, end}, shared});
    at = end;
  }
  return parts;
}

Status ProcessPages::read_exclusive(std::span<const AddressRange> ranges, std::span<uint8_t> buffer) {
  Cursor cursor(ranges, buffer);
  std::vector<iovec> remote;
  while (!cursor.done()) {
    const size_t wanted = cursor.parts(remote);
    const iovec local{cursor.target(), wanted};
    const ssize_t got = process_vm_readv(host_pid_, &local, 1, remote.data(), remote.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == ESRCH) return fail(Error::gone("read memory", fmt::format("task {}", host_pid_)));
    if (got < 0 && errno != EFAULT && errno != EPERM)
      return fail_errno("read memory", fmt::format("task {}", host_pid_));
    if (got > 0) cursor.advance(static_cast<size_t>(got));
    if (got == static_cast<ssize_t>(wanted)) continue;
    // The rest of this range may not be read by the task itself; the next one perhaps may.
    const AddressRange rest = cursor.rest();
    TRY(read_forced(rest.begin, {cursor.target(), rest.size()}));
    cursor.advance(rest.size());
  }
  return {};
}

Status ProcessPages::read_forced(uint64_t address, std::span<uint8_t> buffer) {
  {
    const std::lock_guard lock(opening_);
    if (!mem_.valid()) {
      const std::string path = fmt::format("/proc/{}/mem", host_pid_);
      mem_ = UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
      if (!mem_.valid() && (errno == ENOENT || errno == ESRCH))
        return fail(Error::gone("read memory", fmt::format("task {}", host_pid_)));
      if (!mem_.valid()) return fail_errno("open", path);
    }
  }
  while (!buffer.empty()) {
    const ssize_t got = pread(mem_.get(), buffer.data(), buffer.size(), static_cast<off_t>(address));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("read memory", fmt::format("task {}, address {:#x}", host_pid_, address));
    if (got == 0) return fail(Error::gone("read memory", fmt::format("task {}", host_pid_)));  // its mm is gone
    buffer = buffer.subspan(static_cast<size_t>(got));
    address += static_cast<uint64_t>(got);
  }
  return {};
}

Status FilePages::read(uint64_t address, std::span<uint8_t> buffer) {
  while (!buffer.empty()) {
    const ssize_t got = pread(fd_, buffer.data(), buffer.size(), static_cast<off_t>(address));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("read", name_);
    if (got == 0) {
      std::memset(buffer.data(), 0, buffer.size());
      return {};
    }
    buffer = buffer.subspan(static_cast<size_t>(got));
    address += static_cast<uint64_t>(got);
  }
  return {};
}

}  // namespace stasis::memory
