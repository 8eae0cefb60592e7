#include "resource/descriptors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <tuple>

#include "kernel/proc.h"
#include "kernel/process.h"
#include "resource/registry.h"

namespace stasis::resource {
namespace {

/// One slot of one table, before it is known which description it is.
struct Slot {
  const DescriptorHolder* holder = nullptr;
  DescriptorProbe probe;
};

/// Slots can only share a description if all this is equal: kcmp is asked only among those.
auto identity(const Slot& slot) {
  const auto& p = slot.probe;
  return std::tuple(p.stat.st_dev, p.stat.st_ino, p.stat.st_mode & S_IFMT, p.stat.st_rdev,
                    p.flags & ~static_cast<uint32_t>(O_CLOEXEC), p.position, p.mount_id);
}

std::string subject_of(const model::Task& task, int fd, const std::string& link) {
  return fmt::format("task {} '{}', descriptor {} → {}", task.pid, task.name, fd, link);
}

Result<DescriptorProbe> probe(const DescriptorHolder& holder, int fd) {
  DescriptorProbe made;
  made.host_pid = holder.view->host_pid;
  made.fd = fd;
  made.proc_path = fmt::format("/proc/{}/fd/{}", made.host_pid, fd);
  made.link = TRY(kernel::read_link(made.proc_path));
  made.subject = subject_of(*holder.task, fd, made.link);
  if (stat(made.proc_path.c_str(), &made.stat) != 0) return fail_errno("stat", made.subject);
  auto info = TRY(kernel::read_fdinfo(made.host_pid, fd));
  made.flags = info.flags;
  made.position = info.position;
  made.mount_id = info.mount_id;
  made.fdinfo = std::move(info.text);
  return made;
}

struct OwnerEx {  // struct f_owner_ex
  int type;
  pid_t pid;
};

/// Who gets SIGIO. Asked only where somebody could have set it: through a duplicate, which costs a few calls.
Result<model::FileOwner> owner_of(const CaptureContext& context, const DescriptorProbe& probe) {
  model::FileOwner owner;
  const int fd = TRY(probe.duplicate());
  OwnerEx ex{};
  if (fcntl(fd, F_GETOWN_EX, &ex) != 0) return owner;  // O_PATH descriptors have none
  if (ex.pid != 0) {
    owner.kind = ex.type == F_OWNER_TID   ? model::FileOwner::Kind::thread
                 : ex.type == F_OWNER_PID ? model::FileOwner::Kind::process
                                          : model::FileOwner::Kind::group;
    const auto known = context.host_to_tree.find(ex.pid);
    owner.id = known == context.host_to_tree.end() ? ex.pid : known->second;
    uint32_t ids[2]{};
    constexpr int get_owner_uids = 17;  // F_GETOWNER_UIDS
    if (fcntl(fd, get_owner_uids, ids) == 0) owner.uid = ids[0], owner.euid = ids[1];
  }
  const int signal = fcntl(fd, F_GETSIG);
  owner.signal = signal > 0 ? signal : 0;
  return owner;
}

/// Regular files, directories and memory devices never send SIGIO, but an owner may be set all the same; it is worth
/// its calls only once per description.
Result<model::OpenDescription> describe(CaptureContext& context, const DescriptorProbe& probe) {
  model::OpenDescription description;
  description.id = context.new_id();
  description.flags = probe.flags & ~static_cast<uint32_t>(O_CLOEXEC);
  description.position = probe.position;
  for (const auto* room : file_rooms()) {
    if (!room->recognises(probe)) continue;
    description.state = TRY(room->capture(context, probe));
    description.owner = TRY(owner_of(context, probe));
    return description;
  }
  return fail(Error::internal("recognise a descriptor", "no room takes it: " + probe.subject));
}

class DescriptorCapture {
 public:
  explicit DescriptorCapture(CaptureContext& context) : context_(context) {}

  Status run(std::span<const DescriptorHolder> holders) {
    for (const auto& holder : holders) {
      if (holder.task->state == model::TaskState::zombie) continue;
      TRY(list(holder));
      TRY(capture_fs(holder));
    }
    TRY(share());
    for (const auto* room : file_rooms()) TRY(room->finish_capture(context_));
    return {};
  }

 private:
  Status list(const DescriptorHolder& holder) {
    auto& table = context_.application.descriptor_tables[holder.task->descriptors];
    if (table.id == holder.task->descriptors) return {};  // shared, listed through another task
    table.id = holder.task->descriptors;
    for (const int fd : TRY(kernel::list_descriptors(holder.view->host_pid))) {
      slots_.push_back({&holder, TRY(probe(holder, fd))});
    }
    return {};
  }

  Status share() {
    std::vector<size_t> order(slots_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return identity(slots_[a]) < identity(slots_[b]); });
    std::vector<size_t> first_of(slots_.size());  // slot → the first slot of the same description
    for (size_t begin = 0; begin < order.size();) {
      size_t end = begin + 1;
      while (end < order.size() && identity(slots_[order[end]]) == identity(slots_[order[begin]])) ++end;
      TRY(group(std::span(order).subspan(begin, end - begin), first_of));
      begin = end;
    }
    std::vector<ObjectId> ids(slots_.size());
    for (size_t i = 0; i < slots_.size(); ++i) {  // in order of tasks and numbers: ids come out the same each time
      if (first_of[i] == i) {
        auto description = TRY(describe(context_, slots_[i].probe));
        ids[i] = description.id;
        context_.application.descriptions.emplace(description.id, std::move(description));
      }
      const auto& slot = slots_[i];
      const bool close_on_exec = (slot.probe.flags & O_CLOEXEC) != 0;
      context_.application.descriptor_tables.at(slot.holder->task->descriptors).slots[slot.probe.fd] = {
          ids[first_of[i]], close_on_exec};
      slots_[i].probe.cached_duplicate.reset();
    }
    return {};
  }

