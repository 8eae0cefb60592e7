#include "resource/system_v.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel/huge_pages.h"
#include "resource/ipc_namespace.h"

namespace stasis::resource {
namespace {

using model::SystemVSegment;
using plan::call;
using plan::ResultOf;

constexpr uint32_t destroyed_bit = 01000, locked_bit = 02000;  ///< of the mode: SHM_DEST and SHM_LOCKED
constexpr uint32_t permissions = 0777;
constexpr const char* next_id = "kernel/shm_next_id";

SystemVSegment segment_of(int id, const shmid_ds& found) {
  const auto& perm = found.shm_perm;
  SystemVSegment segment;
  segment.id = id, segment.key = perm.__key, segment.size = found.shm_segsz;
  segment.uid = perm.uid, segment.gid = perm.gid, segment.mode = perm.mode & permissions;
  segment.destroyed = (perm.mode & destroyed_bit) != 0, segment.locked = (perm.mode & locked_bit) != 0;
  segment.found = found.shm_nattch == 0 ? SystemVSegment::Found::unused : SystemVSegment::Found::in_use;
  return segment;
}

std::string describe(const SystemVSegment& segment) {
  return fmt::format("System V segment {} (key {:#x}, {} bytes)", segment.id, static_cast<uint32_t>(segment.key),
                     segment.size);
}

class SystemVRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "System V memory"; }

  Status decode(const image::TaskRecords&, model::Application& application, model::Task& task) const override {
    if (has_own_ipc_namespace(application)) return {};  // a new one is empty
    for (const auto& mapping : application.address_spaces.at(task.address_space).mappings) {
      const auto memory = application.shared_memories.find(mapping.shared_memory);
      if (memory == application.shared_memories.end() || !memory->second.system_v) continue;
      const auto found = look_at_segment(memory->second.system_v->id);
      memory->second.system_v->found = found ? found->found : SystemVSegment::Found::missing;
    }
    return {};
  }

  void validate(const model::Application& application, const model::Task& task,
                Diagnostics& diagnostics) const override {
    if (task.pid != application.root || has_own_ipc_namespace(application)) return;  // once is enough
    for (const auto& [id, memory] : application.shared_memories) {
      if (!memory.system_v) continue;
      const auto& wanted = *memory.system_v;
      const auto refuse = [&](std::string problem, std::string advice) {
        diagnostics.refuse(describe(wanted), std::move(problem), std::move(advice));
      };
      if (const auto found = look_at_segment(wanted.id)) {
        if (*found != wanted)
          refuse("another segment has that id, or it has been changed since", "remove that (ipcrm -m)");
        continue;
      }
      const int holder = wanted.key == IPC_PRIVATE ? -1 : shmget(wanted.key, 0, 0);
      if (holder >= 0 || (wanted.key != IPC_PRIVATE && errno != ENOENT))
        refuse("its key is taken by another segment", "remove that (ipcrm -M)");
      else if (access(sysctl_path(next_id).c_str(), W_OK) != 0)
        refuse("it is gone, and its id cannot be chosen", "that needs CAP_CHECKPOINT_RESTORE");
    }
  }

  void leftovers(const model::Application& application, std::vector<Leftover>& found) const override {
    if (has_own_ipc_namespace(application)) return;  // it has gone with the tree
    for (const auto& [id, memory] : application.shared_memories) {
      if (!memory.system_v || memory.system_v->destroyed) continue;
      const auto now = look_at_segment(memory.system_v->id);
      if (!now || *now != *memory.system_v) continue;
      found.push_back({describe(*now), fmt::format("ipcrm -m {}; a restore makes it again", now->id)});
    }
  }

  void contribute(plan::Stage stage, const model::Application& application, plan::Sink& sink) const override {
    for (const auto& [id, memory] : application.shared_memories) {
      if (!memory.system_v || memory.system_v->found != SystemVSegment::Found::missing) continue;
      if (stage == plan::Stage::prepare) create_segment(*memory.system_v, sink);
      if (stage == plan::Stage::settle) settle(*memory.system_v, sink);
    }
  }

 private:
  /// A segment that is to go with its last user is destroyed once all have attached it; any if the restore fails.
  static void settle(const SystemVSegment& segment, plan::Sink& sink) {
    sink.undo("destroy " + describe(segment), std::string(segment.destroyed ? "" : plan::only_on_failure),
              {call(plan::Call::remove_segment, segment.id)}, describe(segment));
  }
};

}  // namespace

