#include "resource/codec.h"

#include <algorithm>
#include <functional>
#include <mutex>
#include <set>

#include "base/parallel.h"
#include "image/names.h"
#include "resource/file_locks.h"
#include "resource/inventory.h"
#include "resource/pstree.h"
#include "resource/registry.h"
#include "resource/task_state.h"

namespace stasis::resource {
namespace {

using image::file_name;

Status write_single(const image::Directory& directory, const std::string& name,
                    const google::protobuf::Message& record) {
  auto writer = TRY(directory.create(name));
  TRY(writer.append(record));
  return writer.finish();
}

/// Tells how far a transfer is.
class Meter {
 public:
  using Progress = std::function<void(uint64_t done, uint64_t total)>;
  Meter(const Progress& progress, uint64_t total) : progress_(progress), total_(total) {}
  void add(uint64_t bytes) {
    if (!progress_) return;
    const std::lock_guard lock(mutex_);
    progress_(done_ += bytes, total_);
  }

 private:
  const Progress& progress_;
  std::mutex mutex_;  // pages are read by several threads
  uint64_t done_ = 0, total_;
};

class MeteredPages : public memory::PageSource {
 public:
  MeteredPages(memory::PageSource& source, Meter& meter) : source_(source), meter_(meter) {}
  Status read(uint64_t address, std::span<uint8_t> buffer) override {
    TRY(source_.read(address, buffer));
    meter_.add(buffer.size());
    return {};
  }
  Status read_ranges(std::span<const AddressRange> ranges, std::span<uint8_t> buffer) override {
    TRY(source_.read_ranges(ranges, buffer));
    meter_.add(buffer.size());
    return {};
  }

 private:
  memory::PageSource& source_;
  Meter& meter_;
};

class Encoder {
 public:
  Encoder(const model::Application& application, ApplicationMemory& memory, const image::Directory& directory,
          const EncodeOptions& options)
      : application_(application), memory_(memory), directory_(directory), options_(options), files_(directory) {}

  Result<EncodeStats> run() {
    auto all = TRY(segments());
    for (Segment& segment : all)
      TRY_IN("compare memory " + segment.suffix + " with the parent images", reduce(segment));
    for (Segment& segment : all) leave_out(segment);
    uint64_t total = 0;
    for (const Segment& segment : all) total += memory::total_size(segment.runs);
    Meter meter(options_.progress, total);
    const auto kept = std::ranges::stable_partition(all, [](const Segment& segment) { return !segment.kept; });
    const std::span<Segment> fleeting(all.begin(), kept.begin());
    TRY(records_and(fleeting, meter));
    if (options_.only_kept_memory_is_left) TRY(options_.only_kept_memory_is_left(stats_));
    TRY(pages(kept, meter));
    return stats_;
  }

 private:
  struct Segment {
    std::string suffix;
    std::vector<model::PageRun> runs;
    std::unique_ptr<memory::PageSource> source;
    bool shared = false, kept = false;
    std::vector<AddressRange> unchanged;
    ObjectId space;  ///< of private memory
    std::vector<model::PageRun> in_parent, left_out;
    uint32_t pages_id = 0;
  };

  static bool is_large(const Segment& segment) {
    return memory::total_size(segment.runs) >= memory::parallel_copy_from;
  }

  /// Memory and records have nothing to do with each other: they are saved side by side. But where several threads copy
  /// a memory they keep the processors busy, and a further one would only make one of them wait.
  Status records_and(std::span<Segment> memory, Meter& meter) {
    if (std::ranges::any_of(memory, is_large)) {
      TRY(records());
      TRY(pages(memory, meter));
    } else {
      TRY(parallel_for(2, [&](size_t step) { return step == 0 ? records() : pages(memory, meter); }, 2));
    }
    stats_.shared_pages_scanned += files_.pages_written;
    stats_.shared_pages_written += files_.pages_written;
    return {};
  }

  Status records() {
    TRY(encode_pstree(application_, directory_));
    TRY(descriptions());
    TRY(descriptor_tables());
    TRY(encode_locks(application_, directory_));
    TRY(tasks());
    TRY(write_single(directory_, file_name("seccomp"), seccomp_));
    return files_.finish();
  }

  Status descriptions() {
    for (const auto& [id, description] : application_.descriptions) {
      const std::string_view kind = description.state.value ? description.state.value->kind() : "nothing";
      const FileRoom* room = file_room(kind);
      if (!room)
        return fail(Error::internal("save open file", fmt::format("there is no room for the kind '{}'", kind)));
      TRY_IN("save open file " + description.state.value->describe(), room->encode(application_, description, files_));
    }
    for (const image::FileRecord& record : files_.files) types_.emplace(record.id(), record.type());
    return {};
  }

