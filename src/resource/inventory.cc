#include "resource/inventory.h"

#include <time.h>

#include <algorithm>
#include <array>

#include "image/encryption.h"
#include "image/names.h"
#include "memory/filter/filter.h"
#include "namespaces.pb.h"
#include "resource/ipc_namespace.h"

namespace stasis::resource {
namespace {

constexpr const char* file = "inventory.img";
/// CRIU's layout since 1.3: a common magic in front of every file.
constexpr uint32_t image_version = 2;
/// Of images that CRIU would misread: it refuses versions that it does not know before it creates anybody.
constexpr uint32_t version_beyond_criu = 1000;

/// CRIU knows no thread that has ended: it would bring it back to life. And for CRIU a task is either in the root's pid
/// namespace or in stasis': it would restore those in nested ones, but outside of them. Of an IPC namespace it takes
/// segments that are attached from the namespace's own images, where ours are not.
bool is_beyond_criu(const model::Application& application) {
  return has_own_ipc_namespace(application) || std::ranges::any_of(application.tasks, [](const model::Task& task) {
           return task.leader_has_ended() || !task.nested_pids.empty();
         });
}

// Ids mean nothing but equality. An id that differs from the inventory's makes the namespace the tree's own.
enum NamespaceId : uint32_t {
  pid_ns = 1,
  net_ns,
  ipc_ns,
  uts_ns,
  time_ns,
  mnt_ns,
  user_ns,
  cgroup_ns,
  own_pid_ns,
  own_ipc_ns
};

void set_inherited(task_kobj_ids_entry& ids) {
  ids.set_pid_ns_id(pid_ns);
  ids.set_net_ns_id(net_ns);
  ids.set_ipc_ns_id(ipc_ns);
  ids.set_uts_ns_id(uts_ns);
  ids.set_time_ns_id(time_ns);
  ids.set_mnt_ns_id(mnt_ns);
  ids.set_user_ns_id(user_ns);
  ids.set_cgroup_ns_id(cgroup_ns);
}

struct Namespace {
  std::string_view name;
  bool (task_kobj_ids_entry::*has)() const;
  uint32_t (task_kobj_ids_entry::*id)() const;