  /// Sorted by the kernel's own order of open file descriptions, the same ones come to stand side by side.
  Status group(std::span<size_t> candidates, std::vector<size_t>& first_of) {
    std::optional<Error> problem;
    const auto compare = [&](size_t a, size_t b) {
      const auto& x = slots_[a].probe;
      const auto& y = slots_[b].probe;
      const auto order = kernel::kcmp(x.host_pid, y.host_pid, kernel::KcmpType::file, x.fd, y.fd);
      if (order) return *order;
      if (!problem) problem = order.error();
      return std::strong_ordering::equal;
    };
    std::ranges::stable_sort(candidates, [&](size_t a, size_t b) { return compare(a, b) < 0; });
    for (size_t i = 0; i < candidates.size();) {
      size_t end = i + 1, lowest = candidates[i];
      while (end < candidates.size() && compare(candidates[i], candidates[end]) == 0)
        lowest = std::min(lowest, candidates[end++]);
      for (; i < end; ++i) first_of[candidates[i]] = lowest;
    }
    if (problem) return fail(std::move(*problem).within("find out which descriptors are shared"));
    return {};
  }

  Status capture_fs(const DescriptorHolder& holder) {
    auto& fs = context_.application.fs_contexts[holder.task->fs];
    if (fs.id == holder.task->fs) return {};
    fs.id = holder.task->fs;
    const pid_t pid = holder.view->host_pid;
    const auto directory = [&](const char* name) {
      return capture_file_at(context_, pid, fmt::format("/proc/{}/{}", pid, name), O_RDONLY | O_DIRECTORY,
                             fmt::format("task {} '{}', {}", holder.task->pid, holder.task->name, name));
    };
    fs.working_directory = TRY(directory("cwd"));
    fs.root_directory = TRY(directory("root"));
    fs.umask = TRY(holder.view->status(0))->umask;
    return {};
  }

  CaptureContext& context_;
  std::vector<Slot> slots_;
};

}  // namespace

Result<int> DescriptorProbe::duplicate() const {
  if (cached_duplicate.valid()) return cached_duplicate.get();
  if (fd < 0) {
    cached_duplicate = UniqueFd(open(proc_path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!cached_duplicate.valid()) return fail_errno("open", subject);
    return cached_duplicate.get();
  }
  const auto pidfd = TRY(kernel::pidfd_open(host_pid));
  cached_duplicate = TRY(kernel::pidfd_getfd(pidfd.get(), fd));
  return cached_duplicate.get();
}

Status capture_descriptors(CaptureContext& context, std::span<const DescriptorHolder> holders) {
  return DescriptorCapture(context).run(holders);
}

Result<ObjectId> capture_file_at(CaptureContext& context, pid_t host_pid, const std::string& proc_path, uint32_t flags,
                                 const std::string& subject) {
  DescriptorProbe made;
  made.host_pid = host_pid;
  made.proc_path = proc_path;
  made.link = TRY(kernel::read_link(proc_path));
  made.subject = subject + " → " + made.link;
  made.flags = flags;
  if (stat(proc_path.c_str(), &made.stat) != 0) return fail_errno("stat", made.subject);
  bool fresh = false;
  const auto key = fmt::format("held file {}:{}:{:o}:{}", made.stat.st_dev, made.stat.st_ino, flags, made.link);
  const ObjectId known = context.object(key, fresh);
  if (!fresh) return known;
  auto description = TRY(describe(context, made));
  description.id = known;
  context.application.descriptions.emplace(known, std::move(description));
  return known;
}

void encode_owner(const model::FileOwner& owner, fown_entry& out) {
  // pid_type holds F_GETOWN_EX's own numbers, as CRIU writes it.
  out.set_uid(owner.uid), out.set_euid(owner.euid), out.set_signum(static_cast<uint32_t>(owner.signal));
  out.set_pid(static_cast<uint32_t>(owner.id));
  const int type = owner.kind == model::FileOwner::Kind::process ? F_OWNER_PID
                   : owner.kind == model::FileOwner::Kind::group ? F_OWNER_PGRP
                                                                 : F_OWNER_TID;
  out.set_pid_type(owner.kind == model::FileOwner::Kind::none ? 0 : static_cast<uint32_t>(type));
}

model::FileOwner decode_owner(const fown_entry& in) {
  model::FileOwner owner;
  owner.uid = in.uid(), owner.euid = in.euid(), owner.signal = static_cast<int>(in.signum()),
  owner.id = static_cast<pid_t>(in.pid());
  if (in.pid() == 0) return owner;
  owner.kind = in.pid_type() == F_OWNER_PGRP  ? model::FileOwner::Kind::group
               : in.pid_type() == F_OWNER_PID ? model::FileOwner::Kind::process
                                              : model::FileOwner::Kind::thread;
  return owner;
}

}  // namespace stasis::resource
