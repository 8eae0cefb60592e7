#include "resource/descriptors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <map>
#include <numeric>
#include <tuple>

#include "base/parallel.h"
#include "kernel/descriptor_limit.h"
#include "kernel/proc.h"
#include "kernel/process.h"
#include "resource/file_locks.h"
#include "resource/locked_files.h"
#include "resource/registry.h"

namespace stasis::resource {
namespace {

constexpr uint32_t tmpfile_bit = 020000000;  ///< what sets O_TMPFILE apart from O_DIRECTORY, which it contains

/// One slot of one table, before it is known which description it is.
struct Slot {
  const DescriptorHolder* holder = nullptr;
  size_t process = 0;  ///< index of its Reach
  bool open = true;
  DescriptorProbe probe;
  model::FileOwner owner;
  std::string info;  ///< fdinfo, if it speaks of locks
};

/// Ways into one process, opened once for all of its descriptors: walking /proc/PID anew for each costs more than the
/// reading itself.
struct Reach {
  static constexpr size_t descriptors = 3;  ///< of ours that each has
  UniqueFd pidfd, links, infos;

  static Result<Reach> open(pid_t witness) {
    Reach reach;
    reach.pidfd = TRY(kernel::pidfd_open_thread(witness));
    const auto path = fmt::format("/proc/{}/fd", witness);
    reach.links = UniqueFd(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    reach.infos = UniqueFd(::open((path + "info").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!reach.links.valid() || !reach.infos.valid()) return fail_errno("open", path);
    return reach;
  }
};

/// Slots can only share a description if all this is equal: kcmp is asked only among those. Position and status flags
/// are left out: somebody outside of the tree who shares the description may change them between two looks.
auto identity(const Slot& slot) {
  const auto& p = slot.probe;
  return std::tuple(p.stat.st_dev, p.stat.st_ino, p.stat.st_mode & S_IFMT, p.stat.st_rdev,
                    p.flags & (O_ACCMODE | O_PATH), p.mount_id);
}

std::string subject_of(const model::Task& task, int fd, const std::string& link) {
  return fmt::format("task {} '{}', descriptor {} → {}", task.pid, task.name, fd, link);
}

/// Who gets SIGIO: only a descriptor of the same description can be asked.
model::FileOwner owner_of(const CaptureContext& context, int fd) {
  model::FileOwner owner;
  f_owner_ex ex{};
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

struct stat stat_of(const struct statx& about) {
  struct stat found{};
  found.st_dev = makedev(about.stx_dev_major, about.stx_dev_minor);
  found.st_ino = about.stx_ino;
  found.st_mode = about.stx_mode;
  found.st_nlink = about.stx_nlink;
  found.st_uid = about.stx_uid, found.st_gid = about.stx_gid;
  found.st_rdev = makedev(about.stx_rdev_major, about.stx_rdev_minor);
  found.st_size = static_cast<off_t>(about.stx_size);
  found.st_blocks = static_cast<blkcnt_t>(about.stx_blocks);
  found.st_atim = {about.stx_atime.tv_sec, about.stx_atime.tv_nsec};
  found.st_mtim = {about.stx_mtime.tv_sec, about.stx_mtime.tv_nsec};
  return found;
}

/// Looks at one descriptor through a duplicate, which shares the description: /proc/PID/fdinfo would say the same at
/// three times the price. Only close-on-exec belongs to the descriptor itself: the task is asked for it
/// (DescriptorsRoom).
Status look_through_duplicate(const CaptureContext& context, Slot& slot) {
  auto& made = slot.probe;
  const int fd = made.cached_duplicate.get();
  struct statx about{};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_MNT_ID, &about) != 0)
    return fail_errno("statx", made.proc_path);
  made.stat = stat_of(about);
  made.mount_id = (about.stx_mask & STATX_MNT_ID) != 0 ? static_cast<int64_t>(about.stx_mnt_id) : -1;
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return fail_errno("F_GETFL", made.proc_path);
  made.flags = static_cast<uint32_t>(flags);
  // Devices are not asked: that of /dev/null and its like goes back to its beginning at every lseek
  // (drivers/char/mem.c).
  const bool has_position = (S_ISREG(made.stat.st_mode) || S_ISDIR(made.stat.st_mode)) && (made.flags & O_PATH) == 0;
  const off_t position = has_position ? lseek(fd, 0, SEEK_CUR) : 0;
  made.position = position > 0 ? static_cast<uint64_t>(position) : 0;
  slot.owner = owner_of(context, fd);
  return {};
}

bool is_anonymous(const DescriptorProbe& probe) { return (probe.stat.st_mode & S_IFMT) == 0; }

/// /proc/PID/fdinfo is only read where it says more: of locks, and of what is no file. Locks and leases show in fdinfo
/// of whoever has the file open (fs/locks.c, show_fd_locks).
bool needs_info(const DescriptorProbe& probe, const LockedFiles& locked) {
  if (is_anonymous(probe)) return true;
  // Locks of pipes and sockets keep nobody out: only FIFOs can be opened by others, and those are known by their link.
  const bool is_pipe = S_ISFIFO(probe.stat.st_mode) && !probe.link.starts_with('/');
  return !is_pipe && !S_ISSOCK(probe.stat.st_mode) && locked.may_be_locked(probe);
}

Status read_info(const Reach& reach, Slot& slot) {
  auto& made = slot.probe;
  auto info = TRY(kernel::read_record_at(reach.infos.get(), fmt::format("{}", made.fd)));
  if (is_anonymous(made)) {
    made.info = std::move(info);
  } else if (info.find("\nlock:") != std::string::npos) {
    made.leased = info.find(" LEASE ") != std::string::npos;
    slot.info = std::move(info);
  }
  return {};
}

/// Called for many at the same time.
Status look(const CaptureContext& context, const Reach& reach, Slot& slot) {
  auto& made = slot.probe;
  made.witness = slot.holder->view->witness();
  made.proc_path = fmt::format("/proc/{}/fd/{}", made.witness, made.fd);
  auto duplicate = kernel::pidfd_getfd(reach.pidfd.get(), made.fd);
  slot.open = duplicate || duplicate.error().errno_value() != EBADF;
  if (!slot.open) return {};
  made.cached_duplicate = TRY(std::move(duplicate));
  return look_through_duplicate(context, slot);
}

/// The descriptors that stasis may have open at once, over those it has anyway.
size_t duplicates_allowed() {
  constexpr size_t for_everything_else = 256;
  const uint64_t limit = kernel::raise_descriptor_limit();
  return limit > for_everything_else ? limit - for_everything_else : 0;
}

Result<model::OpenDescription> describe(CaptureContext& context, const DescriptorProbe& probe, ObjectId id) {
  model::OpenDescription description;
  description.id = id;
  description.flags = probe.flags & ~static_cast<uint32_t>(O_CLOEXEC);
  // How it came into being: the file has a name again when it is opened the next time.
  if ((description.flags & tmpfile_bit) != 0) description.flags &= ~static_cast<uint32_t>(O_TMPFILE);
  description.position = probe.position;
  for (const auto* room : file_rooms()) {
    if (!room->recognises(probe)) continue;
    description.state = TRY(room->capture(context, probe));
    description.starts_last = room->starts_last(description.state);
    return description;
  }
  return fail(Error::internal("recognise a descriptor", "no room takes it: " + probe.subject));
}

/// Makes room for so many descriptors. A table that grows while several threads use it makes each growth wait for all
/// processors (fs/file.c, expand_fdtable: synchronize_rcu), which takes milliseconds.
void reserve_descriptors(size_t count) {
  constexpr size_t of_our_own = 64;
  const UniqueFd any(open("/", O_PATH | O_CLOEXEC));
  const UniqueFd highest(fcntl(any.get(), F_DUPFD_CLOEXEC, static_cast<int>(count + of_our_own)));
}

class DescriptorCapture {
 public:
  explicit DescriptorCapture(CaptureContext& context) : context_(context) {}

