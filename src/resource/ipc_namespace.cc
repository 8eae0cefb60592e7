#include "resource/ipc_namespace.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <map>
#include <set>
#include <sstream>
#include <thread>

#include "image/names.h"
#include "kernel/proc.h"
#include "namespaces.pb.h"
#include "resource/kernel_access.h"
#include "resource/semaphore_undo.h"
#include "resource/system_v.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::expecting;
using plan::ResultOf;
using Expected = plan::Expectation::Kind;

constexpr uint32_t permissions = 0777;
constexpr uint32_t most_semaphores = 32000, highest_value = 32767;  ///< SEMMSL's highest sensible value, SEMVMX
constexpr uint64_t largest_segment = uint64_t{1} << 32;             ///< that nobody has attached: it is kept in memory
constexpr uint32_t largest_message = 16 << 20, most_messages = 1 << 20;

/// Of the model's objects: there is one namespace at most.
constexpr ObjectId the_namespace{0x02000000};

struct Variable {
  const char* file;  ///< of /proc/sys
  uint64_t (*get)(const ipc_var_entry&);
  void (*set)(ipc_var_entry&, uint64_t);
};
#define STASIS_VARIABLE(file, name)                                                                    \
  Variable {                                                                                           \
    file, [](const ipc_var_entry& e) -> uint64_t { return e.name(); },                                 \
        [](ipc_var_entry& e, uint64_t value) { e.set_##name(static_cast<decltype(e.name())>(value)); } \
  }
constexpr Variable variables[] = {
    STASIS_VARIABLE("kernel/msgmax", msg_ctlmax),
    STASIS_VARIABLE("kernel/msgmnb", msg_ctlmnb),
    STASIS_VARIABLE("kernel/msgmni", msg_ctlmni),
    STASIS_VARIABLE("kernel/auto_msgmni", auto_msgmni),
    STASIS_VARIABLE("kernel/shmmax", shm_ctlmax),
    STASIS_VARIABLE("kernel/shmall", shm_ctlall),
    STASIS_VARIABLE("kernel/shmmni", shm_ctlmni),
    STASIS_VARIABLE("kernel/shm_rmid_forced", shm_rmid_forced),
    STASIS_VARIABLE("fs/mqueue/queues_max", mq_queues_max),
    STASIS_VARIABLE("fs/mqueue/msg_max", mq_msg_max),
    STASIS_VARIABLE("fs/mqueue/msgsize_max", mq_msgsize_max),
    STASIS_VARIABLE("fs/mqueue/msg_default", mq_msg_default),
    STASIS_VARIABLE("fs/mqueue/msgsize_default", mq_msgsize_default),
};
#undef STASIS_VARIABLE
constexpr size_t rmid_forced = 7;                       ///< the index of shm_rmid_forced
constexpr const char* semaphore_limits = "kernel/sem";  ///< four numbers

/// What all kinds have in common (struct ipc_perm).
struct Identity {
  int32_t id = 0, key = 0;
  uint32_t uid = 0, gid = 0, mode = 0;
  friend bool operator==(const Identity&, const Identity&) = default;
};

struct SemaphoreSet {
  Identity identity;
  std::vector<uint16_t> values;
  SemaphoreUndo undo = {};
  friend bool operator==(const SemaphoreSet&, const SemaphoreSet&) = default;
};

Bytes bytes_of_values(const std::vector<uint16_t>& values) {
  const auto* first = reinterpret_cast<const uint8_t*>(values.data());
  return {first, first + values.size() * sizeof(uint16_t)};
}

struct Message {
  int64_t type = 0;
  Bytes data;
  friend bool operator==(const Message&, const Message&) = default;
};
struct MessageQueue {
  Identity identity;
  uint32_t most_bytes = 0;
  std::vector<Message> messages;
  friend bool operator==(const MessageQueue&, const MessageQueue&) = default;
};

/// A segment that nobody has attached.
struct Segment {
  model::SystemVSegment segment;
  Bytes content;
  friend bool operator==(const Segment&, const Segment&) = default;
};

struct IpcNamespace final : model::KindValue {
  std::vector<uint64_t> values;  ///< of `variables`
  std::vector<uint32_t> semaphore_values;
  std::vector<SemaphoreSet> semaphores;
  std::vector<MessageQueue> queues;
  std::vector<Segment> segments;

  std::string_view kind() const override { return "ipc namespace"; }
  bool equals(const model::KindValue& other) const override {
    const auto* same = dynamic_cast<const IpcNamespace*>(&other);
    return same != nullptr && values == same->values && semaphore_values == same->semaphore_values &&
           semaphores == same->semaphores && queues == same->queues && segments == same->segments;
  }
  std::string describe() const override {
    return fmt::format(
        "IPC namespace with {} semaphore sets, {} message queues and {} segments that nobody has attached",
        semaphores.size(), queues.size(), segments.size());
  }
};

const IpcNamespace* namespace_of(const model::Application& application) {
  const auto found = application.objects.find(the_namespace);
  return found == application.objects.end() ? nullptr : found->second.as<IpcNamespace>();
}

// ---- capture

bool lives_with_us(pid_t pid) {
  const auto theirs = kernel::read_link(fmt::format("/proc/{}/ns/ipc", pid));
  const auto ours = kernel::read_link("/proc/self/ns/ipc");
  return theirs && ours && *theirs == *ours;
}

Identity identity_of(int id, const ipc_perm& perm) {
  return {id, perm.__key, perm.uid, perm.gid, perm.mode & permissions};
}

/// Runs in the namespace.
class Reader {
 public:
  explicit Reader(IpcNamespace& found) : found_(found) {}

  Status run() {
    for (const auto& variable : variables) found_.values.push_back(TRY(numbers(variable.file, 1)).front());
    for (const uint64_t limit : TRY(numbers(semaphore_limits, 4)))
      found_.semaphore_values.push_back(static_cast<uint32_t>(limit));
    TRY(semaphores());
    TRY(queues());
    return segments();
  }

 private:
  static Result<std::vector<uint64_t>> numbers(const char* variable, size_t count) {
    std::istringstream stream(TRY(kernel::read_file(sysctl_path(variable))));
    std::vector<uint64_t> found;
    for (uint64_t number = 0; stream >> number;) found.push_back(number);
    if (found.size() != count) return fail(Error::invalid("read a limit", "it is no number", sysctl_path(variable)));
    return found;
  }

  /// Indices run up to the highest in use; those that are free are passed over.
  template <typename Look>
  static Status for_each(int highest, Look look) {
    if (highest < 0) return fail_errno("list System V objects");
    for (int index = 0; index <= highest; ++index) TRY(look(index));
    return {};
  }

  Status semaphores() {
    seminfo about{};
    return for_each(semctl(0, 0, SEM_INFO, &about), [&](int index) -> Status {
      semid_ds set{};
      const int id = semctl(index, 0, SEM_STAT, &set);
      if (id < 0) return {};
      SemaphoreSet one{identity_of(id, set.sem_perm), std::vector<uint16_t>(set.sem_nsems)};
      if (semctl(id, 0, GETALL, one.values.data()) != 0)
        return fail_errno("GETALL", fmt::format("semaphore set {}", id));
      found_.semaphores.push_back(std::move(one));
      return {};
    });
  }

  Status queues() {
    msginfo about{};
    return for_each(msgctl(0, MSG_INFO, reinterpret_cast<msqid_ds*>(&about)), [&](int index) -> Status {
      msqid_ds queue{};
      const int id = msgctl(index, MSG_STAT, &queue);
      if (id < 0) return {};
      MessageQueue one{identity_of(id, queue.msg_perm), static_cast<uint32_t>(queue.msg_qbytes), {}};
      std::vector<uint64_t> buffer(1 + (queue.__msg_cbytes + 7) / 8);  // the type, and room for the largest
      for (msgqnum_t place = 0; place < queue.msg_qnum; ++place) {
        // MSG_COPY leaves the message where it is, and takes its place for a type.
        const ssize_t length =
            msgrcv(id, buffer.data(), (buffer.size() - 1) * 8, static_cast<long>(place), IPC_NOWAIT | MSG_COPY);
        if (length < 0) return fail_errno("MSG_COPY", fmt::format("message queue {}", id));
        const auto* data = reinterpret_cast<const uint8_t*>(buffer.data() + 1);
        one.messages.push_back({static_cast<int64_t>(buffer.front()), Bytes(data, data + length)});
      }
      found_.queues.push_back(std::move(one));
      return {};
    });
  }

  Status segments() {
    shm_info about{};
    return for_each(shmctl(0, SHM_INFO, reinterpret_cast<shmid_ds*>(&about)), [&](int index) -> Status {
      shmid_ds segment{};
      const int id = shmctl(index, SHM_STAT, &segment);
      if (id < 0 || segment.shm_nattch != 0) return {};
      Segment one{TRY(look_at_segment(id)), {}};
      void* const memory = shmat(id, nullptr, SHM_RDONLY);
      if (memory == reinterpret_cast<void*>(-1)) return fail_errno("shmat", fmt::format("System V segment {}", id));
      const auto* bytes = static_cast<const uint8_t*>(memory);
      one.content.assign(bytes, bytes + one.segment.size);
      auto order = huge_page_order_at(reinterpret_cast<uint64_t>(memory));
      shmdt(memory);
      one.segment.huge_page_order = TRY(std::move(order));
      found_.segments.push_back(std::move(one));
      return {};
    });
  }

  /// Of memory of our own.
  static Result<uint32_t> huge_page_order_at(uint64_t address) {
    for (const auto& vma : TRY(kernel::read_smaps(getpid()))) {
      if (vma.range.begin == address && vma.vm_flags.contains("ht"))
        return static_cast<uint32_t>(std::countr_zero(vma.kernel_page_size));
    }
    return 0;
  }

  IpcNamespace& found_;
};

// ---- images

ipc_desc_entry encode_identity(const Identity& identity) {
  const auto& [id, key, uid, gid, mode] = identity;
  return describe_ipc(id, key, uid, gid, mode);
}

Result<Identity> decode_identity(const ipc_desc_entry& desc, const std::string& where) {
  const auto reject = [&](std::string_view field, std::string cause) {
    return fail(Error::invalid("read IPC namespace", std::move(cause), fmt::format("{}, field desc.{}", where, field)));
  };
  if (desc.id() > INT32_MAX) return reject("id", fmt::format("{} is no id", desc.id()));
  if ((desc.mode() & ~permissions) != 0) return reject("mode", fmt::format("{:#o} is no mode", desc.mode()));
  return Identity{static_cast<int32_t>(desc.id()), static_cast<int32_t>(desc.key()), desc.uid(), desc.gid(),
                  desc.mode()};
}

std::unexpected<Error> reject(const image::Reader& reader, std::string_view field, std::string cause) {
  return fail(
      Error::invalid("read IPC namespace", std::move(cause), fmt::format("{}, field {}", reader.where(), field)));
}

Bytes padded(Bytes bytes, size_t unit) {
  bytes.resize((bytes.size() + unit - 1) / unit * unit);
  return bytes;
}
/// What follows a record, filled up to whole units.
Result<Bytes> payload(image::Reader& reader, uint64_t length, uint64_t unit) {
  if (length > reader.remaining()) return reject(reader, "size", "there is not as much in the file");
  auto bytes = TRY(reader.raw(length));
  TRY(reader.skip((unit - length % unit) % unit));
  return bytes;
}

constexpr uint64_t semaphore_unit = 8, message_unit = 8, segment_unit = 4;

class ImageWriter {
 public:
  ImageWriter(const image::Directory& directory, uint32_t id) : directory_(directory), id_(id) {}

  Status run(const IpcNamespace& space) const {
    ipc_var_entry limits;
    for (size_t index = 0; index < std::size(variables); ++index) variables[index].set(limits, space.values[index]);
    for (const uint32_t value : space.semaphore_values) limits.add_sem_ctls(value);
    auto writer = TRY(create("ipcns-var-{}"));
    TRY(writer.append(limits));
    TRY(writer.finish());
    TRY(semaphores(space));
    TRY(queues(space));
    return segments(space);
  }

 private:
  Result<image::Writer> create(std::string_view name) const { return directory_.create(image::file_name(name, id_)); }

  Status semaphores(const IpcNamespace& space) const {
    auto writer = TRY(create("ipcns-sem-{}"));
    for (const auto& set : space.semaphores) {
      ipc_sem_entry entry;
      *entry.mutable_desc() = encode_identity(set.identity);
      entry.set_nsems(static_cast<uint32_t>(set.values.size()));
      encode_undo(set.undo, entry);
      TRY(writer.append(entry));
      TRY(writer.append_raw(padded(bytes_of_values(set.values), semaphore_unit)));
    }
    return writer.finish();
  }

  Status queues(const IpcNamespace& space) const {
    auto writer = TRY(create("ipcns-msg-{}"));
    for (const auto& queue : space.queues) {
      ipc_msg_entry entry;
      *entry.mutable_desc() = encode_identity(queue.identity);
      entry.set_qbytes(queue.most_bytes), entry.set_qnum(static_cast<uint32_t>(queue.messages.size()));
      TRY(writer.append(entry));
      for (const auto& message : queue.messages) {
        ipc_msg one;
        one.set_mtype(static_cast<uint64_t>(message.type)), one.set_msize(static_cast<uint32_t>(message.data.size()));
        TRY(writer.append(one));
        TRY(writer.append_raw(padded(message.data, message_unit)));
      }
    }
    return writer.finish();
  }

  Status segments(const IpcNamespace& space) const {
    auto writer = TRY(create("ipcns-shm-{}"));
    for (const auto& [segment, content] : space.segments) {
      ipc_shm_entry entry;
      encode_system_v(segment, entry);
      TRY(writer.append(entry));
      TRY(writer.append_raw(padded(content, segment_unit)));
    }
    return writer.finish();
  }

  const image::Directory& directory_;
  uint32_t id_;
};

class ImageReader {
 public:
  ImageReader(const image::Directory& directory, uint32_t id) : directory_(directory), id_(id) {}

  Result<std::shared_ptr<IpcNamespace>> run() {
    auto space = std::make_shared<IpcNamespace>();
    TRY(limits(*space));
    TRY(semaphores(*space));
    TRY(queues(*space));
    TRY(segments(*space));
    return space;
  }

 private:
  Result<image::Reader> read(std::string_view name) const { return directory_.read(image::file_name(name, id_)); }

  Status limits(IpcNamespace& space) const {
    auto reader = TRY(read("ipcns-var-{}"));
    ipc_var_entry limits;
    TRY(reader.single(limits));
    for (const auto& variable : variables) space.values.push_back(variable.get(limits));
    if (limits.sem_ctls_size() != 4) return reject(reader, "sem_ctls", "they are not four");
    space.semaphore_values.assign(limits.sem_ctls().begin(), limits.sem_ctls().end());
    return {};
  }

  Status claim(const image::Reader& reader, std::set<int32_t>& ids, int32_t id) const {
    if (!ids.insert(id).second) return reject(reader, "desc.id", fmt::format("{} occurs twice", id));
    return {};
  }

  Status semaphores(IpcNamespace& space) const {
    auto reader = TRY(read("ipcns-sem-{}"));
    std::set<int32_t> ids;
    for (ipc_sem_entry entry; TRY(reader.next(entry));) {
      SemaphoreSet set{TRY(decode_identity(entry.desc(), reader.where())), {}};
      TRY(claim(reader, ids, set.identity.id));
      if (entry.nsems() == 0 || entry.nsems() > most_semaphores)
        return reject(reader, "nsems", fmt::format("{} is out of range", entry.nsems()));
      const auto bytes = TRY(payload(reader, uint64_t{entry.nsems()} * sizeof(uint16_t), semaphore_unit));
      for (size_t at = 0; at < bytes.size(); at += 2)
        set.values.push_back(static_cast<uint16_t>(bytes[at] | bytes[at + 1] << 8));
      if (std::ranges::any_of(set.values, [](uint16_t value) { return value > highest_value; }))
        return reject(reader, "nsems", "a value is out of range");
      set.undo = TRY(decode_undo(entry, set.values, reader.where()));
      space.semaphores.push_back(std::move(set));
    }
    return {};
  }

  Status queues(IpcNamespace& space) const {
    auto reader = TRY(read("ipcns-msg-{}"));
    std::set<int32_t> ids;
    for (ipc_msg_entry entry; TRY(reader.next(entry));) {
      MessageQueue queue{TRY(decode_identity(entry.desc(), reader.where())), entry.qbytes(), {}};
      TRY(claim(reader, ids, queue.identity.id));
      if (entry.qnum() > most_messages) return reject(reader, "qnum", fmt::format("{} is out of range", entry.qnum()));
      for (uint32_t place = 0; place < entry.qnum(); ++place) {
        ipc_msg message;
        if (!TRY(reader.next(message))) return reject(reader, "qnum", "there are fewer messages");
        if (message.mtype() == 0 || message.mtype() > INT64_MAX)
          return reject(reader, "mtype", fmt::format("{} is no type", message.mtype()));
        if (message.msize() > largest_message)
          return reject(reader, "msize", fmt::format("{} is out of range", message.msize()));
        queue.messages.push_back(
            {static_cast<int64_t>(message.mtype()), TRY(payload(reader, message.msize(), message_unit))});
      }
      space.queues.push_back(std::move(queue));
    }
    return {};
  }

  Status segments(IpcNamespace& space) const {
    auto reader = TRY(read("ipcns-shm-{}"));
    std::set<int32_t> ids;
    for (ipc_shm_entry entry; TRY(reader.next(entry));) {
      if (entry.in_pagemaps())
        return fail(Error::unsupported("read IPC namespace", "segments of criu's images cannot be restored",
                                       reader.where() + ", field in_pagemaps"));
      Segment one{TRY(decode_system_v(entry, reader.where())), {}};
      TRY(claim(reader, ids, one.segment.id));
      if (entry.size() > largest_segment) return reject(reader, "size", fmt::format("{} is too large", entry.size()));
      one.content = TRY(payload(reader, entry.size(), segment_unit));
      space.segments.push_back(std::move(one));
    }
    return {};
  }

  const image::Directory& directory_;
  uint32_t id_;
};

// ---- restore

void make(const SemaphoreSet& set, plan::Sink& sink) {
  const auto& [id, key, uid, gid, mode] = set.identity;
  plan::Calls calls;
  write_variable("kernel/sem_next_id", fmt::format("{}", id), calls);
  const auto flags = static_cast<int>(mode) | IPC_CREAT | IPC_EXCL;
  calls.push_back(expecting(call(SYS_semget, key, set.values.size(), flags), Expected::exactly, id));
  semid_ds owner{};
  owner.sem_perm.uid = uid, owner.sem_perm.gid = gid, owner.sem_perm.mode = static_cast<unsigned short>(mode);
  calls.push_back(call(SYS_semctl, id, 0, IPC_SET, plan::struct_in(owner)));
  calls.push_back(call(SYS_semctl, id, 0, SETALL, plan::In{bytes_of_values(values_before_undo(set.values, set.undo))}));
  sink.perform(fmt::format("semaphore set {} (key {:#x})", id, static_cast<uint32_t>(key)), "", std::move(calls));
}

void make(const MessageQueue& queue, plan::Sink& sink) {
  const auto& [id, key, uid, gid, mode] = queue.identity;
  plan::Calls calls;
  write_variable("kernel/msg_next_id", fmt::format("{}", id), calls);
  const auto flags = static_cast<int>(mode) | IPC_CREAT | IPC_EXCL;
  calls.push_back(expecting(call(SYS_msgget, key, flags), Expected::exactly, id));
  for (const auto& message : queue.messages) {
    plan::In in = plan::struct_in(message.type);
    in.bytes.insert(in.bytes.end(), message.data.begin(), message.data.end());
    calls.push_back(call(SYS_msgsnd, id, std::move(in), message.data.size(), IPC_NOWAIT));
  }
  msqid_ds owner{};  // last: the queue may hold more than it may take by now
  owner.msg_perm.uid = uid, owner.msg_perm.gid = gid, owner.msg_perm.mode = static_cast<unsigned short>(mode);
  owner.msg_qbytes = queue.most_bytes;
  calls.push_back(call(SYS_msgctl, id, IPC_SET, plan::struct_in(owner)));
  sink.perform(fmt::format("message queue {} (key {:#x})", id, static_cast<uint32_t>(key)), "", std::move(calls));
}

void fill(const Segment& segment, plan::Sink& sink) {
  plan::Calls calls{
      call(SYS_memfd_create, plan::text("segment"), MFD_CLOEXEC),
      call(plan::Call::write_fully, ResultOf{-1}, plan::In{segment.content}, segment.content.size(), ~0ull),
      call(SYS_shmat, segment.segment.id, 0, 0),
      call(plan::Call::read_fully, ResultOf{-3}, ResultOf{-1}, segment.content.size(), 0),
      call(SYS_shmdt, ResultOf{-2}),
      call(SYS_close, ResultOf{-5})};
  sink.perform(fmt::format("content of System V segment {}", segment.segment.id), "", std::move(calls));
}

class IpcNamespaceRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "IPC namespace"; }

  Status capture(CaptureContext& context, const ProcessView& view, model::Task& task) const override {
    if (task.pid == context.application.root && !lives_with_us(view.witness())) TRY(capture_namespace(context, view));
    return capture_undo(context, view, task);
  }

 private:
  static Status capture_namespace(CaptureContext& context, const ProcessView& view) {
    auto space = std::make_shared<IpcNamespace>();
    TRY_IN("look at the tree's IPC namespace",
           in_ipc_namespace_of(view.witness(), [&space] { return Reader(*space).run(); }));
    // They would go with stasis, which makes them at a restore (ipc/shm.c, exit_shm).
    if (space->values[rmid_forced] != 0 && !space->segments.empty())
      context.diagnostics.refuse("the tree's IPC namespace",
                                 "segments go with who has made them (kernel.shm_rmid_forced), and nobody has attached "
                                 "some",
                                 "have the program attach or remove them, or set kernel.shm_rmid_forced to 0 in it");
    context.application.objects[the_namespace] = {std::move(space)};
    return {};
  }

  /// Where the kernel's memory cannot be read, nobody can see it.
  static Status capture_undo(CaptureContext& context, const ProcessView& view, const model::Task& task) {
    const auto* found = namespace_of(context.application);
    if (found == nullptr || found->semaphores.empty() || task.state == model::TaskState::zombie) return {};
    const auto& memory = context.kept<KernelAccess>().memory;
    if (!memory) {
      if (task.pid == context.application.root)
        context.diagnostics.warn("semaphores of the tree's IPC namespace",
                                 told_by_memory_alone("what is undone when processes end (SEM_UNDO)", memory.error()),
                                 "nothing of that is undone after a restore");
      return {};
    }
    std::map<int32_t, size_t> sizes;
    for (const auto& set : found->semaphores) sizes[set.identity.id] = set.values.size();
    const auto undo = TRY(look_at_undo(*memory, view.host_tids, sizes));
    if (undo.empty()) return {};
    auto space = std::make_shared<IpcNamespace>(*found);
    for (auto& set : space->semaphores) {
      if (const auto adjustments = undo.find(set.identity.id); adjustments != undo.end())
        set.undo[task.pid] = adjustments->second;
    }
    context.application.objects[the_namespace] = {std::move(space)};
    return {};
  }

 public:
  Status encode(const model::Application& application, const model::Task& task,
                image::TaskRecords& records) const override {
    const auto* space = namespace_of(application);
    if (task.pid != application.root || space == nullptr) return {};
    return ImageWriter(*records.directory, records.ids.ipc_ns_id()).run(*space);
  }

  void contribute(plan::Stage stage, const model::Application& application, const model::Task& task,
                  plan::Sink& sink) const override {
    const auto* space = namespace_of(application);
    if (stage != plan::Stage::process || space == nullptr) return;
    for (const auto& set : space->semaphores) {
      if (const auto undo = set.undo.find(task.pid); undo != set.undo.end())
        sink.perform(fmt::format("what is undone of semaphore set {}", set.identity.id), "",
                     undo_calls(set.identity.id, undo->second));
    }
  }

  void contribute(plan::Stage stage, const model::Application& application, plan::Sink& sink) const override {
    const auto* space = namespace_of(application);
    if (space == nullptr) return;
    if (stage == plan::Stage::prepare) create(*space, sink);
    if (stage != plan::Stage::settle) return;
    for (const auto& set : space->semaphores) {
      if (auto calls = calls_after_undo(set.identity.id, set.undo); !calls.empty())
        sink.perform(fmt::format("values of semaphore set {}", set.identity.id), std::string(plan::only_on_success),
                     std::move(calls));  // otherwise the namespace goes, or has never been: these are others' ids then
    }
  }

 private:
  static void create(const IpcNamespace& space, plan::Sink& sink) {
    sink.perform("IPC namespace", "", {call(SYS_unshare, CLONE_NEWIPC)}, {"CAP_SYS_ADMIN"});
    plan::Calls calls;
    for (size_t index = 0; index < std::size(variables); ++index)
      write_variable(variables[index].file, fmt::format("{}", space.values[index]), calls);
    write_variable(semaphore_limits, fmt::format("{}", fmt::join(space.semaphore_values, " ")), calls);
    sink.perform("limits of the IPC namespace", "", std::move(calls));
    for (const auto& set : space.semaphores) make(set, sink);
    for (const auto& queue : space.queues) make(queue, sink);
    for (const auto& segment : space.segments) {
      create_segment(segment.segment, sink);
      fill(segment, sink);
    }
  }
};

}  // namespace

