#include "resource/ghost_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <ranges>
#include <set>

#include "image/names.h"
#include "kernel/extents.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::ResultOf;

constexpr uint64_t nanoseconds = 1'000'000'000;
constexpr uint64_t small = 64 << 10;           ///< content that is held in memory
constexpr uint64_t block = 1 << 20;            ///< content is moved in blocks of this size
constexpr uint64_t largest_send = 1ull << 30;  ///< sendfile(2) moves at most 0x7ffff000 bytes
constexpr uint64_t largest_file = INT64_MAX;

bool is_directory(uint32_t mode) { return (mode & S_IFMT) == S_IFDIR; }

uint64_t stored_bytes(const GhostFile& ghost) {
  return ghost.extents.empty() ? 0 : ghost.extents.back().content_at + ghost.extents.back().length;
}

/// Reads a ghost's content wherever it lies.
class ContentReader {
 public:
  static Result<ContentReader> open_for(const GhostFile& ghost) {
    ContentReader reader(ghost);
    if (!ghost.content.empty() || ghost.extents.empty() || ghost.stored) return reader;
    reader.file_ = UniqueFd(open(ghost.source.c_str(), O_RDONLY | O_CLOEXEC));
    if (!reader.file_.valid()) return fail_errno("open", ghost.source);
    return reader;
  }

  /// Bytes of the file from `offset`; holes are zeros.
  Status read(uint64_t offset, std::span<uint8_t> buffer) const {
    std::ranges::fill(buffer, 0);
    const uint64_t end = offset + buffer.size();
    const auto past = [](const GhostFile::Extent& extent) { return extent.offset + extent.length; };
    auto extent = std::ranges::upper_bound(ghost_->extents, offset, {}, past);
    for (; extent != ghost_->extents.end() && extent->offset < end; ++extent) {
      const uint64_t from = std::max(offset, extent->offset), to = std::min(end, past(*extent));
      TRY(read_extent(*extent, from, buffer.subspan(from - offset, to - from)));
    }
    return {};
  }

 private:
  explicit ContentReader(const GhostFile& ghost) : ghost_(&ghost) {}

  Status read_extent(const GhostFile::Extent& extent, uint64_t from, std::span<uint8_t> into) const {
    const uint64_t inside = from - extent.offset;
    if (!ghost_->content.empty()) {
      std::memcpy(into.data(), ghost_->content.data() + extent.content_at + inside, into.size());
      return {};
    }
    if (ghost_->stored) {
      if (TRY(ghost_->stored->read(extent.stored_at + inside, into))) return {};
      return fail(Error::conflict("read", "it has become shorter meanwhile", ghost_->source));
    }
    uint64_t at = from;
    while (!into.empty()) {
      const ssize_t count = pread(file_.get(), into.data(), into.size(), static_cast<off_t>(at));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return fail_errno("read", ghost_->source);
      if (count == 0) return fail(Error::conflict("read", "it has become shorter meanwhile", ghost_->source));
      into = into.subspan(static_cast<size_t>(count));
      at += static_cast<uint64_t>(count);
    }
    return {};
  }

  const GhostFile* ghost_;
  UniqueFd file_;
};

/// Calls `use` with one block of content after the other.
Status each_block(const GhostFile::Extent& extent, const ContentReader& reader, const auto& use) {
  Bytes bytes;
  for (uint64_t done = 0; done < extent.length; done += bytes.size()) {
    bytes.resize(std::min(block, extent.length - done));
    TRY(reader.read(extent.offset + done, bytes));
    TRY(use(extent.offset + done, bytes));
  }
  return {};
}

/// The same bytes wherever `a` has data, holes being zeros.
Result<bool> covers_equal(const GhostFile& a, const GhostFile& b) {
  const auto left = TRY(ContentReader::open_for(a)), right = TRY(ContentReader::open_for(b));
  bool equal = true;
  for (const auto& extent : a.extents) {
    TRY(each_block(extent, left, [&](uint64_t offset, const Bytes& bytes) -> Status {
      Bytes other(bytes.size());
      TRY(right.read(offset, other));
      equal = equal && bytes == other;
      return {};
    }));
    if (!equal) return false;
  }
  return true;
}

Result<std::vector<GhostFile::Extent>> find_data(int file, uint64_t size, const std::string& subject) {
  std::vector<GhostFile::Extent> extents;
  uint64_t total = 0;
  for (const auto& [begin, end] : TRY(kernel::data_extents(file, size, subject))) {
    extents.push_back({.offset = begin, .length = end - begin, .content_at = total});
    total += end - begin;
  }
  return extents;
}

void write_time(uint64_t ns, time_value_entry& entry) {
  entry.set_tv_sec(ns / nanoseconds), entry.set_tv_usec(ns % nanoseconds / 1000);
}

