// Images → Application. All values are hostile: what the rooms decode is theirs to check, everything that ties tasks
// and objects together is checked here.
#include <algorithm>
#include <optional>
#include <set>

#include "base/parallel.h"
#include "image/names.h"
#include "model/pid_namespaces.h"
#include "resource/codec.h"
#include "resource/file_locks.h"
#include "resource/inventory.h"
#include "resource/ipc_namespace.h"
#include "resource/pstree.h"
#include "resource/registry.h"
#include "resource/task_state.h"

namespace stasis::resource {
namespace {

using image::file_name;

/// fs.nr_open: no kernel allows a descriptor above it.
constexpr uint32_t descriptor_limit = 1u << 30;
/// ITIMER, uid and such are the rooms' business; a comm is TASK_COMM_LEN.
constexpr size_t name_limit = 15;

std::unexpected<Error> reject(const std::string& file, std::string_view field, std::string cause) {
  return fail(Error::invalid("read checkpoint", std::move(cause), fmt::format("{}, field {}", file, field)));
}

class Decoder {
 public:
  explicit Decoder(const image::Directory& directory) : directory_(directory), files_(directory) {}

  Result<Decoded> run() {
    inventory_ = TRY(read_inventory(directory_));
    TRY(check_images(directory_, inventory_));
    auto tree = TRY(decode_pstree(directory_));
    application_.tasks = std::move(tree.tasks);
    application_.dead_leaders = std::move(tree.dead_leaders);
    application_.root = application_.tasks.front().pid;
    TRY(seccomp());
    TRY(parallel_for(2, [&](size_t step) { return step == 0 ? descriptions() : load_records(); }, 2));
    for (model::Task& task : application_.tasks) TRY_IN(fmt::format("read task {}", task.pid), this->task(task));
    TRY(check_parents());
    if (auto problem = model::PidNamespaces(application_).problem(); !problem.empty())
      return reject("pstree.img", "nested_pids", std::move(problem));
    TRY(check_references());
    TRY(decode_locks(directory_, application_));
    for (const FileRoom* room : file_rooms_in_use(application_))
      TRY_IN("read open files", room->finish_decode(application_));
    TRY(pages());
    return Decoded{std::move(application_), std::move(located_)};
  }

 private:
  Status seccomp() {
    auto reader = TRY(directory_.find(file_name("seccomp")));
    return reader ? reader->single(seccomp_) : Status();
  }

  Status descriptions() {
    TRY(files_.load());
    std::vector<const FileRoom*> rooms;
    for (const image::FileRecord* record : files_.loaded()) rooms.push_back(room_of(*record));
    const auto parts = parts_of_others(rooms);
    // Everybody goes through all descriptions, again and again: they lie side by side if nothing is made between them.
    std::vector<model::OpenDescription*> made(rooms.size());
    for (size_t i = 0; i < rooms.size(); ++i) {
      const uint32_t id = files_.loaded()[i]->id();
      if (!parts.contains(id)) made[i] = TRY(add_description(id));
    }
    for (size_t i = 0; i < rooms.size(); ++i)
      if (made[i] != nullptr) *made[i] = TRY_IN("read open file", description_of(*files_.loaded()[i], rooms[i]));
    return {};
  }

  Result<model::OpenDescription*> add_description(uint32_t id) {
    const auto where = [&] { return fmt::format("files.img, id {}", id); };
    if (id == 0) return reject(where(), "id", "0 is no id");
    auto& all = application_.descriptions;
    const size_t before = all.size();
    // Ids ascend in what we and CRIU write.
    const auto entry = all.emplace_hint(all.end(), ObjectId{id}, model::OpenDescription{});
    if (all.size() == before) return reject(where(), "id", "occurs twice");
    return &entry->second;
  }

  std::set<uint32_t> parts_of_others(std::span<const FileRoom* const> rooms) const {
    std::set<uint32_t> parts;
    for (size_t i = 0; i < rooms.size(); ++i) {
      const image::FileRecord& record = *files_.loaded()[i];
      if (rooms[i] == nullptr) continue;
      for (const uint32_t id : rooms[i]->parts(files_, record))
        if (id != record.id()) parts.insert(id);
    }
    return parts;
  }

  const FileRoom* room_of(const image::FileRecord& record) const {
    const auto rooms = file_rooms();
    const auto room = std::ranges::find_if(rooms, [&](const FileRoom* one) { return one->decodes(files_, record); });
    return room == rooms.end() ? nullptr : *room;
  }

