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

#include "resource/descriptors.h"
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

  std::string_view kind() const override { return path.empty() ? "pipe" : "fifo"; }
  bool equals(const model::KindValue& other) const override {
    const auto* end = dynamic_cast<const PipeEnd*>(&other);
    return end != nullptr && buffer == end->buffer && path == end->path;
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
    if (kind() == "fifo") end->path = probe.link;
    bool fresh = false;
    end->buffer = context.object(fmt::format("{} {}:{}", kind(), probe.stat.st_dev, probe.stat.st_ino), fresh);
    if (fresh) TRY(capture_buffer(context, probe, end->buffer));
    if (kind() == "fifo" && access(probe.link.c_str(), F_OK) != 0) {
      context.diagnostics.refuse(probe.subject, "the FIFO has been unlinked", "unlinked FIFOs cannot be restored");
    }
    return model::KindState{std::move(end)};
  }

 protected:
  /// The buffer's image records: [pipe_data_entry, content].
  static Status encode_buffer(const model::Application& application, ObjectId id, std::string_view image,
                              image::FileRecords& records) {
    const auto& buffer = *application.objects.at(id).as<PipeBuffer>();
    pipe_data_entry entry;
    entry.set_pipe_id(id.value), entry.set_bytes(static_cast<uint32_t>(buffer.content.size())),
        entry.set_size(buffer.size);
    if (!buffer.packets.empty()) {
      for (const uint32_t length : buffer.packets) entry.add_packets(length);
    }
    auto* writer = TRY(records.side(image));
    TRY(writer->append(entry));
    return writer->append_raw(buffer.content);
  }

  /// Reads all buffers of an image, once per decode: the first description that needs one loads them.
  static Status decode_buffers(const image::FileRecords& records, std::string_view image,
                               model::Application& application) {
    const auto name = image::file_name(image);
    if (!records.directory().has(name)) return {};
    auto reader = TRY(records.directory().read(name));
    for (pipe_data_entry entry; TRY(reader.next(entry));) {
      auto& object = application.objects[ObjectId{entry.pipe_id()}];
      auto buffer = std::make_shared<PipeBuffer>();
      buffer->size = entry.has_size() ? entry.size() : 65536;
      buffer->content = TRY(reader.raw(entry.bytes()));
      buffer->packets.assign(entry.packets().begin(), entry.packets().end());
      const uint64_t sum = std::accumulate(buffer->packets.begin(), buffer->packets.end(), uint64_t{0});
      if (buffer->size > largest_pipe || buffer->content.size() > buffer->size ||
          (!buffer->packets.empty() && sum != buffer->content.size())) {
        return fail(Error::invalid("decode pipe", fmt::format("pipe {} holds more than it can", entry.pipe_id()),
                                   reader.where()));
      }
      object = {std::move(buffer)};
    }
    return {};
  }

  static std::shared_ptr<PipeEnd> decode_end(model::Application& application, ObjectId buffer, std::string path) {
    auto end = std::make_shared<PipeEnd>();
    end->buffer = buffer, end->path = std::move(path);
    auto& object = application.objects[buffer];
    if (!object.value) {  // nothing was in it, and nothing was written of it
      auto empty = std::make_shared<PipeBuffer>();
      empty->size = 65536;
      object = {std::move(empty)};
    }
    return end;
  }

  /// The calls after both ends are open at `read_end` and `write_end`.
  static plan::Calls fill(const PipeBuffer& buffer, int write_end) {
    plan::Calls calls;
    calls.push_back(call(SYS_fcntl, write_end, F_SETPIPE_SZ, buffer.size));
    if (buffer.content.empty()) return calls;
    if (buffer.packets.size() <= 1) {
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

  /// Opens every placement through one of the ends, then closes these.
  static void open_placements(std::span<const plan::Placement> placements, int read_end, int write_end,
                              plan::Perform& perform) {
    for (const auto& placement : placements) {
      const uint32_t flags = placement.description->flags;
      const int through = reads(flags) ? read_end : write_end;
      // Only the two descriptions that pipe2 makes lack O_LARGEFILE: there is at most one such for each end.
      if ((flags & large_file) == 0) {
        perform.calls.push_back(call(SYS_dup3, through, placement.fd, 0));
      } else {
        const uint32_t opened = (reopen_flags(flags) & ~static_cast<uint32_t>(O_DIRECT)) | O_NONBLOCK;
        perform.calls.push_back(
            call(SYS_openat, AT_FDCWD, plan::text(fmt::format("/proc/self/fd/{}", through)), opened, 0));
        perform.calls.push_back(call(plan::Call::move_fd, ResultOf{-1}, placement.fd, 0));
      }
      // Opened without waiting; now as it was. open(2) refuses O_DIRECT for pipes, fcntl takes it (fs/fcntl.c, setfl).
      if ((flags & O_NONBLOCK) == 0 || (flags & (O_ASYNC | O_DIRECT | large_file)) != large_file) {
        perform.calls.push_back(
            call(SYS_fcntl, placement.fd, F_SETFL, flags & (O_APPEND | O_NONBLOCK | O_ASYNC | O_DIRECT)));
      }
      perform.creates.push_back({placement.fd, placement.description->id});
    }
    for (const int end : {read_end, write_end}) perform.calls.push_back(call(SYS_close, end));
  }

 private:
  static Status capture_buffer(CaptureContext& context, const DescriptorProbe& probe, ObjectId id) {
    auto buffer = std::make_shared<PipeBuffer>();
    // Either end opens for reading through procfs, without the other end noticing: it sleeps.
    const UniqueFd read_end(open(probe.proc_path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    if (!read_end.valid()) return fail_errno("open", probe.subject);
    buffer->size = static_cast<uint32_t>(fcntl(read_end.get(), F_GETPIPE_SZ));
    TRY(read_content(read_end.get(), *buffer, probe.subject));
    if (buffer->packets.size() <= 1) buffer->packets.clear();
    context.application.objects[id] = {std::move(buffer)};
    return {};
  }
};

class PipeRoom final : public PipeRoomBase {
 public:
  std::string_view kind() const override { return "pipe"; }

  bool recognises(const DescriptorProbe& probe) const override {
    return S_ISFIFO(probe.stat.st_mode) && probe.link.starts_with("pipe:[");
  }

  Status encode(const model::Application& application, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    const auto& end = *description.state.as<PipeEnd>();
    image::FileRecord record;
    record.set_type(PIPE), record.set_id(description.id.value);
    auto& pipe = *record.mutable_pipe();
    pipe.set_id(description.id.value), pipe.set_pipe_id(end.buffer.value), pipe.set_flags(description.flags);
    encode_owner(description.owner, *pipe.mutable_fown());
    records.files.push_back(std::move(record));
    return is_first(application, description) ? encode_buffer(application, end.buffer, "pipes-data", records)
                                              : Status{};
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
    const ObjectId buffer{pipe.pipe_id()};
    if (!application.objects.contains(buffer)) TRY(decode_buffers(records, "pipes-data", application));
    model::OpenDescription description;
    description.id = ObjectId{record.id()}, description.flags = pipe.flags(),
    description.owner = decode_owner(pipe.fown());
    description.state = {decode_end(application, buffer, {})};
    if (application.objects.at(buffer).as<PipeBuffer>() == nullptr) {
      return fail(Error::invalid("decode pipe", fmt::format("object {} is no pipe", buffer),
                                 fmt::format("files.img, file {}", record.id())));
    }
    return description;
  }

  Status make(const model::Application& application, std::span<const plan::Placement> placements,
              plan::Sink& sink) const override {
    const auto& end = *placements.front().description->state.as<PipeEnd>();
    const int read_end = placements.front().scratch, write_end = read_end + 1;
    plan::Perform perform{fmt::format("pipe {}", end.buffer), "", {}, {}, {}};
    perform.calls.push_back(call(SYS_pipe2, plan::Out{8}, 0));
    perform.calls.push_back(call(plan::Call::move_fd, WordOf{-1, 0}, read_end, O_CLOEXEC));
    perform.calls.push_back(call(plan::Call::move_fd, WordOf{-2, 4}, write_end, O_CLOEXEC));
    for (auto& one : fill(*application.objects.at(end.buffer).as<PipeBuffer>(), write_end))
      perform.calls.push_back(std::move(one));
    open_placements(placements, read_end, write_end, perform);
    sink.add(std::move(perform));
    return {};
  }

  /// An end whose other end nobody in the tree holds: fine if nobody at all does, else it leads outside.
  Status finish_capture(CaptureContext& context) const override {
    std::map<ObjectId, std::pair<bool, bool>> held;  // buffer → somebody reads, somebody writes
    for (const auto& [id, description] : context.application.descriptions) {
      const auto* end = description.state.as<PipeEnd>();
      if (end == nullptr || !end->path.empty()) continue;
      held[end->buffer].first |= reads(description.flags);
      held[end->buffer].second |= writes(description.flags);
    }
    for (const auto& [buffer, sides] : held) {
      if (sides.first && sides.second) continue;
      if (const auto outside = outside_holder(context, buffer, sides.first)) {
        context.diagnostics.refuse(
            *outside,
            fmt::format("the {} end of this pipe is held by a process outside of the tree",
                        sides.first ? "write" : "read"),
            "dump that process as well, or start the tree with its standard streams redirected to files");
      }
    }
    return {};
  }

 private:
  static bool is_first(const model::Application& application, const model::OpenDescription& description) {
    const auto& end = *description.state.as<PipeEnd>();
    for (const auto& [id, other] : application.descriptions) {
      const auto* sharing = other.state.as<PipeEnd>();
      if (sharing != nullptr && sharing->buffer == end.buffer) return id == description.id;
    }
    return true;
  }

  /// The kernel says through poll(2) whether the other side is open anywhere: hang-up for a reader, error for a writer.
  static std::optional<std::string> outside_holder(const CaptureContext& context, ObjectId buffer, bool we_read) {
    for (const auto& task : context.application.tasks) {
      const auto table = context.application.descriptor_tables.find(task.descriptors);
      if (table == context.application.descriptor_tables.end()) continue;
      for (const auto& [fd, slot] : table->second.slots) {
        const auto* end = context.application.descriptions.at(slot.description).state.as<PipeEnd>();
        if (end == nullptr || end->buffer != buffer) continue;
        DescriptorProbe probe;
        probe.host_pid = context.host_pid(task.pid);
        probe.fd = fd;
        const auto duplicate = probe.duplicate();
        if (!duplicate) return std::nullopt;
        pollfd asked{*duplicate, static_cast<short>(we_read ? POLLIN : POLLOUT), 0};
        if (poll(&asked, 1, 0) < 0) return std::nullopt;
        const bool alone = (asked.revents & (we_read ? POLLHUP : POLLERR)) != 0;
        if (alone) return std::nullopt;
        return fmt::format("task {} '{}', descriptor {} → pipe", task.pid, task.name, fd);
      }
    }
    return std::nullopt;
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
        fifo.set_regf_id(description.id.value | path_id);
    records.files.push_back(record);
    image::FileRecord path;
    path.set_type(REG), path.set_id(description.id.value | path_id);
    auto& reg = *path.mutable_reg();
    reg.set_id(path.id()), reg.set_flags(description.flags), reg.set_pos(0), reg.set_name(end.path),
        reg.set_mode(S_IFIFO);
    encode_owner(description.owner, *reg.mutable_fown());
    records.files.push_back(std::move(path));
    for (const auto& [id, other] : application.descriptions) {
      const auto* sharing = other.state.as<PipeEnd>();
      if (sharing == nullptr || sharing->buffer != end.buffer) continue;
      return id == description.id ? encode_buffer(application, end.buffer, "fifo-data", records) : Status{};
    }
    return {};
  }

  bool decodes(const image::FileRecords&, const image::FileRecord& record) const override {
    return record.type() == FIFO;
  }

  Result<model::OpenDescription> decode(const image::FileRecords& records, const image::FileRecord& record,
                                        model::Application& application) const override {
    const std::string subject = fmt::format("files.img, file {}", record.id());
    const uint32_t wanted = record.fifo().has_regf_id() ? record.fifo().regf_id() : record.id();
    const auto path = std::ranges::find_if(
        records.files, [&](const auto& other) { return other.has_reg() && other.reg().id() == wanted; });
    if (!record.has_fifo() || path == records.files.end() || !path->reg().name().starts_with('/')) {
      return fail(Error::invalid("decode FIFO", "its path is not in files.img", subject));
    }
    const ObjectId buffer{record.fifo().pipe_id()};
    if (!application.objects.contains(buffer)) TRY(decode_buffers(records, "fifo-data", application));
    model::OpenDescription description;
    description.id = ObjectId{record.id()}, description.flags = path->reg().flags(),
    description.owner = decode_owner(path->reg().fown());
    description.state = {decode_end(application, buffer, path->reg().name())};
    if (application.objects.at(buffer).as<PipeBuffer>() == nullptr)
      return fail(Error::invalid("decode FIFO", fmt::format("object {} is no pipe", buffer), subject));
    return description;
  }

  void validate(const model::Application&, const model::OpenDescription& description,
                Diagnostics& diagnostics) const override {
    const auto& end = *description.state.as<PipeEnd>();
    struct stat now{};
    if (stat(end.path.c_str(), &now) != 0 || !S_ISFIFO(now.st_mode))
      diagnostics.refuse("FIFO " + end.path, "it does not exist", "make it with mkfifo");
  }

  Status make(const model::Application& application, std::span<const plan::Placement> placements,
              plan::Sink& sink) const override {
    const auto& end = *placements.front().description->state.as<PipeEnd>();
    const int read_end = placements.front().scratch, write_end = read_end + 1;
    plan::Perform perform{"fifo " + end.path, "", {}, {}, {}};
    // Both ways first: then no end waits for the other to be opened.
    perform.calls.push_back(call(SYS_openat, AT_FDCWD, plan::text(end.path), O_RDWR | O_NONBLOCK | O_CLOEXEC, 0));
    perform.calls.push_back(call(plan::Call::move_fd, ResultOf{-1}, read_end, O_CLOEXEC));
    perform.calls.push_back(call(SYS_dup3, read_end, write_end, O_CLOEXEC));
    for (auto& one : fill(*application.objects.at(end.buffer).as<PipeBuffer>(), write_end))
      perform.calls.push_back(std::move(one));
    open_placements(placements, read_end, write_end, perform);
    sink.add(std::move(perform));
    return {};
  }

 private:
  static constexpr uint32_t path_id = 0x20000000;
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