uint64_t read_time(const time_value_entry& entry, uint32_t below_microseconds) {
  return entry.tv_sec() * nanoseconds + entry.tv_usec() * 1000 + below_microseconds % 1000;
}

}  // namespace

bool GhostFile::equals(const model::KindValue& other) const {
  const auto* ghost = dynamic_cast<const GhostFile*>(&other);
  if (ghost == nullptr || uid != ghost->uid || gid != ghost->gid || mode != ghost->mode || size != ghost->size ||
      target != ghost->target || device != ghost->device || attributes != ghost->attributes) {
    return false;
  }
  const auto there = covers_equal(*this, *ghost), back = covers_equal(*ghost, *this);
  return there && back && *there && *back;
}

std::string GhostFile::describe() const {
  return fmt::format("unlinked file {} of {} bytes, mode {:o}, owner {}:{}", path, size, mode, uid, gid);
}

bool is_stateless_device(uint32_t mode, dev_t device) {
  constexpr unsigned memory_devices = 1;
  if (!S_ISCHR(mode) || major(device) != memory_devices) return false;
  switch (minor(device)) {
    case 3:  // null
    case 5:  // zero
    case 7:  // full
    case 8:  // random
    case 9:  // urandom
      return true;
    default:
      return false;
  }
}

bool can_be_ghost(uint32_t mode, dev_t device) {
  return S_ISREG(mode) || S_ISDIR(mode) || S_ISLNK(mode) || S_ISFIFO(mode) || is_stateless_device(mode, device);
}

namespace {

/// Only a descriptor of the link itself reads it (O_PATH): the path in procfs would be followed beyond it.
Result<std::string> target_of(const DescriptorProbe& probe) {
  char target[PATH_MAX];
  const ssize_t length = readlinkat(TRY(probe.duplicate()), "", target, sizeof target);
  if (length < 0) return fail_errno("readlink", probe.subject);
  return std::string(target, static_cast<size_t>(length));
}

}  // namespace