const TaskRoom& ipc_namespace_room() {
  static const IpcNamespaceRoom room;
  return room;
}

bool has_own_ipc_namespace(const model::Application& application) { return namespace_of(application) != nullptr; }

Status decode_ipc_namespace(const image::Directory& directory, uint32_t id, model::Application& application) {
  auto space = TRY(ImageReader(directory, id).run());
  const model::TaskIndex tasks(application);
  for (const auto& set : space->semaphores) {
    for (const auto& [pid, adjustments] : set.undo) {
      if (tasks.find(pid) == nullptr)
        return fail(Error::invalid(
            "read IPC namespace", fmt::format("process {} is not part of the tree", pid),
            fmt::format("{}, set {}, field undo.pid", image::file_name("ipcns-sem-{}", id), set.identity.id)));
    }
  }
  application.objects[the_namespace] = {std::move(space)};
  return {};
}

Status in_ipc_namespace_of(pid_t pid, const std::function<Status()>& body) {
  if (lives_with_us(pid)) return body();
  const auto path = fmt::format("/proc/{}/ns/ipc", pid);
  const UniqueFd space(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!space.valid()) return fail_errno("open", path);
  Status done;
  std::thread inside([&] {
    if (setns(space.get(), CLONE_NEWIPC) != 0)
      done = fail(Error::system("setns", errno, path));
    else
      done = body();
  });
  inside.join();
  return done;
}

}  // namespace stasis::resource