  Result<model::OpenDescription> description_of(const image::FileRecord& record, const FileRoom* room) {
    if (room == nullptr) {
      return fail(Error::unsupported("read open file",
                                     fmt::format("files of type {} cannot be restored", fd_types_Name(record.type())),
                                     fmt::format("files.img, id {}, field type", record.id())));
    }
    auto description = TRY(room->decode(files_, record, application_));
    if (!description.state.value) return fail(Error::internal("read open file", "its room left it empty"));
    description.id = ObjectId{record.id()};
    return description;
  }

  /// What was read of one task, not yet judged. A file that is missing is found missing when it is needed.
  struct Loaded {
    std::vector<core_entry> cores;
    std::optional<task_kobj_ids_entry> ids;
    std::optional<fs_entry> fs;
    std::optional<mm_entry> mm;
  };

  /// A few small files for each task and thread: read on all processors, judged one after the other.
  Status load_records() {
    std::vector<std::function<Status()>> loads;
    const auto load = [&](auto& into, std::string file) {
      loads.push_back([this, &into, file = std::move(file)]() -> Status {
        auto reader = TRY(directory_.find(file));
        return reader ? reader->single(into.emplace()) : Status();
      });
    };
    for (const model::Task& task : application_.tasks) {
      Loaded& loaded = loaded_[task.pid];
      load(loaded.ids, file_name("ids-{}", task.pid.value));
      load(loaded.fs, file_name("fs-{}", task.pid.value));
      load(loaded.mm, file_name("mm-{}", task.pid.value));
      loaded.cores.resize(task.threads.size());
      for (size_t i = 0; i < task.threads.size(); ++i) {
        loads.emplace_back([this, tid = task.threads[i].tid, &core = loaded.cores[i]]() -> Status {
          auto reader = TRY(directory_.read(file_name("core-{}", tid.value)));
          return reader.single(core);
        });
      }
    }
    TRY(parallel_for(loads.size(), [&](size_t index) { return loads[index](); }));
    return load_tables();
  }

  /// Which there are is known only now. CRIU writes no file for an empty table.
  Status load_tables() {
    for (const auto& [pid, loaded] : loaded_)
      if (loaded.ids && loaded.ids->files_id() != 0) tables_[ObjectId{loaded.ids->files_id()}];
    std::vector<std::pair<ObjectId, std::vector<fdinfo_entry>*>> tables;
    for (auto& [id, entries] : tables_) tables.emplace_back(id, &entries);
    return parallel_for(tables.size(), [&](size_t index) -> Status {
      auto reader = TRY(directory_.find(table_file(tables[index].first)));
      for (fdinfo_entry entry; reader && TRY(reader->next(entry));) tables[index].second->push_back(entry);
      return {};
    });
  }
  static std::string table_file(ObjectId table) { return file_name("fdinfo-{}", table.value); }

  /// The record that was loaded from `file`; an error where there was no such file.
  template <typename Record>
  Result<Record> needed(const std::optional<Record>& record, const std::string& file) const {
    if (record) return *record;
    TRY(directory_.read(file));  // says that it is missing
    return fail(Error::conflict("read checkpoint", "it came while the images were read", file));
  }

  Status task(model::Task& task) {
    image::TaskRecords records;
    records.directory = &directory_;
    records.seccomp = &seccomp_;
    records.cores = std::move(loaded_.at(task.pid).cores);
    for (size_t i = 0; i < task.threads.size(); ++i) {
      model::Thread& thread = task.threads[i];
      TRY(check_core(file_name("core-{}", thread.tid.value), records.cores[i], i == 0));
      for (const uint32_t nested : records.cores[i].thread_core().nested_tids())
        thread.nested_tids.push_back(TRY(id(thread, "nested_tids", nested)));
      if (i > 0 && records.cores[i].thread_core().has_childrens_namespace()) {
        const uint32_t init = records.cores[i].thread_core().childrens_namespace();
        thread.childrens_namespace = childrens_namespace_of(TRY(id(thread, "childrens_namespace", init, 0)));
      }
    }
    TRY(process_core(task, records.cores.front()));
    if (task.state == model::TaskState::zombie) return zombie(task);
    TRY(objects(task, records));
    for (const TaskRoom* room : task_rooms())
      TRY_IN(fmt::format("read {}", room->name()), room->decode(records, application_, task));
    return {};
  }

