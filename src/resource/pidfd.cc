// pidfd_open(2).
//
// A process of the tree is there again under its number when its pidfds are opened. One that has ended and was reaped
// has no number any more, but its pidfds go on telling how it ended (PIDFD_GET_INFO, Linux 6.15): another is made to
// end like it, and they are opened while it is a zombie.
//
// A thread other than the first (PIDFD_THREAD) comes after the descriptors: until then one of its process holds its
// place. That one is another file, so a pidfd that more than one table has, or anything else refers to, is refused.
#include "model/pid_namespaces.h"
#include "resource/pidfd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <set>

#include "kernel/fdinfo.h"
#include "resource/anonymous_room.h"

namespace stasis::resource {
namespace {

using plan::call;

constexpr uint32_t pidfd_thread = O_EXCL;   ///< PIDFD_THREAD: of a thread, not of a process (Linux 6.9)
constexpr uint32_t ended_bit = 0xc0000000;  ///< ids of ended processes have both bits, and no other ids
constexpr int32_t no_process = -1;          ///< in the record: it has ended

/// struct pidfd_info of linux/pidfd.h, its first version.
struct ProcessInfo {
  uint64_t mask = 0, cgroup = 0;
  uint32_t pid = 0, tgid = 0, ppid = 0, ids[8]{};
  int32_t exit_code = 0;
};
static_assert(sizeof(ProcessInfo) == 64);
constexpr uint64_t exit_info = 1 << 3;  // PIDFD_INFO_EXIT
constexpr unsigned long get_info = _IOWR(0xFF, 11, ProcessInfo);

/// A process that is no more, which several descriptions may refer to.
struct EndedProcess final : model::KindValue {
  int status = 0;  ///< as wait(2) has it

  std::string_view kind() const override { return "ended process"; }
  bool equals(const model::KindValue& other) const override {
    const auto* same = dynamic_cast<const EndedProcess*>(&other);
    return same != nullptr && status == same->status;
  }
  std::string describe() const override { return fmt::format("process that has ended with {:#x}", status); }
};

struct Pidfd final : model::KindValue {
  Pid process;     ///< 0: it has ended
  Tid thread;      ///< of that process, and not its first; 0: it is of the process, or of its first thread
  ObjectId ended;  ///< an EndedProcess
  int status = 0;  ///< that one's

  std::string_view kind() const override { return "pidfd"; }
  bool equals(const model::KindValue& other) const override {
    const auto* same = dynamic_cast<const Pidfd*>(&other);
    return same != nullptr && process == same->process && thread == same->thread && ended == same->ended &&
           status == same->status;
  }
  std::string describe() const override {
    if (thread.value != 0) return fmt::format("pidfd of thread {}", thread);
    return process.value != 0 ? fmt::format("pidfd of {}", process)
                              : fmt::format("pidfd of a process that has ended with {:#x}", status);
  }
};

/// Whether a process can end so, and can be made to.
bool is_end(uint32_t status) {
  static const std::set<int> harmless{SIGCHLD, SIGCONT, SIGURG, SIGWINCH, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU};
  if (status > 0xffff) return false;
  const int signal = WTERMSIG(static_cast<int>(status));
  return WIFEXITED(status) || (WIFSIGNALED(status) && signal <= SIGRTMAX && !harmless.contains(signal));
}

class PidfdRoom final : public AnonymousRoom<pidfd_entry, &image::FileRecord::has_pidfd, &image::FileRecord::pidfd,
                                             &image::FileRecord::mutable_pidfd> {
 public:
  PidfdRoom() : AnonymousRoom("anon_inode:[pidfd]", PIDFD) {}
  std::string_view kind() const override { return "pidfd"; }

  bool starts_last(const model::KindState& state) const override { return state.as<Pidfd>()->thread.value != 0; }
  ObjectId made_together(const model::OpenDescription& description) const override {
    return description.state.as<Pidfd>()->ended;
  }
  Pid process(const model::OpenDescription& description) const override {
    return description.state.as<Pidfd>()->process;
  }
  std::optional<int> ended_process(const model::OpenDescription& description) const override {
    const auto& state = *description.state.as<Pidfd>();
    return state.process.value == 0 ? std::optional(state.status) : std::nullopt;
  }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    const auto info = TRY_IN("look at " + probe.subject, kernel::parse_pidfd(probe.info));
    auto state = std::make_shared<Pidfd>();
    if (info.pid < 0) {
      TRY(capture_ended(context, probe, *state));
      return model::KindState{std::move(state)};
    }
    const auto known = context.host_to_tree.find(info.pid);
    if (known == context.host_to_tree.end()) {
      context.diagnostics.refuse(probe.subject,
                                 info.pid == 0
                                     ? std::string("the process it refers to is in another pid namespace")
                                     : fmt::format("the process {} it refers to is not part of the tree", info.pid),
                                 "dump that process as well, or close the descriptor before the dump");
    } else if (context.application.find(Pid{known->second}) == nullptr) {
      state->process = process_of(context.application, Tid{known->second});
      state->thread = Tid{known->second};
    } else {
      state->process = Pid{known->second};
    }
    return model::KindState{std::move(state)};
  }