  bool differs(const task_kobj_ids_entry& ours, const task_kobj_ids_entry& theirs) const {
    return (ours.*has)() && (theirs.*has)() && (ours.*id)() != (theirs.*id)();
  }
};

#define STASIS_NAMESPACE(name) \
  Namespace { #name, &task_kobj_ids_entry::has_##name##_ns_id, &task_kobj_ids_entry::name##_ns_id }
constexpr std::array inherited_namespaces{STASIS_NAMESPACE(net),  STASIS_NAMESPACE(uts),    STASIS_NAMESPACE(mnt),
                                          STASIS_NAMESPACE(user), STASIS_NAMESPACE(cgroup), STASIS_NAMESPACE(time)};
constexpr Namespace pid_namespace = STASIS_NAMESPACE(pid), ipc_namespace = STASIS_NAMESPACE(ipc);
#undef STASIS_NAMESPACE

}  // namespace

Result<inventory_entry> read_inventory(const image::Directory& directory) {
  if (!directory.has(file))
    return fail(Error::invalid("read checkpoint",
                               "there is no inventory.img: not a checkpoint, or one that was never completed",
                               directory.path())
                    .advise("name the directory of a completed dump with -D"));
  auto reader = TRY(directory.read(file));
  inventory_entry inventory;
  TRY(reader.single(inventory));
  if (inventory.img_version() != image_version && inventory.img_version() != version_beyond_criu)
    return fail(Error::unsupported("read checkpoint",
                                   fmt::format("images are of version {}, but only versions {} and {} can be read",
                                               inventory.img_version(), image_version, version_beyond_criu),
                                   "inventory.img, field img_version"));
  if (inventory.has_pre_dump_mode())
    return fail(Error::invalid("read checkpoint", "these are the images of a pre-dump: memory alone", directory.path())
                    .advise("name the directory of the dump that has them as its parent"));
  if (!inventory.fdinfo_per_id())
    return fail(Error::unsupported("read checkpoint", "images without shared descriptor tables are too old",
                                   "inventory.img, field fdinfo_per_id"));
  TRY(memory::known_filters(inventory.page_filters(), "inventory.img"));
  return inventory;
}

Status check_images(const image::Directory& directory, const inventory_entry& inventory) {
  if (inventory.images().empty()) return {};  // of CRIU
  const auto found = TRY(directory.list());
  for (const auto& name : inventory.images()) {
    if (!image::parse_name(name))
      return fail(Error::invalid("read checkpoint", "a name that no image has", "inventory.img, field images"));
    if (!std::ranges::binary_search(found, name))
      return fail(Error::invalid("read checkpoint", "it is missing, and was there when the dump was completed", name)
                      .advise("copy the whole directory of images"));
  }
  return {};
}

void set_round(inventory_entry& inventory, const std::string& round) {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  inventory.set_dump_uptime(static_cast<uint64_t>(now.tv_sec) * 1'000'000 + static_cast<uint64_t>(now.tv_nsec) / 1000);
  if (!round.empty()) inventory.set_tracking_round(round);
}

Status commit_pre_dump(const image::Directory& directory, uint32_t mode, const std::string& round) {
  auto inventory = make_inventory({});
  set_storage(directory, inventory);
  inventory.set_pre_dump_mode(mode);
  set_round(inventory, round);
  return directory.commit(inventory);
}

Result<std::string> round_of(const image::Directory& directory) {
  auto reader = TRY(directory.read(file));
  inventory_entry inventory;
  TRY(reader.single(inventory));
  return inventory.tracking_round();
}

inventory_entry make_inventory(const model::Application& application) {
  inventory_entry inventory;
  inventory.set_img_version(is_beyond_criu(application) ? version_beyond_criu : image_version);
  inventory.set_fdinfo_per_id(true);
  inventory.set_ns_per_id(true);
  // Object ids of tasks begin at 1: none is ever equal to the dumper's, so nothing is shared with it but namespaces.
  auto& ids = *inventory.mutable_root_ids();
  ids.set_vm_id(0);
  ids.set_files_id(0);
  ids.set_fs_id(0);
  ids.set_sighand_id(0);
  set_inherited(ids);
  inventory.set_lsmtype(NO_LSM);
  inventory.set_network_lock_method(0);
  inventory.mutable_plugins_entry();  // present and empty: no plugin is needed
  return inventory;
}

Status set_images(const image::Directory& directory, inventory_entry& inventory) {
  for (auto& name : TRY(directory.list())) {
    const auto parsed = image::parse_name(name);
    if (parsed && !parsed->kind->service && name != file) inventory.add_images(std::move(name));
  }
  return {};
}

void set_storage(const image::Directory& directory, inventory_entry& inventory) {
  for (const memory::FilterKind* filter : memory::filters_of(directory)) {
    auto& entry = *inventory.add_page_filters();
    entry.set_name(std::string(filter->name));
    entry.set_version(filter->version);
  }
  if (directory.encryption()) *inventory.mutable_encryption() = directory.encryption()->entry();
  if (inventory.page_filters_size() != 0 || inventory.has_encryption()) inventory.set_img_version(version_beyond_criu);
}

void set_namespaces(const model::Application& application, const model::Task& task, task_kobj_ids_entry& ids) {
  set_inherited(ids);
  if (application.root_is_namespace_init) ids.set_pid_ns_id(own_pid_ns);
  if (has_own_ipc_namespace(application)) ids.set_ipc_ns_id(own_ipc_ns);
  // Above all of the others.
  if (task.pid_namespace.value != 0) ids.set_pid_ns_id(own_pid_ns + static_cast<uint32_t>(task.pid_namespace.value));
}

Status write_clocks(const image::Directory& directory) {
  timens_entry entry;
  const auto read = [](clockid_t clock, time_offset_entry& into) {
    timespec now{};
    clock_gettime(clock, &now);
    into.set_tv_sec(static_cast<uint64_t>(now.tv_sec)), into.set_tv_nsec(static_cast<uint64_t>(now.tv_nsec));
  };
  read(CLOCK_MONOTONIC, *entry.mutable_monotonic());
  read(CLOCK_BOOTTIME, *entry.mutable_boottime());
  auto writer = TRY(directory.create(image::file_name("timens-{}", 0)));
  TRY(writer.append(entry));
  return writer.finish();
}

uint32_t namespace_id(const task_kobj_ids_entry& ids, std::string_view kind) {
  for (const Namespace& own : {pid_namespace, ipc_namespace})
    if (kind == own.name) return (ids.*own.id)();
  const auto found = std::ranges::find(inherited_namespaces, kind, &Namespace::name);
  return found == inherited_namespaces.end() ? 0 : (ids.*found->id)();
}

Result<bool> owns_pid_namespace(const inventory_entry& inventory, const task_kobj_ids_entry& root,
                                const std::string& where) {
  for (const Namespace& space : inherited_namespaces)
    if (space.differs(inventory.root_ids(), root))
      return fail(Error::unsupported("read checkpoint",
                                     fmt::format("the tree has a {} namespace of its own", space.name),
                                     fmt::format("{}, field {}_ns_id", where, space.name))
                      .advise("restore it with criu, which wrote these images"));
  return pid_namespace.differs(inventory.root_ids(), root);
}

bool owns_ipc_namespace(const inventory_entry& inventory, const task_kobj_ids_entry& root) {
  return ipc_namespace.differs(inventory.root_ids(), root);
}

}  // namespace stasis::resource