Result<SystemVSegment> look_at_segment(int id) {
  shmid_ds found{};
  if (shmctl(id, IPC_STAT, &found) != 0) return fail_errno("shmctl", fmt::format("System V segment {}", id));
  return segment_of(id, found);
}

std::string sysctl_path(const std::string& variable) { return "/proc/sys/" + variable; }

void write_variable(const std::string& variable, const std::string& value, plan::Calls& calls) {
  calls.push_back(call(SYS_openat, AT_FDCWD, plan::text(sysctl_path(variable)), O_WRONLY | O_CLOEXEC, 0));
  calls.push_back(call(SYS_write, ResultOf{-1}, plan::text(value), value.size()));
  calls.push_back(call(SYS_close, ResultOf{-2}));
}

void create_segment(const SystemVSegment& segment, plan::Sink& sink) {
  shmid_ds owner{};
  owner.shm_perm.uid = segment.uid, owner.shm_perm.gid = segment.gid;
  owner.shm_perm.mode = static_cast<unsigned short>(segment.mode);
  const uint32_t flags =
      segment.mode | IPC_CREAT | IPC_EXCL | kernel::huge_page_flags(segment.huge_page_order, SHM_HUGETLB);
  plan::Calls calls{call(plan::Call::make_segment, segment.id, segment.key, segment.size, flags,
                         plan::text(sysctl_path(next_id)), plan::text(fmt::format("{}", segment.id)))};
  calls.push_back(call(SYS_shmctl, segment.id, IPC_SET, plan::struct_in(owner)));
  if (segment.locked) calls.push_back(call(SYS_shmctl, segment.id, SHM_LOCK, 0));
  sink.perform(describe(segment), "", std::move(calls));
}

ipc_desc_entry describe_ipc(int32_t id, int32_t key, uint32_t uid, uint32_t gid, uint32_t mode) {
  ipc_desc_entry desc;
  desc.set_key(static_cast<uint32_t>(key)), desc.set_id(static_cast<uint32_t>(id));
  desc.set_uid(uid), desc.set_gid(gid), desc.set_cuid(uid), desc.set_cgid(gid), desc.set_mode(mode);
  return desc;
}

void encode_system_v(const SystemVSegment& segment, ipc_shm_entry& entry) {
  const uint32_t flags = (segment.destroyed ? destroyed_bit : 0) | (segment.locked ? locked_bit : 0);
  *entry.mutable_desc() = describe_ipc(segment.id, segment.key, segment.uid, segment.gid, segment.mode | flags);
  entry.set_size(segment.size);
  if (segment.huge_page_order != 0)
    entry.set_hugetlb_flag(kernel::huge_page_flags(segment.huge_page_order, SHM_HUGETLB));
}

Result<SystemVSegment> decode_system_v(const ipc_shm_entry& entry, const std::string& where) {
  const auto& desc = entry.desc();
  const auto reject = [&](std::string_view field, std::string cause) {
    return fail(Error::invalid("read mapping", std::move(cause), fmt::format("{}, field system_v.{}", where, field)));
  };
  constexpr uint64_t largest = uint64_t{1} << 46;  // user space
  if (desc.id() > INT32_MAX) return reject("desc.id", fmt::format("{} is no id", desc.id()));
  if ((desc.mode() & ~(permissions | destroyed_bit | locked_bit)) != 0)
    return reject("desc.mode", fmt::format("{:#o} is no mode", desc.mode()));
  if (entry.size() == 0 || entry.size() > largest)
    return reject("size", fmt::format("{} is no size of a segment", entry.size()));
  SystemVSegment segment;
  segment.id = static_cast<int32_t>(desc.id()), segment.key = static_cast<int32_t>(desc.key());
  segment.size = entry.size(), segment.uid = desc.uid(), segment.gid = desc.gid();
  segment.mode = desc.mode() & permissions;
  segment.destroyed = (desc.mode() & destroyed_bit) != 0, segment.locked = (desc.mode() & locked_bit) != 0;
  const auto order = kernel::huge_page_order_of(entry.hugetlb_flag(), SHM_HUGETLB);
  if (!order) return reject("hugetlb_flag", fmt::format("{:#x} is no size of pages", entry.hugetlb_flag()));
  segment.huge_page_order = *order;
  return segment;
}

const TaskRoom& system_v_room() {
  static const SystemVRoom room;
  return room;
}

}  // namespace stasis::resource
