// Pipes and FIFOs.
//
// The content is read without consuming it: tee(2) copies it from a read end into a pipe of ours. Packets (O_DIRECT)
// keep their boundaries. At restore one process makes the pipe, fills it, and opens every description through
// /proc/self/fd, which gives each its own flags (fs/pipe.c, fifo_open); the ends made first are closed then.
#include "resource/pipe.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "resource/descriptors.h"
#include "resource/ghost_file.h"
#include "resource/regular_file.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::ResultOf;
using plan::WordOf;

constexpr uint32_t large_file = 0100000;       ///< the kernel's O_LARGEFILE; glibc's is 0
constexpr uint64_t largest_pipe = 1ull << 31;  ///< what F_SETPIPE_SZ can express

/// The buffer behind the ends.
struct PipeBuffer final : model::KindValue {
  uint32_t size = 0;  ///< F_GETPIPE_SZ
  Bytes content;
  std::vector<uint32_t> packets;  ///< lengths, if the pipe is in packet mode; they add up to the content
  uint32_t inode = 0;             ///< of a pipe, by which users name it; not compared

  std::string_view kind() const override { return "pipe buffer"; }
  bool equals(const model::KindValue& other) const override {
    const auto* pipe = dynamic_cast<const PipeBuffer*>(&other);
    return pipe != nullptr && size == pipe->size && content == pipe->content && packets == pipe->packets;
  }
  std::string describe() const override { return fmt::format("pipe of {} bytes with {} in it", size, content.size()); }
};

/// One end. `path` is empty for a pipe, that of the FIFO for a FIFO.
struct PipeEnd final : model::KindValue {
  ObjectId buffer;
  std::string path;
  ObjectId ghost;         ///< of an unlinked FIFO
  std::string open_path;  ///< where it is opened at restore; not compared

  std::string_view kind() const override { return path.empty() ? "pipe" : "fifo"; }
  bool equals(const model::KindValue& other) const override {
    const auto* end = dynamic_cast<const PipeEnd*>(&other);
    return end != nullptr && buffer == end->buffer && path == end->path &&
           (ghost.value != 0) == (end->ghost.value != 0);
  }
  std::string describe() const override { return path.empty() ? fmt::format("pipe {}", buffer) : "fifo " + path; }
};

bool reads(uint32_t flags) { return (flags & O_ACCMODE) != O_WRONLY; }
bool writes(uint32_t flags) { return (flags & O_ACCMODE) != O_RDONLY; }

/// Everything in the pipe, through a read end. The tasks stand still: what is there stays there.
Status read_content(int read_end, PipeBuffer& buffer, const std::string& subject) {
  int available = 0;
  if (ioctl(read_end, FIONREAD, &available) != 0) return fail_errno("FIONREAD", subject);
  if (available == 0) return {};
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return fail_errno("pipe2", subject);
  const UniqueFd copy_out(ends[0]), copy_in(ends[1]);
  if (fcntl(copy_in.get(), F_SETPIPE_SZ, buffer.size) < 0) return fail_errno("F_SETPIPE_SZ", subject);
  const ssize_t copied = tee(read_end, copy_in.get(), static_cast<size_t>(available), SPLICE_F_NONBLOCK);
  if (copied != available) return fail_errno("tee", subject);
  buffer.content.resize(static_cast<size_t>(available));
  for (size_t done = 0; done < buffer.content.size();) {
    // A packet never comes together with the next one, whatever the reader asks for.
    const ssize_t count = read(copy_out.get(), buffer.content.data() + done, buffer.content.size() - done);
    if (count <= 0) return fail_errno("read", subject);
    buffer.packets.push_back(static_cast<uint32_t>(count));
    done += static_cast<size_t>(count);
  }
  return {};
}