  static Result<pid_t> id(const model::Thread& thread, std::string_view field, uint32_t id, uint32_t lowest = 1) {
    constexpr uint32_t pid_limit = 4u << 20;  // PID_MAX_LIMIT
    if (id < lowest || id > pid_limit)
      return reject(file_name("core-{}", thread.tid.value), fmt::format("thread_core.{}", field),
                    fmt::format("{} cannot be a tid", id));
    return static_cast<pid_t>(id);
  }

  Status check_core(const std::string& file, const core_entry& core, bool leader) {
    if (core.mtype() != core_entry::X86_64)
      return fail(Error::unsupported("read checkpoint",
                                     "the program ran on another architecture: " + core_entry_march_Name(core.mtype()),
                                     file + ", field mtype"));
    if (leader && !core.has_tc()) return reject(file, "tc", "missing, but this is the leader of a process");
    const bool dead = leader && core.tc().task_state() == static_cast<uint32_t>(TaskStateRecord::dead);
    if (!dead && !core.has_thread_core()) return reject(file, "thread_core", "missing");
    const bool ended = leader && core.tc().has_leader_exit_status();
    if (!dead && !ended && !core.has_thread_info())
      return reject(file, "thread_info", "missing: there are no registers");
    if (ended && core.has_thread_info()) return reject(file, "thread_info", "a thread that has ended has no registers");
    return {};
  }

  static Status ended_leader(model::Task& task, const std::string& file, uint32_t status) {
    constexpr std::string_view field = "tc.leader_exit_status";
    if (task.state == model::TaskState::zombie) return reject(file, field, "a zombie has it in tc.exit_code");
    if (task.threads.size() < 2) return reject(file, field, "the process has no other thread to live by");
    if ((status & ~0xff00u) != 0) return reject(file, field, fmt::format("{:#x} is no status of exit(2)", status));
    task.threads.front().exit_status = static_cast<int>(status);
    return {};
  }

  Status process_core(model::Task& task, const core_entry& core) {
    const std::string file = file_name("core-{}", task.pid.value);
    const task_core_entry& tc = core.tc();
    const auto state = state_of(tc.task_state());
    if (!state) return reject(file, "tc.task_state", fmt::format("{} is no state", tc.task_state()));
    task.state = *state;
    task.controlling_terminal = tc.controlling_terminal();
    if (task.state == model::TaskState::zombie) {
      // The kernel keeps 16 bits of an exit status (wait(2)).
      if (tc.exit_code() > 0xffff)
        return reject(file, "tc.exit_code", fmt::format("{:#x} is no exit status", tc.exit_code()));
      task.exit_status = static_cast<int>(tc.exit_code());
      task.name = tc.comm().substr(0, name_limit);
    }
    if (tc.has_leader_exit_status()) TRY(ended_leader(task, file, tc.leader_exit_status()));
    if (task.state == model::TaskState::stopped) {
      // Images of CRIU before 4.0 do not say which signal it was.
      constexpr uint32_t sigstop = 19, sigttou = 22;
      const uint32_t signal = tc.has_stop_signo() ? tc.stop_signo() : sigstop;
      if (signal < sigstop || signal > sigttou)
        return reject(file, "tc.stop_signo", fmt::format("{} stops nobody", signal));
      task.stop_signal = static_cast<int>(signal);
    }
    return {};
  }

  Status zombie(model::Task& task) {
    if (task.pid == application_.root)
      return reject(file_name("core-{}", task.pid.value), "tc.task_state", "the root is a zombie");
    if (task.threads.size() > 1)
      return reject("pstree.img", "threads", fmt::format("the zombie {} has several", task.pid));
    task.threads.clear();
    return {};
  }

  /// What the task shares with others: ids, fs context, descriptor table, address space.
  Status objects(model::Task& task, image::TaskRecords& records) {
    const std::string file = file_name("ids-{}", task.pid.value);
    records.ids = TRY(needed(loaded_.at(task.pid).ids, file));
    const task_kobj_ids_entry& ids = records.ids;
    if (ids.vm_id() == 0) return reject(file, "vm_id", "0 is no id");
    if (ids.files_id() == 0) return reject(file, "files_id", "0 is no id");
    if (ids.fs_id() == 0) return reject(file, "fs_id", "0 is no id");
    if (ids.sighand_id() == 0) return reject(file, "sighand_id", "0 is no id");
    task.address_space = ObjectId{ids.vm_id()};
    task.descriptors = ObjectId{ids.files_id()};
    task.fs = ObjectId{ids.fs_id()};
    task.handlers = ObjectId{ids.sighand_id()};
    TRY(namespaces(task, ids, file));
    TRY(fs_context(task, records));
    TRY(descriptor_table(task));
    return address_space(task, records);
  }

