#include "resource/ghost_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace stasis::resource {
namespace {

using plan::call;
using plan::ResultOf;

constexpr uint64_t nanoseconds = 1'000'000'000;
constexpr uint64_t largest_chunk = 1 << 20;
constexpr uint64_t largest_content = 4ull
                                     << 30;  ///< what an image may claim at most; the file's size bounds it as well

bool is_directory(uint32_t mode) { return (mode & S_IFMT) == S_IFDIR; }

}  // namespace

bool GhostFile::equals(const model::KindValue& other) const {
  const auto* ghost = dynamic_cast<const GhostFile*>(&other);
  return ghost != nullptr && uid == ghost->uid && gid == ghost->gid && mode == ghost->mode && size == ghost->size &&
         chunks == ghost->chunks;
}

std::string GhostFile::describe() const {
  return fmt::format("unlinked file of {} bytes, mode {:o}, owner {}:{}", size, mode, uid, gid);
}

Result<GhostFile> capture_ghost(const DescriptorProbe& probe) {
  GhostFile ghost;
  ghost.uid = probe.stat.st_uid, ghost.gid = probe.stat.st_gid, ghost.mode = probe.stat.st_mode;
  ghost.size = static_cast<uint64_t>(probe.stat.st_size);
  ghost.accessed_ns = static_cast<uint64_t>(probe.stat.st_atim.tv_sec) * nanoseconds +
                      static_cast<uint64_t>(probe.stat.st_atim.tv_nsec);
  ghost.modified_ns = static_cast<uint64_t>(probe.stat.st_mtim.tv_sec) * nanoseconds +
                      static_cast<uint64_t>(probe.stat.st_mtim.tv_nsec);
  if (is_directory(ghost.mode)) {
    ghost.size = 0;
    return ghost;
  }
  // A new description: the task's own offset stays where it is.
  const UniqueFd file(open(probe.proc_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return fail_errno("open", probe.subject);
  for (off_t at = 0; static_cast<uint64_t>(at) < ghost.size;) {
    const off_t data = lseek(file.get(), at, SEEK_DATA);
    if (data < 0) break;  // ENXIO: a hole to the end
    off_t hole = lseek(file.get(), data, SEEK_HOLE);
    if (hole < 0) hole = static_cast<off_t>(ghost.size);
    for (off_t begin = data; begin < hole;) {
      Bytes bytes(static_cast<size_t>(std::min<uint64_t>(static_cast<uint64_t>(hole - begin), largest_chunk)));
      const ssize_t count = pread(file.get(), bytes.data(), bytes.size(), begin);
      if (count <= 0) return fail_errno("read", probe.subject);
      bytes.resize(static_cast<size_t>(count));
      const auto offset = static_cast<uint64_t>(begin);
      begin += count;
      ghost.chunks.push_back({offset, std::move(bytes)});
    }
    at = hole;
  }
  return ghost;
}

Status encode_ghost(const GhostFile& ghost, image::Writer& writer, const DescriptorProbe*) {
  ghost_file_entry entry;
  entry.set_uid(ghost.uid), entry.set_gid(ghost.gid), entry.set_mode(ghost.mode);
  entry.mutable_atim()->set_tv_sec(ghost.accessed_ns / nanoseconds),
      entry.mutable_atim()->set_tv_usec(ghost.accessed_ns % nanoseconds / 1000);
  entry.mutable_mtim()->set_tv_sec(ghost.modified_ns / nanoseconds),
      entry.mutable_mtim()->set_tv_usec(ghost.modified_ns % nanoseconds / 1000);
  if (!is_directory(ghost.mode)) {
    entry.set_chunks(true);
    entry.set_size(ghost.size);
  }
  TRY(writer.append(entry));
  for (const auto& chunk : ghost.chunks) {
    ghost_chunk_entry record;
    record.set_len(chunk.bytes.size()), record.set_off(chunk.offset);
    TRY(writer.append(record));
    TRY(writer.append_raw(chunk.bytes));
  }
  return {};
}

Result<GhostFile> decode_ghost(const image::Directory& directory, uint32_t id) {
  const auto name = image::file_name("ghost-file-{}", id);
  auto reader = TRY(directory.read(name));
  ghost_file_entry entry;
  if (!TRY(reader.next(entry))) return fail(Error::invalid("decode ghost file", "it is empty", name));
  GhostFile ghost;
  ghost.uid = entry.uid(), ghost.gid = entry.gid(), ghost.mode = entry.mode(), ghost.size = entry.size();
  ghost.accessed_ns = entry.atim().tv_sec() * nanoseconds + entry.atim().tv_usec() * 1000;
  ghost.modified_ns = entry.mtim().tv_sec() * nanoseconds + entry.mtim().tv_usec() * 1000;
  if (is_directory(ghost.mode)) return ghost;
  if ((ghost.mode & S_IFMT) != S_IFREG)
    return fail(Error::unsupported("decode ghost file",
                                   fmt::format("mode {:o} is neither file nor directory", ghost.mode), name));
  if (!entry.chunks()) {  // older form: the content as it is
    ghost.chunks.push_back({0, TRY(reader.raw(reader.remaining()))});
    ghost.size = ghost.chunks.back().bytes.size();
    return ghost;
  }
  uint64_t end = 0;
  for (ghost_chunk_entry record; TRY(reader.next(record));) {
    if (record.off() < end || record.len() > largest_content || record.off() > ghost.size ||
        record.len() > ghost.size - record.off()) {
      return fail(Error::invalid("decode ghost file",
                                 fmt::format("the chunk at {} of {} bytes is out of place", record.off(), record.len()),
                                 name));
    }
    end = record.off() + record.len();
    ghost.chunks.push_back({record.off(), TRY(reader.raw(record.len()))});
  }
  return ghost;
}

void make_ghost(const GhostFile& ghost, plan::Sink& sink) {
  const auto path = plan::text(ghost.path);
  plan::Calls calls;
  if (is_directory(ghost.mode)) {
    calls.push_back(call(SYS_mkdirat, AT_FDCWD, path, 0700));
  } else {
    calls.push_back(call(SYS_openat, AT_FDCWD, path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0600));
    int opened = -1;
    const auto file = [&] { return ResultOf{opened--}; };
    calls.push_back(call(SYS_ftruncate, file(), ghost.size));
    for (const auto& chunk : ghost.chunks) {
      calls.push_back(call(plan::Call::write_fully, file(), plan::In{chunk.bytes}, chunk.bytes.size(), chunk.offset));
    }
    calls.push_back(call(SYS_close, file()));
  }
  calls.push_back(call(SYS_fchownat, AT_FDCWD, path, ghost.uid, ghost.gid, AT_SYMLINK_NOFOLLOW));
  calls.push_back(call(SYS_fchmodat, AT_FDCWD, path, ghost.mode & 07777));
  const timespec times[2] = {
      {static_cast<time_t>(ghost.accessed_ns / nanoseconds), static_cast<long>(ghost.accessed_ns % nanoseconds)},
      {static_cast<time_t>(ghost.modified_ns / nanoseconds), static_cast<long>(ghost.modified_ns % nanoseconds)}};
  calls.push_back(call(SYS_utimensat, AT_FDCWD, path, plan::struct_in(times), AT_SYMLINK_NOFOLLOW));
  sink.perform("unlinked file " + ghost.path, "", std::move(calls));
}

void remove_ghost(const GhostFile& ghost, plan::Sink& sink) {
  sink.perform("unlink " + ghost.path, "",
               {call(SYS_unlinkat, AT_FDCWD, plan::text(ghost.path), is_directory(ghost.mode) ? AT_REMOVEDIR : 0)});
}

}  // namespace stasis::resource