  Status run(std::span<const DescriptorHolder> holders) {
    TRY(list(holders));
    const size_t needed = slots_.size() + reaches_.size() * Reach::descriptors;
    has_duplicates_ = needed <= allowed_;
    if (has_duplicates_) reserve_descriptors(needed);
    LockedFiles locked(slots_.size());
    TRY(look_at_all());
    for (const auto& holder : holders) {
      if (holder.task->state != model::TaskState::zombie) TRY(capture_fs(holder));
    }
    context_.captured_in_flight = [this](UniqueFd fd, const std::string& subject) {
      return identify_in_flight(std::move(fd), subject);
    };
    TRY(share());
    locked.wait();
    TRY(read_infos(locked));
    TRY(describe_all());
    context_.captured_in_flight = {};
    for (const auto* room : file_rooms()) TRY(room->finish_capture(context_));
    return {};
  }

 private:
  Status list(std::span<const DescriptorHolder> holders) {
    std::vector<const DescriptorHolder*> first;  // of each table
    for (const auto& holder : holders) {
      if (holder.task->state == model::TaskState::zombie) continue;
      auto& table = context_.application.descriptor_tables[holder.task->descriptors];
      if (table.id == holder.task->descriptors) continue;
      table.id = holder.task->descriptors;
      first.push_back(&holder);
    }
    std::vector<std::vector<int>> numbers(first.size());
    reaches_.resize(first.size());
    const size_t needed = first.size() * Reach::descriptors;
    if (needed <= allowed_) reserve_descriptors(needed);
    TRY(parallel_for(first.size(), [&](size_t index) -> Status {
      reaches_[index] = TRY(Reach::open(first[index]->view->witness()));
      numbers[index] = TRY(candidates(*first[index], reaches_[index]));
      return {};
    }));
    for (size_t index = 0; index < first.size(); ++index) {
      for (const int fd : numbers[index]) {
        slots_.push_back({.holder = first[index], .process = index});
        slots_.back().probe.fd = fd;
      }
    }
    return {};
  }