  Status finish_capture(CaptureContext& context) const override {
    for (const auto& [id, description] : context.application.descriptions) {
      const auto* state = description.state.as<Pidfd>();
      if (state == nullptr || state->thread.value == 0) continue;
      if (const auto problem = problem_of_thread(context.application, description); !problem.empty())
        context.diagnostics.refuse(state->describe(), problem, "close it before the dump");
    }
    return {};
  }

  Status finish_decode(model::Application& application) const override {
    const model::TaskIndex tasks(application);
    for (const auto& [id, description] : application.descriptions) {
      const auto* state = description.state.as<Pidfd>();
      if (state == nullptr || state->process.value == 0) continue;
      const auto reject = [&](std::string problem) {
        return fail(Error::invalid("decode pidfd", std::move(problem),
                                   fmt::format("files.img, file {}, field pidfd.nspid", id)));
      };
      if (tasks.find(state->process) == nullptr)
        return reject(fmt::format("process {} is not part of the tree", state->process));
      if (state->thread.value == 0) continue;
      if (process_of(application, state->thread) != state->process)
        return reject(fmt::format("process {} has no thread {} beside its first", state->process, state->thread));
      if (auto problem = problem_of_thread(application, description); !problem.empty()) return reject(problem);
    }
    return {};
  }

  void start(const model::Application& application, const model::OpenDescription& description, int fd,
             plan::Sink& sink) const override {
    const auto& state = *description.state.as<Pidfd>();
    const model::PidNamespaces spaces(application);
    plan::Perform perform{state.describe(), "", {}, {}, {}};
    perform.starts.push_back({fd, description.id});
    perform.calls.push_back(call(SYS_pidfd_open, spaces.number(state.thread.value, spaces.of(sink.pid())),
                                 (description.flags & O_NONBLOCK) | pidfd_thread));
    const auto& table = application.descriptor_tables.at(application.find(sink.pid())->descriptors);
    int opened = -1;  // how many calls before the next
    for (const auto& [number, slot] : table.slots) {
      if (slot.description != description.id) continue;
      perform.calls.push_back(call(SYS_dup3, plan::ResultOf{opened--}, number, slot.close_on_exec ? O_CLOEXEC : 0));
    }
    perform.calls.push_back(call(SYS_close, plan::ResultOf{opened}));
    sink.add(std::move(perform));
  }

  Status make(const model::Application& application, std::span<const plan::Placement> placements,
              plan::Sink& sink) const override {
    const model::PidNamespaces spaces(application);
    for (const auto& placement : placements) {
      const auto& state = *placement.description->state.as<Pidfd>();
      const bool lives = state.process.value != 0;
      const Pid process = lives ? state.process : placement.process;
      const pid_t number = lives ? spaces.number(process.value, spaces.of(sink.pid())) : placement.process_number;
      if (number == 0) {
        return fail(Error::unsupported("plan pidfd", "the process is outside of the pid namespace of who holds it",
                                       fmt::format("process {} held by {}", process, sink.pid())));
      }
      plan::Perform perform{state.describe(), "", {}, {}, {}};
      perform.processes.push_back(process);
      perform.calls.push_back(call(SYS_pidfd_open, number, placement.description->flags & pidfd_thread));
      place(placement, perform);
      sink.add(std::move(perform));
    }
    return {};
  }