  Status namespaces(const model::Task& task, const task_kobj_ids_entry& ids, const std::string& file) {
    const bool own = TRY(owns_pid_namespace(inventory_, ids, file));
    if (task.pid == application_.root) {
      ipc_namespace_ = ids.ipc_ns_id();
      if (owns_ipc_namespace(inventory_, ids)) TRY(decode_ipc_namespace(directory_, ipc_namespace_, application_));
      if (own && task.pid.value != 1)
        return reject(file, "pid_ns_id", "the tree has a pid namespace of its own, but its root is not pid 1");
      application_.root_is_namespace_init = own;
    } else if (ids.ipc_ns_id() != ipc_namespace_) {
      return fail(Error::unsupported("read checkpoint", "the task is in another IPC namespace than the root",
                                     file + ", field ipc_ns_id"));
    } else if (task.nested_pids.empty() && own != application_.root_is_namespace_init) {
      return fail(Error::unsupported("read checkpoint", "the task is in another pid namespace than the root",
                                     file + ", field pid_ns_id"));
    }
    return {};
  }

  /// One record for all sharers would do, but CRIU writes one for each task.
  Status fs_context(const model::Task& task, image::TaskRecords& records) {
    const std::string file = file_name("fs-{}", task.pid.value);
    const auto& record = loaded_.at(task.pid).fs;
    if (!record && application_.fs_contexts.contains(task.fs)) return {};
    records.fs = TRY(needed(record, file));
    TRY(expect_description(ObjectId{records.fs.cwd_id()}, file, "cwd_id"));
    return expect_description(ObjectId{records.fs.root_id()}, file, "root_id");
  }

  Status descriptor_table(const model::Task& task) {
    if (application_.descriptor_tables.contains(task.descriptors)) return {};
    model::DescriptorTable& table = application_.descriptor_tables[task.descriptors];
    table.id = task.descriptors;
    auto next = application_.descriptions.begin();  // mostly ids ascend with the numbers
    for (size_t index = 0; const fdinfo_entry& entry : tables_.at(task.descriptors)) {
      const auto where = [&, record = index++] {
        return fmt::format("{}, record {}", table_file(task.descriptors), record);
      };
      if (entry.fd() >= descriptor_limit) return reject(where(), "fd", fmt::format("{} is no descriptor", entry.fd()));
      const ObjectId id{entry.id()};
      if (next == application_.descriptions.end() || next->first != id) next = application_.descriptions.find(id);
      if (next == application_.descriptions.end()) return expect_description(id, where(), "id");
      ++next;
      const size_t before = table.slots.size();
      table.slots.emplace_hint(table.slots.end(), static_cast<int>(entry.fd()),
                               model::Descriptor{id, (entry.flags() & 1) != 0});
      if (table.slots.size() == before) return reject(where(), "fd", fmt::format("{} occurs twice", entry.fd()));
    }
    return {};
  }

  /// The record of the first task that has the address space stands for all of them.
  Status address_space(const model::Task& task, image::TaskRecords& records) {
    const auto [first, fresh] = spaces_.emplace(task.address_space, task.pid);
    const std::string file = file_name("mm-{}", first->second.value);
    records.mm = TRY(needed(loaded_.at(first->second).mm, file));
    if (!fresh) return {};
    return expect_description(ObjectId{records.mm.exe_file_id()}, file, "exe_file_id");
  }

  Status expect_description(ObjectId id, const std::string& where, std::string_view field) {
    if (application_.descriptions.contains(id)) return {};
    return reject(where, field, fmt::format("{} is not in files.img", id));
  }

  /// The pages of one address space or segment.
  struct Stored {
    ObjectId id;
    std::string suffix;                 ///< of its pagemap
    std::vector<AddressRange> allowed;  ///< ascending, disjoint
    bool may_be_missing = false;        ///< CRIU writes none for shared memory without pages
    bool exists = false;
    std::vector<memory::StoredRun> runs;
  };