  /// Numbers that may be open. Listing /proc/PID/fd makes an inode for each; in a well-filled table it is quicker to
  /// try all that it has room for.
  static Result<std::vector<int>> candidates(const DescriptorHolder& holder, const Reach& reach) {
    struct stat links{};
    const size_t room = TRY(holder.view->witness_status())->descriptor_table_size;
    // Since Linux 6.2 the size of the directory is the number of descriptors (fs/proc/fd.c, proc_readfd_count).
    if (fstat(reach.links.get(), &links) != 0 || static_cast<size_t>(links.st_size) < room / 2)
      return kernel::list_descriptors(holder.view->witness());
    std::vector<int> all(room);
    std::iota(all.begin(), all.end(), 0);
    return all;
  }

  /// Duplicates are kept for comparing as long as there is room for all of them.
  Status look_at_all() {
    TRY(parallel_for(slots_.size(), [&](size_t index) -> Status {
      TRY(look(context_, reaches_[slots_[index].process], slots_[index]));
      if (!has_duplicates_) slots_[index].probe.cached_duplicate.reset();
      return {};
    }));
    std::erase_if(slots_, [](const Slot& slot) { return !slot.open; });
    return read_links();
  }

  /// A file without hard links has one name in each mount: descriptors of the same such file need one look only.
  Status read_links() {
    std::map<std::tuple<dev_t, ino_t, int64_t>, size_t> named;
    std::vector<size_t> to_read, same_as(slots_.size());
    for (size_t i = 0; i < slots_.size(); ++i) {
      const auto& p = slots_[i].probe;
      const bool one_name =
          p.stat.st_nlink == 1 && p.mount_id >= 0 && (S_ISREG(p.stat.st_mode) || S_ISCHR(p.stat.st_mode));
      same_as[i] = one_name ? named.try_emplace({p.stat.st_dev, p.stat.st_ino, p.mount_id}, i).first->second : i;
      if (same_as[i] == i) to_read.push_back(i);
    }
    TRY(parallel_for(to_read.size(), [&](size_t index) -> Status {
      auto& slot = slots_[to_read[index]];
      slot.probe.link = TRY(kernel::read_link_at(reaches_[slot.process].links.get(), fmt::format("{}", slot.probe.fd)));
      return {};
    }));
    for (size_t i = 0; i < slots_.size(); ++i) {
      auto& probe = slots_[i].probe;
      probe.link = slots_[same_as[i]].probe.link;
      probe.subject = subject_of(*slots_[i].holder->task, probe.fd, probe.link);
    }
    return {};
  }

  Status share() {
    std::vector<size_t> order(slots_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return identity(slots_[a]) < identity(slots_[b]); });
    std::vector<std::span<const size_t>> groups;
    for (size_t begin = 0; begin < order.size();) {
      size_t end = begin + 1;
      while (end < order.size() && identity(slots_[order[end]]) == identity(slots_[order[begin]])) ++end;
      groups.push_back(std::span(order).subspan(begin, end - begin));
      begin = end;
    }
    first_of_.resize(slots_.size());
    TRY_IN(
        "find out which descriptors are shared",
        parallel_for(
            groups.size(), [&](size_t index) { return group(groups[index]); }, slots_.size() >= 256 ? 2 : ~size_t{0}));
    return {};
  }

  Status read_infos(const LockedFiles& locked) {
    std::vector<Slot*> needed;
    for (auto& slot : slots_) {
      if (needs_info(slot.probe, locked)) needed.push_back(&slot);
    }
    return parallel_for(needed.size(),
                        [&](size_t index) { return read_info(reaches_[needed[index]->process], *needed[index]); });
  }