 protected:
  /// CRIU hands the flags to pidfd_open.
  Status write(const model::Application&, const model::OpenDescription& description,
               pidfd_entry& entry) const override {
    const auto& state = *description.state.as<Pidfd>();
    entry.set_flags(description.flags & ~static_cast<uint32_t>(O_ACCMODE));
    const bool has_ended = state.process.value == 0;
    const bool is_of_thread = state.thread.value != 0;
    entry.set_nspid(has_ended ? no_process : is_of_thread ? state.thread.value : state.process.value);
    if (is_of_thread) entry.set_process(static_cast<uint32_t>(state.process.value));
    entry.set_ino(has_ended ? state.ended.value & ~ended_bit : static_cast<uint32_t>(state.process.value));
    if (has_ended) entry.set_exit_status(static_cast<uint32_t>(state.status));
    return {};
  }

  Status read(const image::FileRecord& record, const pidfd_entry& entry, model::Application& application,
              model::OpenDescription& description) const override {
    auto state = std::make_shared<Pidfd>();
    description.flags |= O_RDWR;
    if (entry.nspid() != no_process) {
      if (entry.nspid() <= 0)
        return bad_entry(kind(), record, "pidfd.nspid", fmt::format("{} is no pid", entry.nspid()));
      state->process = Pid{entry.nspid()};
      if (entry.has_process()) {
        state->process = Pid{static_cast<int32_t>(entry.process())}, state->thread = Tid{entry.nspid()};
        if ((description.flags & pidfd_thread) == 0)
          return bad_entry(kind(), record, "pidfd.flags", "it is of a thread, and does not say so");
      }
    } else {
      const uint32_t status = entry.has_exit_status() ? entry.exit_status() : SIGKILL;
      if (!is_end(status))
        return bad_entry(kind(), record, "pidfd.exit_status", fmt::format("no process ends with {:#x}", status));
      state->ended = ObjectId{entry.ino() | ended_bit};
      auto& object = application.objects[state->ended];
      if (!object.value) object = ended_with(static_cast<int>(status));
      const auto* process = object.as<EndedProcess>();
      if (process == nullptr) return bad_entry(kind(), record, "pidfd.ino", "this number is of something else");
      state->status = process->status;
    }
    description.state = {std::move(state)};
    return {};
  }

 private:
  /// Whose thread it is, beside its first; 0: nobody's.
  static Pid process_of(const model::Application& application, Tid tid) {
    for (const auto& task : application.tasks) {
      const auto found = std::ranges::find(task.threads, tid, &model::Thread::tid);
      if (found != task.threads.end() && found != task.threads.begin()) return task.pid;
    }
    return {};
  }

  /// Why the place of a thread's pidfd cannot be held by another; empty: it can.
  static std::string problem_of_thread(const model::Application& application,
                                       const model::OpenDescription& description) {
    size_t tables = 0;
    for (const auto& [id, table] : application.descriptor_tables) {
      tables +=
          std::ranges::any_of(table.slots, [&](const auto& slot) { return slot.second.description == description.id; });
    }
    if (tables != 1) return "not exactly one process has it open";
    if (description.owner.kind != model::FileOwner::Kind::none) return "somebody is named by F_SETOWN";
    for (const auto& [id, other] : application.descriptions) {
      if (std::ranges::find(other.watches, description.id, &model::Watch::target) != other.watches.end())
        return "an epoll waits for it";
      if (std::ranges::find(other.carries, description.id) != other.carries.end())
        return "it is on its way through a socket, or registered with an io_uring";
    }
    return {};
  }

  static model::KindState ended_with(int status) {
    auto process = std::make_shared<EndedProcess>();
    process->status = status;
    return {std::move(process)};
  }

  /// Pidfds of the same process have the same inode (since Linux 6.9).
  static Status capture_ended(CaptureContext& context, const DescriptorProbe& probe, Pidfd& state) {
    bool fresh = false;
    const auto id = context.object(fmt::format("ended process {}", probe.stat.st_ino), fresh);
    state.ended = ObjectId{id.value | ended_bit};
    auto& object = context.application.objects[state.ended];
    if (fresh) {
      ProcessInfo info;
      info.mask = exit_info;
      const bool told = ioctl(TRY(probe.duplicate()), get_info, &info) == 0 && (info.mask & exit_info) != 0;
      object = ended_with(told ? info.exit_code : SIGKILL);
    }
    state.status = object.as<EndedProcess>()->status;
    return {};
  }
};

}  // namespace

const FileRoom& pidfd_room() {
  static const PidfdRoom room;
  return room;
}

}  // namespace stasis::resource