  Status descriptor_tables() {
    for (const auto& [id, table] : application_.descriptor_tables) {
      auto writer = TRY(directory_.create(file_name("fdinfo-{}", id.value)));
      for (const auto& [number, slot] : table.slots) {
        const auto type = types_.find(slot.description.value);
        if (type == types_.end())
          return fail(Error::internal(
              "save descriptor table",
              fmt::format("descriptor {} refers to {}, which no room has saved", number, slot.description)));
        fdinfo_entry entry;
        entry.set_id(slot.description.value);
        entry.set_flags(slot.close_on_exec ? 1 : 0);
        entry.set_type(type->second);
        entry.set_fd(static_cast<uint32_t>(number));
        TRY(writer.append(entry));
      }
      TRY(writer.finish());
    }
    return {};
  }

  core_entry leader_core(const model::Task& task, const std::string& name) {
    core_entry core;
    core.set_mtype(core_entry::X86_64);
    auto& tc = *core.mutable_tc();
    tc.set_task_state(static_cast<uint32_t>(record_of(task.state)));
    tc.set_exit_code(task.state == model::TaskState::zombie ? static_cast<uint32_t>(task.exit_status) : 0);
    tc.set_personality(0);
    tc.set_flags(0);
    tc.set_blk_sigset(0);
    tc.set_comm(name);
    if (task.state == model::TaskState::stopped && task.stop_signal)
      tc.set_stop_signo(static_cast<uint32_t>(task.stop_signal));
    if (task.controlling_terminal) tc.set_controlling_terminal(task.controlling_terminal);
    if (task.leader_has_ended()) tc.set_leader_exit_status(static_cast<uint32_t>(*task.threads.front().exit_status));
    return core;
  }

  /// Records are made one task after the other, because rooms share some (seccomp chains), and written all at once:
  /// creating thousands of small files is most of the work.
  Status tasks() {
    for (const model::Task& task : application_.tasks) {
      if (task.state == model::TaskState::zombie)
        keep(file_name("core-{}", task.pid.value), leader_core(task, task.name));
      else
        TRY_IN(fmt::format("save task {}", task.pid), live(task));
    }
    TRY(parallel_for(images_.size(), [&](size_t index) {
      const auto record = std::move(images_[index].record);  // freed here, by as many
      return write_single(directory_, images_[index].name, *record);
    }));
    images_.clear();
    return {};
  }

  struct Image {
    std::string name;
    std::unique_ptr<google::protobuf::Message> record;
  };
  template <typename Record>
  void keep(std::string name, Record&& record) {
    images_.push_back({std::move(name), std::make_unique<std::remove_cvref_t<Record>>(std::forward<Record>(record))});
  }

  Status live(const model::Task& task) {
    if (task.threads.empty()) return fail(Error::internal("save task", "it has no threads"));
    image::TaskRecords records;
    records.directory = &directory_;
    records.seccomp = &seccomp_;
    set_ids(task, records.ids);
    for (const model::Thread& thread : task.threads) {
      core_entry core;
      if (records.cores.empty()) core = leader_core(task, thread.name);
      core.set_mtype(core_entry::X86_64);
      for (const pid_t nested : thread.nested_tids)
        core.mutable_thread_core()->add_nested_tids(static_cast<uint32_t>(nested));
      if (thread.childrens_namespace.value != 0 && thread.tid != leader_of(task.pid))
        core.mutable_thread_core()->set_childrens_namespace(childrens_namespace_field(thread));
      records.cores.push_back(std::move(core));
    }
    for (const TaskRoom* room : task_rooms())
      TRY_IN(fmt::format("save {}", room->name()), room->encode(application_, task, records));
    keep_all(task, std::move(records));
    return {};
  }

  void set_ids(const model::Task& task, task_kobj_ids_entry& ids) {
    ids.set_vm_id(task.address_space.value);
    ids.set_files_id(task.descriptors.value);
    ids.set_fs_id(task.fs.value);
    ids.set_sighand_id(task.handlers.value);
    set_namespaces(application_, task, ids);
  }

  void keep_all(const model::Task& task, image::TaskRecords records) {
    for (size_t i = 0; i < records.cores.size(); ++i)
      keep(file_name("core-{}", task.threads[i].tid.value), std::move(records.cores[i]));
    keep(file_name("ids-{}", task.pid.value), std::move(records.ids));
    keep(file_name("fs-{}", task.pid.value), std::move(records.fs));
    if (spaces_.insert(task.address_space).second) keep(file_name("mm-{}", task.pid.value), std::move(records.mm));
  }