  /// Finds for each slot of a group the first one of the same description.
  Status group(std::span<const size_t> candidates) {
    kernel::OrderedObjects known;
    for (const size_t slot : candidates) {
      first_of_[slot] =
          TRY(known.first_like(slot, [this](size_t a, size_t b) { return compare(slots_[a].probe, slots_[b].probe); }));
    }
    return {};
  }

  /// Among duplicates of our own the kernel need not ask whether we may look (ptrace_may_access): five times quicker.
  /// Each thread names itself: for a common name they would wait for each other (task_lock in fs/file.c, fget_task).
  Result<std::strong_ordering> compare(const DescriptorProbe& a, const DescriptorProbe& b) const {
    if (has_duplicates_) {
      thread_local const pid_t self = gettid();
      return kernel::kcmp(self, self, kernel::KcmpType::file, a.cached_duplicate.get(), b.cached_duplicate.get());
    }
    return kernel::kcmp(a.witness, b.witness, kernel::KcmpType::file, a.fd, b.fd);
  }

  /// In order of tasks and numbers: ids come out the same each time.
  Status describe_all() {
    ids_.resize(slots_.size());
    for (size_t i = 0; i < slots_.size(); ++i) {
      auto& slot = slots_[i];
      if (first_of_[i] == i) {
        TRY(add_description(slot, id_of(i)));
      }
      auto& table = context_.application.descriptor_tables.at(slot.holder->task->descriptors);
      table.slots[slot.probe.fd] = {id_of(first_of_[i]), false};
      TRY(capture_locks(context_, {slot.probe.subject, slot.info, id_of(first_of_[i]), first_of_[i] == i, &table}));
      slot.probe.cached_duplicate.reset();
    }
    // What is in flight may have something in flight itself: the list grows on the way.
    for (size_t i = 0; i < in_flight_.size(); ++i) {
      const auto& [slot, id] = in_flight_[i];
      TRY(add_description(slot, id));
      TRY(capture_locks(context_, {slot.probe.subject, slot.info, id, true, nullptr}));
    }
    for (auto& [slot, id] : in_flight_) context_.in_flight.push_back(std::move(slot.probe.cached_duplicate));
    return {};
  }

  Status add_description(const Slot& slot, ObjectId id) {
    auto description = TRY(describe(context_, slot.probe, id));
    description.owner = slot.owner;
    const auto& stat = slot.probe.stat;
    context_.identities[id] = {stat.st_dev, stat.st_ino, stat.st_mode & S_IFMT};
    context_.application.descriptions.emplace(id, std::move(description));
    return {};
  }

  ObjectId id_of(size_t first_slot) {
    auto& id = ids_[first_slot];
    if (id.value == 0) id = context_.new_id();
    return id;
  }

  Result<ObjectId> identify_in_flight(UniqueFd fd, const std::string& subject) {
    Slot slot;
    auto& probe = slot.probe;
    probe.witness = getpid(), probe.fd = fd.get();
    probe.proc_path = fmt::format("/proc/{}/fd/{}", probe.witness, probe.fd);
    probe.link = TRY(kernel::read_link(probe.proc_path));
    probe.subject = fmt::format("{}, in flight → {}", subject, probe.link);
    probe.cached_duplicate = std::move(fd);
    TRY(look_through_duplicate(context_, slot));
    if (needs_info(probe, LockedFiles(1))) TRY(read_info(TRY(Reach::open(probe.witness)), slot));
    const auto same = [&](const DescriptorProbe& other) -> Result<bool> {
      return TRY(kernel::kcmp(probe.witness, other.witness, kernel::KcmpType::file, probe.fd, other.fd)) == 0;
    };
    for (size_t i = 0; i < slots_.size(); ++i) {
      if (first_of_[i] != i || identity(slots_[i]) != identity(slot)) continue;
      if (TRY(same(slots_[i].probe))) return id_of(i);
    }
    for (const auto& known : in_flight_) {
      if (identity(known.slot) == identity(slot) && TRY(same(known.slot.probe))) return known.id;
    }
    const ObjectId id = context_.new_id();
    in_flight_.push_back({std::move(slot), id});
    return id;
  }

  Status capture_fs(const DescriptorHolder& holder) {
    auto& fs = context_.application.fs_contexts[holder.task->fs];
    if (fs.id == holder.task->fs) return {};
    fs.id = holder.task->fs;
    const auto* facts = TRY(holder.view->facts());
    const auto directory = [&](const char* name, const FileLink& link) {
      return capture_file_at(
          context_,
          {holder.view->witness(), fmt::format("/proc/{}/{}", holder.view->witness(), name), O_RDONLY | O_DIRECTORY,
           fmt::format("task {} '{}', {}", holder.task->pid, holder.task->name, name)},
          link);
    };
    fs.working_directory = TRY(directory("cwd", facts->working_directory));
    fs.root_directory = TRY(directory("root", facts->root_directory));
    fs.umask = TRY(holder.view->witness_status())->umask;
    return {};
  }

