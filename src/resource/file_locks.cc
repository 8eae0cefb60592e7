#include "resource/file_locks.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <optional>

#include "image/names.h"
#include "kernel/fdinfo.h"
#include "kernel/proc.h"
#include "locks.pb.h"
#include "model/places.h"
#include "resource/regular_file.h"

namespace stasis::resource {
namespace {

using Kind = model::FileLock::Kind;
using Type = model::FileLock::Type;

// ---- capture

std::optional<Kind> kind_of(std::string_view kernels_name) {
  if (kernels_name == "POSIX") return Kind::posix;
  if (kernels_name == "FLOCK") return Kind::flock;
  if (kernels_name == "OFDLCK") return Kind::ofd;
  if (kernels_name == "LEASE") return Kind::lease;
  return std::nullopt;
}

Type type_of(std::string_view kernels_name) {
  if (kernels_name == "WRITE") return Type::write;
  return kernels_name == "READ" ? Type::read : Type::none;
}

void insert(std::vector<model::FileLock>& locks, const model::FileLock& lock) {
  const auto at = std::ranges::lower_bound(locks, lock);
  if (at == locks.end() || *at != lock) locks.insert(at, lock);
}

// ---- images: file_lock_entry.flag and .type

constexpr std::pair<Kind, uint32_t> flags[] = {{Kind::posix, 1}, {Kind::flock, 2}, {Kind::ofd, 4}, {Kind::lease, 8}};
constexpr std::pair<Type, uint32_t> types[] = {{Type::read, F_RDLCK}, {Type::write, F_WRLCK}, {Type::none, F_UNLCK}};
constexpr uint32_t breaking_bit = 4;

file_lock_entry record_of(const model::FileLock& lock) {
  file_lock_entry entry;
  entry.set_flag(std::ranges::find(flags, lock.kind, &std::pair<Kind, uint32_t>::first)->second);
  entry.set_type(std::ranges::find(types, lock.type, &std::pair<Type, uint32_t>::first)->second |
                 (lock.breaking ? breaking_bit : 0));
  entry.set_start(static_cast<int64_t>(lock.start)), entry.set_len(static_cast<int64_t>(lock.length));
  return entry;
}

/// Who has the table: the one who took the lock, or the first.
Pid holder_of(const model::Application& application, const model::DescriptorTable& table, const model::FileLock& lock) {
  Pid first;
  for (const auto& task : application.tasks) {
    if (task.state == model::TaskState::zombie || task.descriptors != table.id) continue;
    if (first.value == 0) first = task.pid;
    if (task.pid == lock.holder) return task.pid;
  }
  return first;
}

class LockDecoder {
 public:
  LockDecoder(const file_lock_entry& entry, std::string where, model::Application& application)
      : entry_(entry), where_(std::move(where)), application_(application) {}

  Status run() {
    auto lock = TRY(content());
    if (entry_.has_description()) {
      lock.description = ObjectId{entry_.description()};
      if (lock.kind == Kind::posix) return reject("description", "a posix lock is one of a task");
      if (!application_.descriptions.contains(lock.description))
        return reject("description", fmt::format("{} is not in files.img", lock.description));
      return add(lock, application_.descriptions.at(lock.description).locks);
    }
    const auto* task = application_.find(Pid{entry_.pid()});
    if (task == nullptr || task->state == model::TaskState::zombie)
      return reject("pid", fmt::format("{} is no living task of the tree", entry_.pid()));
    auto& table = application_.descriptor_tables.at(task->descriptors);
    const auto slot = table.slots.find(entry_.fd());
    if (slot == table.slots.end()) return reject("fd", fmt::format("{} is not open in {}", entry_.fd(), task->pid));
    lock.description = slot->second.description;
    if (lock.kind != Kind::posix) return add(lock, application_.descriptions.at(lock.description).locks);
    lock.holder = task->pid;
    return add(lock, table.locks);
  }

 private:
  std::unexpected<Error> reject(std::string_view field, std::string cause) const {
    return fail(Error::invalid("read file locks", std::move(cause), fmt::format("{}, field {}", where_, field)));
  }