  Result<std::vector<Segment>> segments() {
    std::vector<Segment> all;
    for (const auto& [id, owner] : address_space_owners(application_)) {
      const auto space = application_.address_spaces.find(id);
      if (space == application_.address_spaces.end())
        return fail(Error::internal("save memory", "an address space is missing"));
      all.push_back({std::to_string(owner.value), space->second.pages, TRY(memory_.address_space(id)), false,
                     memory_.is_kept(id), memory_.unchanged(id), id});
    }
    for (const auto& [id, segment] : application_.shared_memories)
      all.push_back({fmt::format("shmem-{}", id), TRY(memory_.shared_memory_runs(segment)),
                     TRY(memory_.shared_memory(id)), true, false});
    for (uint32_t index = 0; index < all.size(); ++index) all[index].pages_id = index + 1;
    return all;
  }

  /// Takes out what the parent images hold.
  Status reduce(Segment& segment) {
    if (options_.parent == nullptr) return {};
    memory::Increment increment;
    if (segment.shared) {
      increment = TRY(memory::compare_with(*options_.parent, segment.suffix, segment.runs, *segment.source));
    } else if (const auto* stored = TRY(options_.parent->stored(segment.suffix))) {
      increment = memory::increment_of(segment.runs, segment.unchanged, *stored);
    } else {
      return {};
    }
    (segment.shared ? stats_.shared_pages_in_parent : stats_.pages_in_parent) +=
        memory::total_size(increment.in_parent) / page_size;
    (segment.shared ? stats_.shared_pages_scanned : stats_.pages_scanned) +=
        memory::total_size(increment.in_parent) / page_size;
    segment.runs = std::move(increment.changed);
    segment.in_parent = std::move(increment.in_parent);
    return {};
  }

  void leave_out(Segment& segment) {
    const auto ranges = options_.left_out.find(segment.space);
    if (segment.shared || ranges == options_.left_out.end()) return;
    auto [kept, left_out] = memory::split(segment.runs, ranges->second);
    segment.runs = std::move(kept), segment.left_out = std::move(left_out);
    stats_.pages_left_out += memory::total_size(segment.left_out) / page_size;
  }

  /// Many small memories are saved side by side; a large one is itself copied by several threads.
  Status pages(std::span<Segment> all, Meter& meter) {
    std::mutex mutex;
    const auto save = [&](Segment& segment) -> Status {
      MeteredPages source(*segment.source, meter);
      const auto written = TRY_IN("save memory " + segment.suffix,
                                  memory::write_pages(directory_, segment.suffix, segment.pages_id, segment.runs,
                                                      source, segment.in_parent, segment.left_out));
      segment.source.reset();
      const std::lock_guard lock(mutex);
      (segment.shared ? stats_.shared_pages_written : stats_.pages_written) += written.pages_written;
      (segment.shared ? stats_.shared_pages_scanned : stats_.pages_scanned) +=
          (memory::total_size(segment.runs) + memory::total_size(segment.left_out)) / page_size;
      stats_.zero_pages_skipped += written.zero_pages_skipped;
      return {};
    };
    const auto large = std::ranges::partition(all, std::not_fn(is_large));
    const size_t small = all.size() - large.size();
    TRY(parallel_for(small, [&](size_t index) { return save(all[index]); }));
    for (Segment& segment : large) TRY(save(segment));
    return {};
  }

  const model::Application& application_;
  ApplicationMemory& memory_;
  const image::Directory& directory_;
  const EncodeOptions& options_;
  image::FileRecords files_;
  seccomp_entry seccomp_;
  std::vector<Image> images_;           // made, not yet written
  std::map<uint32_t, fd_types> types_;  // of every description saved
  std::set<ObjectId> spaces_;           // saved
  EncodeStats stats_;
};

}  // namespace

Result<EncodeStats> encode(const model::Application& application, ApplicationMemory& memory,
                           const image::Directory& directory, const EncodeOptions& options) {
  return Encoder(application, memory, directory, options).run();
}

std::map<ObjectId, Pid> address_space_owners(const model::Application& application) {
  std::map<ObjectId, Pid> owners;
  for (const model::Task& task : application.tasks)
    if (task.address_space.value != 0) owners.try_emplace(task.address_space, task.pid);
  return owners;
}

}  // namespace stasis::resource