  /// Which pages there are, and where they lie.
  Status pages() {
    std::vector<Stored> all;
    for (const auto& [id, owner] : address_space_owners(application_)) {
      Stored stored{.id = id, .suffix = std::to_string(owner.value)};
      for (const model::Mapping& mapping : application_.address_spaces.at(id).mappings)
        stored.allowed.push_back(mapping.range);
      all.push_back(std::move(stored));
    }
    for (const auto& [id, segment] : application_.shared_memories)
      all.push_back(
          {.id = id, .suffix = fmt::format("shmem-{}", id), .allowed = {{0, segment.size}}, .may_be_missing = true});
    TRY(parallel_for(all.size(), [&](size_t index) { return read_runs(all[index]); }));
    for (const Stored& stored : all)
      if (stored.exists) locate(stored);
    return {};
  }

  Status read_runs(Stored& stored) const {
    stored.exists = directory_.has(file_name("pagemap-" + stored.suffix));
    if (!stored.exists && stored.may_be_missing) return {};
    stored.runs = TRY(memory::read_pagemap(directory_, stored.suffix));
    auto here = stored.allowed.begin();
    for (const memory::StoredRun& run : stored.runs) {
      for (uint64_t at = run.range.begin; at < run.range.end; at = here->end) {
        while (here != stored.allowed.end() && here->end <= at) ++here;
        if (here == stored.allowed.end() || here->begin > at) {
          return reject(file_name("pagemap-" + stored.suffix), "vaddr",
                        fmt::format("there is a page for {:#x}, where nothing is mapped", at));
        }
      }
    }
    return {};
  }

  void locate(const Stored& stored) {
    const auto space = application_.address_spaces.find(stored.id);
    auto& locations = located_[stored.id];
    for (const memory::StoredRun& run : stored.runs) {
      if (run.zero) continue;
      std::string file = run.elsewhere ? "" : file_name("pages-{}", run.pages_id);
      if (!run.directory.empty()) file = run.directory + (run.directory.ends_with('/') ? "" : "/") + file;
      locations.push_back({run.range, run.shared_with_parent, std::move(file), run.file_offset, run.through_stasis});
      if (space != application_.address_spaces.end())
        space->second.pages.push_back({.range = run.range, .shared_with_parent = run.shared_with_parent});
    }
  }

  Status check_parents() {
    const model::TaskIndex tasks(application_);
    for (const model::Task& task : application_.tasks) {
      const model::Task* parent = tasks.find(task.parent);
      if (parent && parent->state == model::TaskState::zombie)
        return reject("pstree.img", "ppid", fmt::format("{} is a child of the zombie {}", task.pid, task.parent));
    }
    return {};
  }

  Status check_references() {
    for (const model::Task& task : application_.tasks) {
      if (task.state == model::TaskState::zombie) continue;
      if (!application_.address_spaces.contains(task.address_space))
        return reject(file_name("ids-{}", task.pid.value), "vm_id", "no address space was read for it");
      if (!application_.signal_handlers.contains(task.handlers))
        return reject(file_name("ids-{}", task.pid.value), "sighand_id", "no signal handlers were read for it");
      if (!application_.fs_contexts.contains(task.fs))
        return reject(file_name("ids-{}", task.pid.value), "fs_id", "no fs context was read for it");
    }
    const auto owners = address_space_owners(application_);
    for (const auto& [id, owner] : owners)
      for (const model::Mapping& mapping : application_.address_spaces.at(id).mappings)
        TRY(check_mapping(owner, mapping));
    return {};
  }

  Status check_mapping(Pid owner, const model::Mapping& mapping) {
    const std::string where = fmt::format("{}, mapping {:#x}", file_name("mm-{}", owner.value), mapping.range.begin);
    if (mapping.file.value != 0) TRY(expect_description(mapping.file, where, "vmas.shmid"));
    if (mapping.shared_memory.value != 0 && !application_.shared_memories.contains(mapping.shared_memory))
      return reject(where, "vmas.shmid", fmt::format("there is no segment {}", mapping.shared_memory));
    return {};
  }

  const image::Directory& directory_;
  image::FileRecords files_;
  model::Application application_;
  inventory_entry inventory_;
  uint32_t ipc_namespace_ = 0;  // the root's
  seccomp_entry seccomp_;
  std::map<ObjectId, Pid> spaces_;  // who has it first
  std::map<Pid, Loaded> loaded_;
  std::map<ObjectId, std::vector<fdinfo_entry>> tables_;
  std::map<ObjectId, std::vector<plan::PageLocation>> located_;
};

}  // namespace

Result<Decoded> decode(const image::Directory& directory) { return Decoder(directory).run(); }

}  // namespace stasis::resource