Result<GhostFile> capture_ghost(const DescriptorProbe& probe) {
  const auto in_nanoseconds = [](const timespec& time) {
    return static_cast<uint64_t>(time.tv_sec) * nanoseconds + static_cast<uint64_t>(time.tv_nsec);
  };
  GhostFile ghost;
  ghost.uid = probe.stat.st_uid, ghost.gid = probe.stat.st_gid, ghost.mode = probe.stat.st_mode;
  ghost.accessed_ns = in_nanoseconds(probe.stat.st_atim), ghost.modified_ns = in_nanoseconds(probe.stat.st_mtim);
  if (S_ISLNK(ghost.mode)) ghost.target = TRY(target_of(probe));
  if (S_ISCHR(ghost.mode)) ghost.device = static_cast<uint32_t>(probe.stat.st_rdev);
  if (!S_ISLNK(ghost.mode))
    ghost.attributes = TRY_IN("look at " + probe.subject, read_extended_attributes(probe.proc_path));
  if (!S_ISREG(ghost.mode)) return ghost;
  ghost.size = static_cast<uint64_t>(probe.stat.st_size);
  // A new description: the task's own offset stays where it is.
  const UniqueFd file(open(probe.proc_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return fail_errno("open", probe.subject);
  ghost.extents = TRY(find_data(file.get(), ghost.size, probe.subject));
  ghost.source = probe.proc_path;
  const uint64_t stored = stored_bytes(ghost);
  if (stored > small) return ghost;
  Bytes content;
  const auto reader = TRY(ContentReader::open_for(ghost));
  for (const auto& extent : ghost.extents) {
    const size_t before = content.size();
    content.resize(before + extent.length);
    TRY_IN("read " + probe.subject, reader.read(extent.offset, std::span(content).subspan(before)));
  }
  ghost.content = std::move(content);
  return ghost;
}

Status encode_ghost(const GhostFile& ghost, image::Writer& writer) {
  ghost_file_entry entry;
  entry.set_uid(ghost.uid), entry.set_gid(ghost.gid), entry.set_mode(ghost.mode);
  write_time(ghost.accessed_ns, *entry.mutable_atim()), write_time(ghost.modified_ns, *entry.mutable_mtim());
  entry.set_atim_ns(ghost.accessed_ns % 1000), entry.set_mtim_ns(ghost.modified_ns % 1000);
  if (S_ISREG(ghost.mode)) entry.set_chunks(true), entry.set_size(ghost.size);
  if (S_ISLNK(ghost.mode)) entry.set_symlnk_target(ghost.target);
  if (S_ISCHR(ghost.mode)) entry.set_rdev(ghost.device);
  encode_extended_attributes(ghost.attributes, *entry.mutable_attributes());
  TRY(writer.append(entry));
  const auto reader = TRY(ContentReader::open_for(ghost));
  for (const auto& extent : ghost.extents) {
    ghost_chunk_entry record;
    record.set_len(extent.length), record.set_off(extent.offset);
    TRY(writer.append(record));
    TRY(each_block(extent, reader, [&](uint64_t, const Bytes& bytes) -> Status { return writer.append_raw(bytes); }));
  }
  return {};
}

namespace {

/// The extents of an image and, if they are few, their bytes.
Status decode_content(image::Reader& reader, const ghost_file_entry& entry, GhostFile& ghost) {
  const auto add = [&](uint64_t offset, uint64_t length) -> Status {
    const uint64_t before = stored_bytes(ghost);
    ghost.extents.push_back({offset, length, before, reader.position()});
    if (stored_bytes(ghost) > small) ghost.content.clear();
    if (length > reader.remaining()) {
      return fail(
          Error::invalid("decode ghost file", fmt::format("a chunk of {} bytes is cut off", length), reader.where()));
    }
    if (stored_bytes(ghost) > small) return reader.skip(length);
    const Bytes bytes = TRY(reader.raw(length));
    ghost.content.insert(ghost.content.end(), bytes.begin(), bytes.end());
    return {};
  };
  if (!entry.chunks()) {  // the content as it is
    ghost.size = reader.remaining();
    return ghost.size == 0 ? Status{} : add(0, ghost.size);
  }
  uint64_t end = 0;
  for (ghost_chunk_entry record; TRY(reader.next(record));) {
    if (record.off() < end || record.off() > ghost.size || record.len() > ghost.size - record.off()) {
      return fail(
          Error::invalid("decode ghost file",
                         fmt::format("the chunk of {} bytes for offset {} is out of place", record.len(), record.off()),
                         reader.where()));
    }
    end = record.off() + record.len();
    if (record.len() != 0) TRY(add(record.off(), record.len()));
  }
  return {};
}

}  // namespace

Result<GhostFile> decode_ghost(const image::Directory& directory, uint32_t id) {
  GhostFile ghost;
  ghost.image = image::file_name("ghost-file-{}", id);
  ghost.source = directory.path() + "/" + ghost.image;
  ghost.is_encrypted = directory.encryption() != nullptr;
  auto reader = TRY(directory.read(ghost.image));
  ghost_file_entry entry;
  if (!TRY(reader.next(entry))) return fail(Error::invalid("decode ghost file", "it is empty", ghost.image));
  ghost.uid = entry.uid(), ghost.gid = entry.gid(), ghost.mode = entry.mode(), ghost.size = entry.size();
  ghost.accessed_ns = read_time(entry.atim(), entry.atim_ns());
  ghost.modified_ns = read_time(entry.mtim(), entry.mtim_ns());
  ghost.target = entry.symlnk_target(), ghost.device = entry.rdev();
  if (!can_be_ghost(ghost.mode, ghost.device)) {
    return fail(Error::unsupported("decode ghost file",
                                   fmt::format("field mode: {:o}, or the device, cannot be made again", ghost.mode),
                                   ghost.image));
  }
  ghost.attributes = TRY(decode_extended_attributes(entry.attributes(), ghost.image));
  if (S_ISLNK(ghost.mode) && !ghost.attributes.empty())
    return fail(Error::invalid("decode ghost file", "field attributes: a link has none", ghost.image));
  const bool is_target =
      !ghost.target.empty() && ghost.target.size() < PATH_MAX && ghost.target.find('\0') == std::string::npos;
  if (S_ISLNK(ghost.mode) && !is_target)
    return fail(Error::invalid("decode ghost file", "field symlnk_target: a link leads to no such path", ghost.image));
  if (!S_ISREG(ghost.mode)) return ghost;
  if (ghost.size > largest_file) {
    return fail(Error::invalid("decode ghost file", fmt::format("field size: {} bytes are impossible", ghost.size),
                               ghost.image));
  }
  TRY(decode_content(reader, entry, ghost));
  if (ghost.content.empty() && !ghost.extents.empty()) ghost.stored = TRY(directory.bytes_of(ghost.image));
  return ghost;
}

// ---- restore

namespace {

/// The purpose of the command whose first call makes it.
std::string making(const std::string& path, const GhostFile* ghost) {
  return (ghost == nullptr ? "directory " : "unlinked file ") + path;
}

void make_directory(const std::string& path, plan::Sink& sink) {
  sink.perform(making(path, nullptr), "", {call(SYS_mkdirat, AT_FDCWD, plan::text(path), 0755)});
}

/// Copies the extents from the image; the result of the call before the first is the new file.
void fill(const GhostFile& ghost, int images_fd, plan::Calls& calls) {
  const int created = static_cast<int>(calls.size()) - 1;
  const auto result_of = [&](int index) { return ResultOf{index - static_cast<int>(calls.size())}; };
  calls.push_back(call(SYS_ftruncate, result_of(created), ghost.size));
  if (ghost.extents.empty() || ghost.is_encrypted) return;
  const int image = static_cast<int>(calls.size());
  calls.push_back(call(SYS_openat, images_fd, plan::text(ghost.image), O_RDONLY | O_CLOEXEC, 0));
  for (const auto& extent : ghost.extents) {
    calls.push_back(call(SYS_lseek, result_of(created), extent.offset, SEEK_SET));
    for (uint64_t done = 0; done < extent.length;) {
      const uint64_t part = std::min(largest_send, extent.length - done);
      const uint64_t from = extent.stored_at + done;
      calls.push_back(
          plan::expecting(call(SYS_sendfile, result_of(created), result_of(image), plan::InOut{bytes_of(from)}, part),
                          plan::Expectation::Kind::exactly, static_cast<int64_t>(part)));
      done += part;
    }
  }
  calls.push_back(call(SYS_close, result_of(image)));
}

void make_ghost(const GhostFile& ghost, plan::Sink& sink) {
  const auto path = plan::text(ghost.path);
  plan::Calls calls;
  if (is_directory(ghost.mode)) {
    calls.push_back(call(SYS_mkdirat, AT_FDCWD, path, 0700));
  } else if (S_ISFIFO(ghost.mode)) {
    calls.push_back(call(SYS_mknodat, AT_FDCWD, path, S_IFIFO | 0600, 0));
  } else if (S_ISCHR(ghost.mode)) {
    calls.push_back(call(SYS_mknodat, AT_FDCWD, path, S_IFCHR | 0600, ghost.device));
  } else if (S_ISLNK(ghost.mode)) {
    calls.push_back(call(SYS_symlinkat, plan::text(ghost.target), AT_FDCWD, path));
  } else {
    calls.push_back(call(SYS_openat, AT_FDCWD, path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0600));
    fill(ghost, sink.images_fd(), calls);
    calls.push_back(call(SYS_close, ResultOf{-static_cast<int>(calls.size())}));
    if (ghost.is_encrypted) {
      sink.perform(making(ghost.path, &ghost), "", std::exchange(calls, {}));
      for (const auto& extent : ghost.extents)
        sink.add(plan::DecodeFile{ghost.image, extent.stored_at, extent.length, -1, ghost.path, extent.offset});
    }
  }
  calls.push_back(call(SYS_fchownat, AT_FDCWD, path, ghost.uid, ghost.gid, AT_SYMLINK_NOFOLLOW));
  if (!S_ISLNK(ghost.mode)) calls.push_back(call(SYS_fchmodat, AT_FDCWD, path, ghost.mode & 07777));
  std::ranges::move(set_extended_attributes(ghost.attributes, ghost.path), std::back_inserter(calls));
  const auto time = [](uint64_t ns) {
    return timespec{static_cast<time_t>(ns / nanoseconds), static_cast<long>(ns % nanoseconds)};
  };
  const timespec times[2] = {time(ghost.accessed_ns), time(ghost.modified_ns)};
  calls.push_back(call(SYS_utimensat, AT_FDCWD, path, plan::struct_in(times), AT_SYMLINK_NOFOLLOW));
  const bool begun = ghost.is_encrypted && S_ISREG(ghost.mode);
  sink.perform(begun ? "attributes of unlinked file " + ghost.path : making(ghost.path, &ghost), "", std::move(calls));
}

}  // namespace

void make_missing_directories(model::Application& application, const std::string& path) {
  struct stat there{};
  for (auto above = std::filesystem::path(path).lexically_normal().parent_path();
       above.has_relative_path() && lstat(above.c_str(), &there) != 0 && errno == ENOENT; above = above.parent_path()) {
    application.scaffold.directories.insert(above);
  }
}

void contribute_ghosts(plan::Stage stage, const model::Application& application, plan::Sink& sink) {
  if (stage != plan::Stage::prepare && stage != plan::Stage::settle) return;
  std::map<std::string, const GhostFile*> made;  // by path: directories come before what is in them
  for (const auto& [id, object] : application.objects) {
    if (const auto* ghost = object.as<GhostFile>()) made[ghost->path] = ghost;
  }
  for (const auto& directory : application.scaffold.directories) made.try_emplace(directory, nullptr);
  if (stage == plan::Stage::prepare) {
    for (const auto& [path, ghost] : made) {
      if (ghost != nullptr)
        make_ghost(*ghost, sink);
      else
        make_directory(path, sink);
    }
    return;
  }
  for (const auto& [path, ghost] : std::views::reverse(made)) {
    const bool directory = ghost == nullptr || is_directory(ghost->mode);
    sink.undo("unlink " + path, "", {call(SYS_unlinkat, AT_FDCWD, plan::text(path), directory ? AT_REMOVEDIR : 0)},
              making(path, ghost));
  }
}

}  // namespace stasis::resource