  CaptureContext& context_;
  const size_t allowed_ = duplicates_allowed();
  std::vector<Reach> reaches_;
  std::vector<Slot> slots_;
  std::vector<size_t> first_of_;  // slot → the first slot of the same description
  std::vector<ObjectId> ids_;     // of the descriptions of those first slots; 0: not yet
  struct InFlight {
    Slot slot;
    ObjectId id;
  };
  std::deque<InFlight> in_flight_;  // what is in no table
  bool has_duplicates_ = false;
};

/// Close-on-exec is a flag of the descriptor, not of the description: nobody but the task can be asked for it quickly.
class DescriptorsRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "descriptors"; }

  Status ask(CaptureContext& context, model::Task& task, Inquiry& inquiry) const override {
    const auto table = context.application.descriptor_tables.find(task.descriptors);
    if (table == context.application.descriptor_tables.end()) return {};
    for (auto& [fd, slot] : table->second.slots) {
      inquiry.ask(plan::call(SYS_fcntl, fd, F_GETFD), [&slot](const Inquiry::Answer& answer) -> Status {
        slot.close_on_exec = (answer.result & FD_CLOEXEC) != 0;
        return {};
      });
    }
    return {};
  }

  // Tables are written and read by the codec, because files of all kinds meet in them.
  Status encode(const model::Application&, const model::Task&, image::TaskRecords&) const override { return {}; }
  Status decode(const image::TaskRecords&, model::Application&, model::Task&) const override { return {}; }
};

}  // namespace

const TaskRoom& descriptors_room() {
  static const DescriptorsRoom room;
  return room;
}

Result<int> DescriptorProbe::duplicate() const {
  if (cached_duplicate.valid()) return cached_duplicate.get();
  if (fd < 0) {
    cached_duplicate = UniqueFd(open(proc_path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!cached_duplicate.valid()) return fail_errno("open", subject);
    return cached_duplicate.get();
  }
  const auto pidfd = TRY(kernel::pidfd_open_thread(witness));
  cached_duplicate = TRY(kernel::pidfd_getfd(pidfd.get(), fd));
  return cached_duplicate.get();
}

Status capture_descriptors(CaptureContext& context, std::span<const DescriptorHolder> holders) {
  return DescriptorCapture(context).run(holders);
}

Result<ObjectId> capture_file_at(CaptureContext& context, HeldFile held, const FileLink& link) {
  bool fresh = false;
  const auto key = fmt::format("held file {}:{}:{:o}:{}", link.stat.st_dev, link.stat.st_ino, held.flags, link.target);
  const ObjectId known = context.object(key, fresh);
  if (!fresh) return known;
  DescriptorProbe made;
  made.witness = held.witness;
  made.proc_path = std::move(held.proc_path);
  made.link = link.target;
  made.stat = link.stat;
  made.subject = held.subject + " → " + made.link;
  made.flags = held.flags;
  auto description = TRY(describe(context, made, known));
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

image::FileRecord path_record(const model::OpenDescription& description, const std::string& path, uint32_t mode) {
  image::FileRecord record;
  record.set_type(REG), record.set_id(path_record_id(description.id));
  auto& reg = *record.mutable_reg();
  reg.set_id(record.id()), reg.set_flags(description.flags), reg.set_pos(0), reg.set_name(path), reg.set_mode(mode);
  encode_owner(description.owner, *reg.mutable_fown());
  return record;
}

uint32_t reopen_flags(uint32_t flags) {
  flags &= ~static_cast<uint32_t>(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_CLOEXEC | O_ASYNC);
  if ((flags & tmpfile_bit) != 0) flags &= ~static_cast<uint32_t>(O_TMPFILE);
  return flags | O_NOCTTY;
}

uint32_t settable_flags(uint32_t flags) { return flags & (O_APPEND | O_NONBLOCK | O_ASYNC | O_DIRECT | O_NOATIME); }

void set_status_flags(const model::OpenDescription& description, int fd, plan::Sink& sink) {
  if ((description.flags & O_ASYNC) == 0 || (description.flags & O_PATH) != 0) return;
  sink.perform("status flags", "", {plan::call(SYS_fcntl, fd, F_SETFL, settable_flags(description.flags))});
}

}  // namespace stasis::resource
