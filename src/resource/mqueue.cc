#include "resource/mqueue.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <mqueue.h>
#include <signal.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <optional>

#include "kernel/proc.h"
#include "kernel/processes.h"
#include "model/places.h"
#include "mqueue.pb.h"
#include "resource/anonymous_room.h"
#include "resource/ipc_namespace.h"
#include "resource/mqueue_messages.h"
#include "resource/regular_file.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::ResultOf;

constexpr long mqueue_magic = 0x19800202;
constexpr off_t size_of_queue_file = 80;                               ///< FILENT_SIZE (ipc/mqueue.c)
constexpr uint64_t most_messages = 65536, largest_message = 16 << 20;  ///< HARD_MSGMAX, HARD_MSGSIZEMAX
constexpr uint32_t most_priority = 32767;
constexpr uint32_t queue_bit = 0x08000000;  ///< sets ids of queues apart from those of other objects

struct Notification {
  Pid pid;
  int kind = SIGEV_SIGNAL, signal = 0;
  friend bool operator==(const Notification&, const Notification&) = default;
};

struct Queue final : model::KindValue {
  std::string name;  ///< "/name"
  uint32_t mode = 0, uid = 0, gid = 0;
  uint64_t max_messages = 0, message_size = 0;
  bool unlinked = false;
  std::vector<QueueMessage> messages;
  std::optional<Notification> notification;
  bool found = false;  ///< restore: it is on the system

  std::string_view kind() const override { return "message queue"; }
  bool equals(const model::KindValue& other) const override {
    const auto* same = dynamic_cast<const Queue*>(&other);
    return same != nullptr && (unlinked || name == same->name) && has_attributes_of(*same) &&
           unlinked == same->unlinked && messages == same->messages && notification == same->notification;
  }
  bool has_attributes_of(const Queue& other) const {
    return mode == other.mode && uid == other.uid && gid == other.gid && max_messages == other.max_messages &&
           message_size == other.message_size;
  }
  std::string describe() const override {
    return fmt::format("message queue {}{} with {} messages", name, unlinked ? " (unlinked)" : "", messages.size());
  }
};

struct QueueFile final : model::KindValue {
  ObjectId queue;
  std::string_view kind() const override { return "mqueue"; }
  bool equals(const model::KindValue& other) const override {
    const auto* same = dynamic_cast<const QueueFile*>(&other);
    return same != nullptr && queue == same->queue;
  }
  std::string describe() const override { return fmt::format("message queue {}", queue); }
};

const Queue* queue_of(const model::Application& application, const model::OpenDescription& description) {
  const auto* file = description.state.as<QueueFile>();
  if (file == nullptr) return nullptr;
  const auto object = application.objects.find(file->queue);
  return object == application.objects.end() ? nullptr : object->second.as<Queue>();
}

/// The descriptor through which the process that is notified has the queue.
struct Notified {
  ObjectId description;
  int fd = -1;
};
std::optional<Notified> notified(const model::Application& application, ObjectId queue, const Notification& wanted) {
  const auto* task = application.find(wanted.pid);
  const auto* table = task == nullptr ? nullptr : model::table_of(application, *task);
  if (table == nullptr) return std::nullopt;
  for (const auto& [fd, slot] : table->slots) {
    const auto description = application.descriptions.find(slot.description);
    const auto* file =
        description == application.descriptions.end() ? nullptr : description->second.state.as<QueueFile>();
    if (file != nullptr && file->queue == queue) return Notified{slot.description, fd};
  }
  return std::nullopt;
}

/// What the file itself tells.
Result<Queue> look_at(int fd, const std::string& subject) {
  struct stat about{};
  mq_attr attributes{};
  if (fstat(fd, &about) != 0) return fail_errno("fstat", subject);
  if (syscall(SYS_mq_getsetattr, fd, nullptr, &attributes) != 0) return fail_errno("mq_getattr", subject);
  Queue queue;
  queue.mode = about.st_mode & 07777, queue.uid = about.st_uid, queue.gid = about.st_gid;
  queue.unlinked = about.st_nlink == 0;
  queue.max_messages = static_cast<uint64_t>(attributes.mq_maxmsg);
  queue.message_size = static_cast<uint64_t>(attributes.mq_msgsize);
  queue.messages.resize(static_cast<size_t>(attributes.mq_curmsgs));
  return queue;
}