/// Shared by pipes and FIFOs, which differ in how they are found and opened.
class PipeRoomBase : public FileRoom {
 public:
  ObjectId made_together(const model::OpenDescription& description) const override {
    return description.state.as<PipeEnd>()->buffer;
  }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    auto end = std::make_shared<PipeEnd>();
    if (kind() == "fifo") TRY(capture_path(context, probe, *end));
    bool fresh = false;
    end->buffer = context.object(fmt::format("{} {}:{}", kind(), probe.stat.st_dev, probe.stat.st_ino), fresh);
    if (fresh) TRY(capture_buffer(context, probe, end->buffer));
    return model::KindState{std::move(end)};
  }

  /// Bytes that came as one packet are no packet if nobody writes packets: what is written next may join them.
  Status finish_capture(CaptureContext& context) const override {
    std::set<ObjectId> in_packets;
    for (const auto& [id, description] : context.application.descriptions) {
      const auto* end = description.state.as<PipeEnd>();
      if (end != nullptr && (description.flags & O_DIRECT) != 0) in_packets.insert(end->buffer);
    }
    for (auto& [id, object] : context.application.objects) {
      const auto* buffer = object.as<PipeBuffer>();
      if (buffer == nullptr || buffer->packets.size() != 1 || in_packets.contains(id)) continue;
      auto plain = std::make_shared<PipeBuffer>(*buffer);
      plain->packets.clear();
      object = {std::move(plain)};
    }
    return {};
  }

 protected:
  /// The buffer's image records: [pipe_data_entry, content]. One of its ends brings it.
  static Status encode_buffer(const model::Application& application, ObjectId id, std::string_view image,
                              image::FileRecords& records) {
    if (!records.first_time(image, id.value)) return {};
    const auto& buffer = *application.objects.at(id).as<PipeBuffer>();
    pipe_data_entry entry;
    entry.set_pipe_id(buffer.inode != 0 ? buffer.inode : id.value), entry.set_object(id.value),
        entry.set_bytes(static_cast<uint32_t>(buffer.content.size())), entry.set_size(buffer.size);
    if (!buffer.packets.empty()) {
      for (const uint32_t length : buffer.packets) entry.add_packets(length);
    }
    auto* writer = TRY(records.side(image));
    TRY(writer->append(entry));
    return writer->append_raw(buffer.content);
  }

  /// Reads all buffers of an image when the first description needs one.
  static Status decode_buffers(const image::FileRecords& records, std::string_view image,
                               model::Application& application) {
    if (!records.first_time(image, 0)) return {};
    auto reader = TRY(records.directory().find(image::file_name(image)));
    for (pipe_data_entry entry; reader && TRY(reader->next(entry));) {
      auto& object = application.objects[object_of(entry)];
      if (object.value) {
        return fail(Error::invalid("decode pipe", fmt::format("{} is the number of something else", object_of(entry)),
                                   reader->where()));
      }
      auto buffer = std::make_shared<PipeBuffer>();
      buffer->inode = entry.pipe_id();
      buffer->size = entry.has_size() ? entry.size() : 65536;
      buffer->content = TRY(reader->raw(entry.bytes()));
      buffer->packets.assign(entry.packets().begin(), entry.packets().end());
      const uint64_t sum = std::accumulate(buffer->packets.begin(), buffer->packets.end(), uint64_t{0});
      if (buffer->size > largest_pipe || buffer->content.size() > buffer->size ||
          (!buffer->packets.empty() && sum != buffer->content.size())) {
        return fail(Error::invalid("decode pipe", fmt::format("pipe {} holds more than it can", entry.pipe_id()),
                                   reader->where()));
      }
      object = {std::move(buffer)};
    }
    return {};
  }

  /// Inodes are others each time: a checkpoint counts pipes as it counts other objects.
  static ObjectId object_of(const auto& entry) {
    return ObjectId{entry.has_object() ? entry.object() : entry.pipe_id()};
  }

  static std::shared_ptr<PipeEnd> decode_end(model::Application& application, ObjectId buffer, uint32_t inode,
                                             std::string path) {
    auto end = std::make_shared<PipeEnd>();
    end->buffer = buffer, end->path = std::move(path);
    auto& object = application.objects[buffer];
    if (!object.value) {  // nothing was in it, and nothing was written of it
      auto empty = std::make_shared<PipeBuffer>();
      empty->size = 65536;
      empty->inode = inode;
      object = {std::move(empty)};
    }
    return end;
  }

  /// The calls after both ends are open at `read_end` and `write_end`.
  static plan::Calls fill(const PipeBuffer& buffer, int write_end) {
    plan::Calls calls;
    calls.push_back(call(SYS_fcntl, write_end, F_SETPIPE_SZ, buffer.size));
    if (buffer.content.empty()) return calls;
    if (buffer.packets.empty()) {
      calls.push_back(call(plan::Call::write_fully, write_end, plan::In{buffer.content}, buffer.content.size(), ~0ull));
      return calls;
    }
    calls.push_back(call(SYS_fcntl, write_end, F_SETFL, O_DIRECT));
    uint64_t at = 0;
    for (const uint32_t length : buffer.packets) {
      const auto* first = buffer.content.data() + at;
      calls.push_back(call(plan::Call::write_fully, write_end, plan::In{Bytes(first, first + length)}, length, ~0ull));
      at += length;
    }
    return calls;
  }

  /// Opens every placement through one of the ends, then closes these. `made_by_pipe`: the ends are what pipe2 made.
  /// Only those lack O_LARGEFILE, so that a description without it is such an end itself.
  static void open_placements(std::span<const plan::Placement> placements, int read_end, int write_end,
                              bool made_by_pipe, plan::Perform& perform) {
    std::set<int> given;
    for (const auto& placement : placements) {
      const uint32_t flags = placement.description->flags;
      const int through = reads(flags) ? read_end : write_end;
      const bool given_as_it_is = made_by_pipe && (flags & large_file) == 0 && given.insert(through).second;
      if (given_as_it_is) {
        perform.calls.push_back(call(SYS_dup3, through, placement.fd, 0));
      } else {
        const uint32_t opened = (reopen_flags(flags) & ~static_cast<uint32_t>(O_DIRECT)) | O_NONBLOCK;
        perform.calls.push_back(
            call(SYS_openat, AT_FDCWD, plan::text(fmt::format("/proc/self/fd/{}", through)), opened, 0));
        perform.calls.push_back(call(plan::Call::move_fd, ResultOf{-1}, placement.fd, 0));
      }
      // Opened without waiting; now as it was. open(2) refuses O_DIRECT for pipes, fcntl takes it (fs/fcntl.c, setfl).
      if (given_as_it_is || (flags & O_NONBLOCK) == 0 || (flags & (O_ASYNC | O_DIRECT)) != 0) {
        perform.calls.push_back(
            call(SYS_fcntl, placement.fd, F_SETFL, flags & (O_APPEND | O_NONBLOCK | O_ASYNC | O_DIRECT)));
      }
      perform.creates.push_back({placement.fd, placement.description->id});
    }
    for (const int end : {read_end, write_end}) perform.calls.push_back(call(SYS_close, end));
  }

 private:
  /// FIFOs are opened by their name. One that has none any more is made again, as unlinked files are.
  static Status capture_path(CaptureContext& context, const DescriptorProbe& probe, PipeEnd& end) {
    end.path = probe.link;
    if (is_reached_by_name(probe)) return {};
    if (probe.stat.st_nlink != 0 || !probe.link.ends_with(deleted_mark)) {
      context.diagnostics.refuse(probe.subject, "the FIFO is not reached by its name any more",
                                 "put it back under its name, or close the descriptor");
      return {};
    }
    end.path = original_path(probe.link);
    end.ghost = TRY(capture_ghost_of(context, probe, end.path));
    return {};
  }

  Status capture_buffer(CaptureContext& context, const DescriptorProbe& probe, ObjectId id) const {
    auto buffer = std::make_shared<PipeBuffer>();
    if (kind() == "pipe") buffer->inode = static_cast<uint32_t>(probe.stat.st_ino);
    // A write end opens for reading through procfs, without the other end noticing: it sleeps.
    UniqueFd opened;
    if (!reads(probe.flags)) {
      opened = UniqueFd(open(probe.proc_path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
      if (!opened.valid()) return fail_errno("open", probe.subject);
    }
    const int read_end = opened.valid() ? opened.get() : TRY(probe.duplicate());
    buffer->size = static_cast<uint32_t>(fcntl(read_end, F_GETPIPE_SZ));
    TRY(read_content(read_end, *buffer, probe.subject));
    context.application.objects[id] = {std::move(buffer)};
    return {};
  }
};

class PipeRoom final : public PipeRoomBase {
 public:
  std::string_view kind() const override { return "pipe"; }
  bool can_be_inherited(const model::OpenDescription&) const override { return true; }

  bool recognises(const DescriptorProbe& probe) const override {
    return S_ISFIFO(probe.stat.st_mode) && probe.link.starts_with("pipe:[");
  }

  Status encode(const model::Application& application, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    const auto& end = *description.state.as<PipeEnd>();
    image::FileRecord record;
    record.set_type(PIPE), record.set_id(description.id.value);
    auto& pipe = *record.mutable_pipe();
    const uint32_t inode = application.objects.at(end.buffer).as<PipeBuffer>()->inode;
    pipe.set_id(description.id.value), pipe.set_pipe_id(inode != 0 ? inode : end.buffer.value);
    pipe.set_object(end.buffer.value), pipe.set_flags(description.flags);
    encode_owner(description.owner, *pipe.mutable_fown());
    records.files.push_back(std::move(record));
    return encode_buffer(application, end.buffer, "pipes-data", records);
  }

  bool decodes(const image::FileRecords&, const image::FileRecord& record) const override {
    return record.type() == PIPE;
  }

  Result<model::OpenDescription> decode(const image::FileRecords& records, const image::FileRecord& record,
                                        model::Application& application) const override {
    if (!record.has_pipe())
      return fail(Error::invalid("decode pipe", "the entry of type PIPE has no pipe field",
                                 fmt::format("files.img, file {}", record.id())));
    const auto& pipe = record.pipe();
    const ObjectId buffer = object_of(pipe);
    if (buffer.value == 0) {
      return fail(Error::invalid("decode pipe", "it has no number: pipe_id, or object, is 0",
                                 fmt::format("files.img, file {}", record.id())));
    }
    TRY(decode_buffers(records, "pipes-data", application));
    model::OpenDescription description;
    description.id = ObjectId{record.id()}, description.flags = pipe.flags(),
    description.owner = decode_owner(pipe.fown());
    description.state = {decode_end(application, buffer, pipe.pipe_id(), {})};
    if (application.objects.at(buffer).as<PipeBuffer>() == nullptr) {
      return fail(Error::invalid("decode pipe", fmt::format("object {} is no pipe", buffer),
                                 fmt::format("files.img, file {}", record.id())));
    }
    return description;
  }

  std::vector<std::string> names(const model::Application& application,
                                 const model::OpenDescription& description) const override {
    const auto& buffer = *application.objects.at(description.state.as<PipeEnd>()->buffer).as<PipeBuffer>();
    return {fmt::format("pipe:[{}]", buffer.inode), fmt::format("pipe[{}]", buffer.inode)};
  }

  void validate_all(const model::Application& application, Diagnostics& diagnostics) const override {
    std::set<ObjectId> seen;
    for (const auto& [id, description] : application.descriptions) {
      const auto* end = description.given < 0 ? nullptr : description.state.as<PipeEnd>();
      if (end == nullptr || !seen.insert(end->buffer).second) continue;
      const auto* buffer = application.objects.at(end->buffer).as<PipeBuffer>();
      if (buffer->content.empty()) continue;
      diagnostics.warn(fmt::format("pipe:[{}]", buffer->inode),
                       fmt::format("{} bytes wait in it to be read", buffer->content.size()),
                       "they do not come into the one that takes its place (--inherit-fd)");
    }
  }

  Status make(const model::Application& application, std::span<const plan::Placement> placements,
              plan::Sink& sink) const override {
    const auto& end = *placements.front().description->state.as<PipeEnd>();
    const int read_end = placements.front().scratch, write_end = read_end + 1;
    plan::Perform perform{fmt::format("pipe {}", end.buffer), "", {}, {}, {}};
    perform.calls.push_back(call(SYS_pipe2, plan::Out{8}, 0));
    // The write end has the higher number, which may be the one that the read end is to have: it gives way first.
    perform.calls.push_back(call(plan::Call::move_fd, WordOf{-1, 4}, write_end, O_CLOEXEC));
    perform.calls.push_back(call(plan::Call::move_fd, WordOf{-2, 0}, read_end, O_CLOEXEC));
    for (auto& one : fill(*application.objects.at(end.buffer).as<PipeBuffer>(), write_end))
      perform.calls.push_back(std::move(one));
    open_placements(placements, read_end, write_end, true, perform);
    sink.add(std::move(perform));
    return {};
  }

  /// An end whose other end nobody in the tree holds: fine if nobody at all does, else it leads outside. What is there
  /// can take its place at the restore again.
  Status finish_capture(CaptureContext& context) const override {
    TRY(PipeRoomBase::finish_capture(context));
    for (const auto& [buffer, held] : held_ends(context.application)) {
      if ((held.reads && held.writes) || held.task == nullptr) continue;
      if (is_alone(context, held)) continue;
      const auto name = fmt::format("pipe:[{}]", context.application.objects.at(buffer).as<PipeBuffer>()->inode);
      if (is_external(context.policy, name)) continue;
      context.diagnostics.warn(
          fmt::format("task {} '{}', descriptor {} → pipe", held.task->pid, held.task->name, held.fd),
          fmt::format("the {} end of this pipe is held by a process outside of the tree",
                      held.reads ? "write" : "read"),
          fmt::format("at the restore pass a pipe for it: --inherit-fd 'fd[N]:{}'; or nobody is at its other end",
                      name));
    }
    return {};
  }

 private:
  struct Held {
    bool reads = false, writes = false;
    const model::Task* task = nullptr;  ///< one that has an end
    int fd = -1;
  };

  static std::map<ObjectId, Held> held_ends(const model::Application& application) {
    std::map<ObjectId, Held> ends;
    for (const auto& [id, description] : application.descriptions) {  // those in flight are in no table
      const auto* end = description.state.as<PipeEnd>();
      if (end == nullptr || !end->path.empty()) continue;
      auto& held = ends[end->buffer];
      held.reads |= reads(description.flags), held.writes |= writes(description.flags);
    }
    for (const auto& task : application.tasks) {
      const auto table = application.descriptor_tables.find(task.descriptors);
      if (table == application.descriptor_tables.end()) continue;
      for (const auto& [fd, slot] : table->second.slots) {
        const auto& description = application.descriptions.at(slot.description);
        const auto* end = description.state.as<PipeEnd>();
        if (end == nullptr || !end->path.empty()) continue;
        auto& held = ends[end->buffer];
        held.task = &task, held.fd = fd;
      }
    }
    return ends;
  }

  /// The kernel says through poll(2) whether the other side is open anywhere: hang-up for a reader, error for a writer.
  static bool is_alone(const CaptureContext& context, const Held& held) {
    DescriptorProbe probe;
    probe.witness = context.witness(*held.task);
    probe.fd = held.fd;
    const auto duplicate = probe.duplicate();
    if (!duplicate) return true;
    pollfd asked{*duplicate, static_cast<short>(held.reads ? POLLIN : POLLOUT), 0};
    return poll(&asked, 1, 0) < 0 || (asked.revents & (held.reads ? POLLHUP : POLLERR)) != 0;
  }
};

class FifoRoom final : public PipeRoomBase {
 public:
  std::string_view kind() const override { return "fifo"; }

  bool recognises(const DescriptorProbe& probe) const override {
    return S_ISFIFO(probe.stat.st_mode) && probe.link.starts_with('/') && (probe.flags & O_PATH) == 0;
  }

  /// As CRIU has it: a regular file entry for the path, and a fifo entry with the same id.
  Status encode(const model::Application& application, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    const auto& end = *description.state.as<PipeEnd>();
    image::FileRecord record;
    record.set_type(FIFO), record.set_id(description.id.value);
    auto& fifo = *record.mutable_fifo();
    fifo.set_id(description.id.value), fifo.set_pipe_id(end.buffer.value),
        fifo.set_regf_id(path_record_id(description.id));
    records.files.push_back(std::move(record));
    records.files.push_back(path_record(description, end.path, S_IFIFO));
    if (end.ghost.value != 0) TRY(encode_ghost_of(application, path_record_id(description.id), end.ghost, records));
    return encode_buffer(application, end.buffer, "fifo-data", records);
  }

  bool decodes(const image::FileRecords&, const image::FileRecord& record) const override {
    return record.type() == FIFO;
  }

  std::vector<uint32_t> parts(const image::FileRecords&, const image::FileRecord& record) const override {
    if (!record.has_fifo() || !record.fifo().has_regf_id()) return {};
    return {record.fifo().regf_id()};
  }

  Result<model::OpenDescription> decode(const image::FileRecords& records, const image::FileRecord& record,
                                        model::Application& application) const override {
    const std::string subject = fmt::format("files.img, file {}", record.id());
    const uint32_t wanted = record.fifo().has_regf_id() ? record.fifo().regf_id() : record.id();
    const auto* path = records.find(wanted);
    if (!record.has_fifo() || path == nullptr || !path->has_reg() || !path->reg().name().starts_with('/')) {
      return fail(Error::invalid("decode FIFO", "its path is not in files.img", subject));
    }
    const ObjectId buffer{record.fifo().pipe_id()};
    if (buffer.value == 0) return fail(Error::invalid("decode FIFO", "field pipe_id is 0", subject));
    TRY(decode_buffers(records, "fifo-data", application));
    model::OpenDescription description;
    description.id = ObjectId{record.id()}, description.flags = path->reg().flags(),
    description.owner = decode_owner(path->reg().fown());
    auto end = decode_end(application, buffer, 0, path->reg().name());
    end->open_path = end->path;
    for (const auto& remap : TRY(records.all<remap_file_path_entry>("remap-fpath"))) {
      if (remap.orig_id() != wanted) continue;
      end->ghost = TRY(decode_ghost_of(records, remap, end->path, application));
      end->open_path = application.objects.at(end->ghost).as<GhostFile>()->path;
    }
    description.state = {std::move(end)};
    if (application.objects.at(buffer).as<PipeBuffer>() == nullptr)
      return fail(Error::invalid("decode FIFO", fmt::format("object {} is no pipe", buffer), subject));
    return description;
  }

  void validate(const model::Application&, const model::OpenDescription& description,
                Diagnostics& diagnostics) const override {
    const auto& end = *description.state.as<PipeEnd>();
    struct stat now{};
    if (end.ghost.value != 0) return;
    if (stat(end.path.c_str(), &now) != 0 || !S_ISFIFO(now.st_mode))
      diagnostics.refuse("FIFO " + end.path, "it does not exist", "make it with mkfifo");
  }

  Status make(const model::Application& application, std::span<const plan::Placement> placements,
              plan::Sink& sink) const override {
    const auto& end = *placements.front().description->state.as<PipeEnd>();
    const int read_end = placements.front().scratch, write_end = read_end + 1;
    plan::Perform perform{"fifo " + end.path, "", {}, {}, {}};
    // Both ways first: then no end waits for the other to be opened.
    perform.calls.push_back(call(SYS_openat, AT_FDCWD, plan::text(end.open_path), O_RDWR | O_NONBLOCK | O_CLOEXEC, 0));
    perform.calls.push_back(call(plan::Call::move_fd, ResultOf{-1}, read_end, O_CLOEXEC));
    perform.calls.push_back(call(SYS_dup3, read_end, write_end, O_CLOEXEC));
    for (auto& one : fill(*application.objects.at(end.buffer).as<PipeBuffer>(), write_end))
      perform.calls.push_back(std::move(one));
    open_placements(placements, read_end, write_end, false, perform);
    sink.add(std::move(perform));
    return {};
  }
};

}  // namespace

const FileRoom& pipe_room() {
  static const PipeRoom room;
  return room;
}

const FileRoom& fifo_room() {
  static const FifoRoom room;
  return room;
}

}  // namespace stasis::resource