  Result<model::FileLock> content() const {
    model::FileLock lock;
    const auto* kind = std::ranges::find(flags, entry_.flag(), &std::pair<Kind, uint32_t>::second);
    if (kind == std::end(flags)) return reject("flag", fmt::format("{} is no kind of lock", entry_.flag()));
    lock.kind = kind->first;
    lock.breaking = lock.kind == Kind::lease && (entry_.type() & breaking_bit) != 0;
    const uint32_t plain = lock.breaking ? entry_.type() & ~breaking_bit : entry_.type();
    const auto* type = std::ranges::find(types, plain, &std::pair<Type, uint32_t>::second);
    // What is broken becomes less; what is not is something.
    if (type == std::end(types) || type->first == (lock.breaking ? Type::write : Type::none))
      return reject("type", fmt::format("{} is no type of such a lock", entry_.type()));
    lock.type = type->first;
    if (entry_.start() < 0) return reject("start", fmt::format("{} is no offset", entry_.start()));
    if (entry_.len() < 0 || entry_.len() - 1 > INT64_MAX - entry_.start())
      return reject("len", fmt::format("{} is no length", entry_.len()));
    lock.start = static_cast<uint64_t>(entry_.start()), lock.length = static_cast<uint64_t>(entry_.len());
    const bool has_range = lock.kind == Kind::posix || lock.kind == Kind::ofd;
    if (!has_range && (lock.start != 0 || lock.length != 0)) return reject("start", "such a lock is of the whole file");
    return lock;
  }

  Status add(const model::FileLock& lock, std::vector<model::FileLock>& locks) const {
    const auto same = [&](const model::FileLock& other) { return other.kind == lock.kind; };
    const bool one_only = lock.kind == Kind::flock || lock.kind == Kind::lease;
    if ((one_only && std::ranges::any_of(locks, same)) || std::ranges::binary_search(locks, lock))
      return reject("fd", "it has that lock already");
    insert(locks, lock);
    return {};
  }

  const file_lock_entry& entry_;
  std::string where_;
  model::Application& application_;
};

// ---- before a restore

/// Whether somebody has a lock now that stands in the way, and who.
std::optional<std::string> obstacle(int file, const std::string& path, const model::FileLock& lock) {
  const bool writes = lock.type == Type::write;
  if (lock.kind == Kind::posix || lock.kind == Kind::ofd) {
    // As an open file that has no locks yet: those of any process stand in its way.
    struct flock found{};
    found.l_type = static_cast<short>(writes ? F_WRLCK : F_RDLCK), found.l_whence = SEEK_SET;
    found.l_start = static_cast<off_t>(lock.start), found.l_len = static_cast<off_t>(lock.length);
    if (fcntl(file, F_OFD_GETLK, &found) != 0 || found.l_type == F_UNLCK) return std::nullopt;
    if (found.l_pid > 0) return fmt::format("process {}", found.l_pid);
    return found.l_pid < 0 ? "an open file description" : "a process in another pid namespace";
  }
  if (lock.kind != Kind::flock) return std::nullopt;
  if (flock(file, (writes ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0 || errno != EWOULDBLOCK) return std::nullopt;
  struct stat about{};
  const auto all = kernel::read_file("/proc/locks");
  const auto locks = all ? kernel::parse_all_locks(*all) : Result<std::vector<kernel::LockInfo>>{};
  if (locks && stat(path.c_str(), &about) == 0) {
    for (const auto& held : *locks) {
      const bool here = held.inode == about.st_ino && makedev(held.device_major, held.device_minor) == about.st_dev;
      if (here && held.kind == "FLOCK") return fmt::format("process {}, or one that shares its open file", held.pid);
    }
  }
  return "another process";
}

class FileLocksRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "file locks"; }

  void validate(const model::Application& application, const model::Task& task,
                Diagnostics& diagnostics) const override {
    if (task.pid != application.root) return;  // once is enough
    for (const auto& [id, table] : application.descriptor_tables) check(application, table.locks, diagnostics);
    for (const auto& [id, description] : application.descriptions) check(application, description.locks, diagnostics);
  }

 private:
  static void check(const model::Application& application, const std::vector<model::FileLock>& locks,
                    Diagnostics& diagnostics) {
    for (const auto& lock : locks) {
      const auto& description = application.descriptions.at(lock.description);
      const auto* regular = description.state.as<RegularFile>();
      if (regular == nullptr || regular->ghost.value != 0) continue;  // nobody else can have opened it yet
      const auto path = regular->link_remap.empty() ? regular->path : regular->link_remap;
      const UniqueFd file(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY));
      // Of a lease not held by us: whoever opens the file is told to wait.
      const bool leased = !file.valid() && errno == EWOULDBLOCK;
      const auto holder = leased ? std::optional<std::string>("the holder of a lease")
                                 : (file.valid() ? obstacle(file.get(), path, lock) : std::nullopt);
      if (!holder) continue;
      diagnostics.refuse("file " + path,
                         fmt::format("the lock that was held ({}) is now in the hands of {}", describe(lock), *holder),
                         "end that process, or let it give up its lock");
    }
  }
};

}  // namespace