/// A process outside of the tree that has the same queue open.
std::optional<pid_t> find_outsider(const CaptureContext& context, const struct stat& queue) {
  std::optional<pid_t> outsider;
  for (const pid_t pid : kernel::list_processes().value_or(std::vector<pid_t>{})) {
    if (pid == getpid() || context.host_to_tree.contains(pid)) continue;
    const auto descriptors = kernel::list_descriptors(pid);
    for (const int fd : descriptors.value_or(std::vector<int>{})) {
      struct stat other{};
      if (stat(fmt::format("/proc/{}/fd/{}", pid, fd).c_str(), &other) == 0 && other.st_ino == queue.st_ino &&
          other.st_dev == queue.st_dev)
        outsider = pid;
    }
  }
  return outsider;
}

class MqueueRoom final : public AnonymousRoom<mqueue_file_entry, &image::FileRecord::has_mqueue,
                                              &image::FileRecord::mqueue, &image::FileRecord::mutable_mqueue> {
 public:
  MqueueRoom() : AnonymousRoom("", POSIX_MQUEUE) {}
  std::string_view kind() const override { return "mqueue"; }

  // ---- capture

  /// All queues have the same size: few files have to be asked where they lie.
  bool recognises(const DescriptorProbe& probe) const override {
    const bool looks_like_one = S_ISREG(probe.stat.st_mode) && probe.stat.st_size == size_of_queue_file;
    if (!looks_like_one || probe.fd < 0 || major(probe.stat.st_dev) != 0) return false;
    struct statfs about{};
    const auto fd = probe.duplicate();
    return fd && fstatfs(*fd, &about) == 0 && about.f_type == mqueue_magic;
  }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    auto made = std::make_shared<QueueFile>();
    bool fresh = false;
    const auto id = context.object(fmt::format("mqueue {}:{}", probe.stat.st_dev, probe.stat.st_ino), fresh);
    made->queue = ObjectId{id.value | queue_bit};
    if (fresh)
      context.application.objects[made->queue] = {TRY_IN("look at " + probe.subject, capture_queue(context, probe))};
    return model::KindState{std::move(made)};
  }

  Status finish_capture(CaptureContext& context) const override { return mark_notified(context.application); }

  // ---- images

  Status encode(const model::Application& application, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    TRY(AnonymousRoom::encode(application, description, records));
    const auto id = description.state.as<QueueFile>()->queue;
    if (!records.first_time("mqueue", id.value)) return {};
    const auto& queue = *queue_of(application, description);
    mqueue_entry entry;
    entry.set_id(id.value), entry.set_name(queue.name), entry.set_mode(queue.mode);
    entry.set_uid(queue.uid), entry.set_gid(queue.gid), entry.set_unlinked(queue.unlinked);
    entry.set_max_messages(queue.max_messages), entry.set_message_size(queue.message_size);
    for (const auto& message : queue.messages) {
      auto& one = *entry.add_messages();
      one.set_priority(message.priority), one.set_data(message.data.data(), message.data.size());
    }
    if (queue.notification) {
      auto& one = *entry.mutable_notification();
      one.set_pid(static_cast<uint32_t>(queue.notification->pid.value));
      one.set_kind(static_cast<uint32_t>(queue.notification->kind));
      one.set_signal(static_cast<uint32_t>(queue.notification->signal));
    }
    return TRY(records.side("mqueue"))->append(entry);
  }

  Result<model::OpenDescription> decode(const image::FileRecords& records, const image::FileRecord& record,
                                        model::Application& application) const override {
    auto description = TRY(AnonymousRoom::decode(records, record, application));
    const auto id = description.state.as<QueueFile>()->queue;
    auto& object = application.objects[id];
    if (object.value) {
      if (object.as<Queue>() == nullptr) return bad_entry(kind(), record, "mqueue.queue", "it is no message queue");
      return description;
    }
    for (const auto& entry : TRY(records.all<mqueue_entry>("mqueue"))) {
      if (entry.id() != id.value) continue;
      object = {TRY(decode_queue(entry))};
      return description;
    }
    return bad_entry(kind(), record, "mqueue.queue", fmt::format("{} is not in mqueue.img", id));
  }

  Status finish_decode(model::Application& application) const override {
    for (auto& [id, object] : application.objects) {
      const auto* queue = object.as<Queue>();
      if (queue == nullptr) continue;
      auto sought = std::make_shared<Queue>(*queue);
      sought->found =
          !queue->unlinked && !has_own_ipc_namespace(application) && UniqueFd(open_by_name(queue->name)).valid();
      object = {sought};
      queue = sought.get();
      if (!queue->notification || notified(application, id, *queue->notification)) continue;
      return fail(Error::invalid("read message queues",
                                 fmt::format("task {} has no descriptor of it", queue->notification->pid),
                                 fmt::format("mqueue.img, queue {}, field notification.pid", id)));
    }
    return mark_notified(application);
  }

  // ---- after a dump

  void leftovers(const model::Application& application, std::vector<Leftover>& found) const override {
    if (has_own_ipc_namespace(application)) return;  // it has gone with the tree
    for (const auto& [id, object] : application.objects) {
      const auto* queue = object.as<Queue>();
      if (queue == nullptr || queue->unlinked || !UniqueFd(open_by_name(queue->name)).valid()) continue;
      found.push_back({queue->describe(), fmt::format("mount -t mqueue none DIR && rm 'DIR{}' && umount DIR; a restore "
                                                      "makes it again",
                                                      queue->name)});
    }
  }

  // ---- restore

  void validate_all(const model::Application& application, Diagnostics& diagnostics) const override {
    for (const auto& [id, object] : application.objects) {
      const auto* queue = object.as<Queue>();
      if (queue == nullptr || !queue->found) continue;
      const UniqueFd file(open_by_name(queue->name));
      const auto now = file.valid() ? look_at(file.get(), queue->name) : Result<Queue>(Queue{});
      const auto refuse = [&](std::string problem) {
        diagnostics.refuse(queue->describe(), std::move(problem),
                           "put it back as it was, or remove it: it is made again then");
      };
      if (!now || !now->has_attributes_of(*queue))
        refuse("there is a queue of that name, but not the same one: its mode, owner or limits are others");
      else if (now->messages.size() != queue->messages.size())
        refuse(fmt::format("it has changed since the dump: it holds {} messages", now->messages.size()));
    }
  }

  void contribute(plan::Stage stage, const model::Application& application, plan::Sink& sink) const override {
    for (const auto& [id, object] : application.objects) {
      const auto* queue = object.as<Queue>();
      if (queue == nullptr || queue->found) continue;
      const auto name = name_while_restoring(*queue, id);
      if (stage == plan::Stage::prepare) create(*queue, name, sink);
      if (stage != plan::Stage::settle) continue;
      sink.undo("unlink " + queue->describe(), std::string(queue->unlinked ? "" : plan::only_on_failure),
                {call(SYS_mq_unlink, plan::text(name))}, making(*queue, name));
    }
  }

  Status make(const model::Application& application, std::span<const plan::Placement> placements,
              plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      const auto& description = *placement.description;
      const auto& queue = *queue_of(application, description);
      const auto name = name_while_restoring(queue, description.state.as<QueueFile>()->queue);
      plan::Perform perform{queue.describe(), "", {}, {}, {}};
      perform.calls.push_back(call(SYS_mq_open, plan::text(name), description.flags & O_ACCMODE, 0, 0));
      place(placement, perform);
      sink.add(std::move(perform));
    }
    return {};
  }

 protected:
  Status write(const model::Application&, const model::OpenDescription& description,
               mqueue_file_entry& entry) const override {
    entry.set_queue(description.state.as<QueueFile>()->queue.value);
    return {};
  }
  Status read(const image::FileRecord&, const mqueue_file_entry& entry, model::Application&,
              model::OpenDescription& description) const override {
    auto made = std::make_shared<QueueFile>();
    made->queue = ObjectId{entry.queue()};
    description.state = {std::move(made)};
    return {};
  }

 private:
  /// The kernel wants names without the slash (ipc/mqueue.c, do_mq_open).
  static int open_by_name(const std::string& name) {
    return static_cast<int>(syscall(SYS_mq_open, name.c_str() + 1, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0, nullptr));
  }
  /// What is to be unlinked has a name of ours until then: several may have had the same one.
  static std::string name_while_restoring(const Queue& queue, ObjectId id) {
    return queue.unlinked ? fmt::format("stasis.unlinked.{}", id) : queue.name.substr(1);
  }

  /// The purpose of the command whose first call makes it: there is no other of this name.
  static std::string making(const Queue& queue, const std::string& name) {
    return fmt::format("{}{}", queue.describe(), queue.unlinked ? ", as " + name : "");
  }

  static Result<std::shared_ptr<Queue>> capture_queue(CaptureContext& context, const DescriptorProbe& probe) {
    // Whatever the task has opened it for.
    const UniqueFd file(open(probe.proc_path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
    if (!file.valid()) return fail_errno("open", probe.subject);
    auto queue = std::make_shared<Queue>(TRY(look_at(file.get(), probe.subject)));
    const auto path = original_path(probe.link);
    queue->name = path.substr(path.rfind('/'));
    TRY(capture_notification(context, probe, file.get(), *queue));
    if (queue->messages.empty()) return queue;
    const auto outsider = find_outsider(context, probe.stat);
    if (outsider) {
      context.diagnostics.refuse(
          probe.subject,
          fmt::format("the queue holds messages, which process {} outside of the tree could take meanwhile", *outsider),
          "dump that process, too, or let the queue be emptied before");
    } else if (queue->notification) {
      context.diagnostics.refuse(probe.subject,
                                 "the queue holds messages, and somebody wants to be notified of the next",
                                 "let the queue be emptied before the dump: to look at messages would notify him");
    } else {
      queue->messages = TRY(read_messages(file.get(), queue->messages.size(), queue->message_size));
    }
    return queue;
  }

  static Status capture_notification(CaptureContext& context, const DescriptorProbe& probe, int file, Queue& queue) {
    std::array<char, 256> text{};
    if (pread(file, text.data(), text.size() - 1, 0) < 0) return fail_errno("read", probe.subject);
    unsigned long bytes = 0;
    Notification notification;
    pid_t pid = 0;
    if (sscanf(text.data(), "QSIZE:%lu NOTIFY:%d SIGNO:%d NOTIFY_PID:%d", &bytes, &notification.kind,
               &notification.signal, &pid) != 4)
      return fail(Error::invalid("read a message queue", "the kernel describes it in an unknown way", probe.subject));
    const auto owner = context.host_to_tree.find(pid);
    if (pid == 0 || owner == context.host_to_tree.end()) return {};
    notification.pid = Pid{owner->second};
    if (notification.kind == SIGEV_SIGNAL) {
      context.diagnostics.warn(probe.subject, "the value that its notification gives to the signal cannot be seen",
                               "it is 0 after a restore");
    } else if (notification.kind != SIGEV_NONE) {
      context.diagnostics.refuse(probe.subject, "its notification starts a thread, through a socket of the C library",
                                 "notifications by SIGEV_SIGNAL and SIGEV_NONE can be saved");
    }
    queue.notification = notification;
    return {};
  }

  static Status mark_notified(model::Application& application) {
    for (const auto& [id, object] : application.objects) {
      const auto* queue = object.as<Queue>();
      const auto whom =
          queue == nullptr || !queue->notification ? std::nullopt : notified(application, id, *queue->notification);
      if (whom) application.descriptions.at(whom->description).starts_last = true;
    }
    return {};
  }

  static Result<std::shared_ptr<Queue>> decode_queue(const mqueue_entry& entry) {
    const auto reject = [&](std::string_view field, std::string problem) {
      return fail(Error::invalid("read message queues", std::move(problem),
                                 fmt::format("mqueue.img, queue {}, field {}", entry.id(), field)));
    };
    auto queue = std::make_shared<Queue>();
    queue->name = entry.name();
    const bool is_name = queue->name.size() > 1 && queue->name.size() <= 256 && queue->name.rfind('/') == 0 &&
                         queue->name.find('\0') == std::string::npos;
    if (!is_name) return reject("name", "it is no name of a message queue");
    if (entry.mode() > 07777) return reject("mode", fmt::format("{:#o} is no mode", entry.mode()));
    if (entry.max_messages() == 0 || entry.max_messages() > most_messages)
      return reject("max_messages", fmt::format("{} is out of range", entry.max_messages()));
    if (entry.message_size() == 0 || entry.message_size() > largest_message)
      return reject("message_size", fmt::format("{} is out of range", entry.message_size()));
    if (static_cast<uint64_t>(entry.messages_size()) > entry.max_messages())
      return reject("messages", "there are more than it has room for");
    queue->mode = entry.mode(), queue->uid = entry.uid(), queue->gid = entry.gid(), queue->unlinked = entry.unlinked();
    queue->max_messages = entry.max_messages(), queue->message_size = entry.message_size();
    uint32_t limit = most_priority;
    for (const auto& message : entry.messages()) {
      if (message.priority() > limit) return reject("messages.priority", "they are not in order of priority");
      if (message.data().size() > entry.message_size()) return reject("messages.data", "a message is too large");
      limit = message.priority();
      queue->messages.push_back({limit, Bytes(message.data().begin(), message.data().end())});
    }
    if (entry.has_notification()) {
      const auto& one = entry.notification();
      if (one.kind() != SIGEV_SIGNAL && one.kind() != SIGEV_NONE)
        return reject("notification.kind", fmt::format("{} is no kind that can be restored", one.kind()));
      if (one.signal() > 64 || (one.kind() == SIGEV_SIGNAL && one.signal() == 0))
        return reject("notification.signal", fmt::format("{} is no signal", one.signal()));
      queue->notification = {Pid{static_cast<pid_t>(one.pid())}, static_cast<int>(one.kind()),
                             static_cast<int>(one.signal())};
    }
    return queue;
  }

  static void create(const Queue& queue, const std::string& name, plan::Sink& sink) {
    mq_attr attributes{};
    attributes.mq_maxmsg = static_cast<long>(queue.max_messages);
    attributes.mq_msgsize = static_cast<long>(queue.message_size);
    const int flags = O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK | O_CLOEXEC;
    plan::Calls calls{call(SYS_mq_open, plan::text(name), flags, 0600, plan::struct_in(attributes))};
    const auto file = [&] { return ResultOf{-static_cast<int>(calls.size())}; };
    calls.push_back(call(SYS_fchmod, file(), queue.mode));
    calls.push_back(call(SYS_fchown, file(), queue.uid, queue.gid));
    for (const auto& message : queue.messages)
      calls.push_back(call(SYS_mq_timedsend, file(), plan::In{message.data}, message.data.size(), message.priority, 0));
    calls.push_back(call(SYS_close, file()));
    sink.perform(making(queue, name), "", std::move(calls));
  }
};

class MqueueNotificationsRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "message queue notifications"; }

  void contribute(plan::Stage stage, const model::Application& application, const model::Task& task,
                  const model::Thread& thread, plan::Sink& sink) const override {
    if (stage != plan::Stage::final || thread.tid != leader_of(task.pid)) return;
    for (const auto& [id, object] : application.objects) {
      const auto* queue = object.as<Queue>();
      if (queue == nullptr || !queue->notification || queue->notification->pid != task.pid) continue;
      const auto whom = notified(application, id, *queue->notification);
      if (!whom) continue;
      sigevent event{};
      event.sigev_notify = queue->notification->kind, event.sigev_signo = queue->notification->signal;
      plan::Perform perform{"notification by " + queue->describe(), "", {}, {}, {}};
      perform.calls.push_back(call(SYS_mq_notify, whom->fd, plan::struct_in(event)));
      perform.starts.push_back({whom->fd, whom->description});
      sink.add(std::move(perform));
    }
  }
};

}  // namespace

const FileRoom& mqueue_room() {
  static const MqueueRoom room;
  return room;
}

const TaskRoom& mqueue_notifications_room() {
  static const MqueueNotificationsRoom room;
  return room;
}

}  // namespace stasis::resource