Status capture_locks(CaptureContext& context, const LockedDescriptor& where) {
  for (const auto& found : TRY_IN("look at " + where.subject, kernel::parse_locks(where.info))) {
    const auto kind = kind_of(found.kind);
    const bool owned_by_description = kind && *kind != Kind::posix;
    if (owned_by_description && !where.is_first) continue;
    const auto refuse = [&](std::string advice) {
      context.diagnostics.refuse(where.subject, fmt::format("a lock is held on it ({} {})", found.kind, found.type),
                                 std::move(advice));
    };
    if (!kind) {
      refuse("Delegations and layouts belong to a file server of the kernel: stop that");
      continue;
    }
    if (!context.policy.file_locks) {
      refuse("pass --file-locks, if no process outside of the tree has anything to do with it");
      continue;
    }
    if (*kind == Kind::lease && where.table == nullptr) {
      refuse("A lease on a file in flight cannot be saved: receive the file, or let go of the lease");
      continue;
    }
    model::FileLock lock;
    lock.kind = *kind, lock.type = type_of(found.type), lock.breaking = found.breaking;
    lock.start = found.start, lock.length = found.length, lock.description = where.description;
    if (*kind != Kind::posix) {
      insert(context.application.descriptions.at(where.description).locks, lock);
    } else if (where.table != nullptr) {
      const auto holder = context.host_to_tree.find(found.pid);
      if (holder != context.host_to_tree.end()) lock.holder = Pid{holder->second};
      lock.holder = holder_of(context.application, *where.table, lock);
      insert(where.table->locks, lock);
    }
  }
  return {};
}

Status encode_locks(const model::Application& application, const image::Directory& directory) {
  std::vector<file_lock_entry> entries;
  for (const auto& [id, table] : application.descriptor_tables) {
    for (const auto& lock : table.locks) {
      const auto fd = model::number_of(table, lock.description);
      if (!fd) return fail(Error::internal("save file locks", "one is of a file that is not open there"));
      entries.push_back(record_of(lock));
      entries.back().set_pid(lock.holder.value), entries.back().set_fd(*fd);
    }
  }
  const auto places = model::first_places(application);
  for (const auto& [id, description] : application.descriptions) {
    const auto place = places.find(id);
    for (const auto& lock : description.locks) {
      auto& entry = entries.emplace_back(record_of(lock));
      if (place != places.end()) {
        entry.set_pid(place->second.task->pid.value), entry.set_fd(place->second.fd);
      } else {
        entry.set_pid(0), entry.set_fd(-1), entry.set_description(id.value);
      }
    }
  }
  if (entries.empty()) return {};
  auto writer = TRY(directory.create(image::file_name("filelocks")));
  for (const auto& entry : entries) TRY(writer.append(entry));
  return writer.finish();
}

Status decode_locks(const image::Directory& directory, model::Application& application) {
  auto reader = TRY(directory.find(image::file_name("filelocks")));
  for (file_lock_entry entry; reader && TRY(reader->next(entry));)
    TRY(LockDecoder(entry, reader->where(), application).run());
  return {};
}

const TaskRoom& file_locks_room() {
  static const FileLocksRoom room;
  return room;
}

}  // namespace stasis::resource
