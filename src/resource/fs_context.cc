// Working directory, root directory and umask of an fs context (fs_struct), which tasks may share.
//
// They are captured with the descriptors (descriptors.cc). At restore they change last of all, when every process has
// opened what it opens by path: a changed root would lead paths elsewhere, also for others who share the context.
#include "resource/fs_context.h"

#include <fmt/format.h>
#include <sys/syscall.h>

#include "resource/regular_file.h"

namespace stasis::resource {
namespace {

using plan::call;

class FsContextRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "fs context"; }

  Status encode(const model::Application& application, const model::Task& task,
                image::TaskRecords& records) const override {
    const auto& fs = application.fs_contexts.at(task.fs);
    records.fs.set_cwd_id(fs.working_directory.value), records.fs.set_root_id(fs.root_directory.value),
        records.fs.set_umask(fs.umask);
    return {};
  }

  Status decode(const image::TaskRecords& records, model::Application& application, model::Task& task) const override {
    auto& fs = application.fs_contexts[task.fs];
    if (fs.id == task.fs) return {};
    fs.id = task.fs;
    fs.working_directory = ObjectId{records.fs.cwd_id()}, fs.root_directory = ObjectId{records.fs.root_id()};
    if (records.fs.umask() > 0777)
      return fail(
          Error::invalid("decode fs context", "field umask is out of range", fmt::format("fs-{}.img", task.pid)));
    fs.umask = records.fs.umask();
    for (const auto id : {fs.working_directory, fs.root_directory}) {
      const auto found = application.descriptions.find(id);
      if (found == application.descriptions.end() || path_of(found->second).empty()) {
        return fail(Error::invalid("decode fs context", fmt::format("file {} is not a directory of files.img", id),
                                   fmt::format("fs-{}.img", task.pid)));
      }
    }
    return {};
  }

  void contribute(plan::Stage stage, const model::Application& application, const model::Task& task,
                  const model::Thread& thread, plan::Sink& sink) const override {
    if (thread.tid != leader_of(task.pid) || !is_first_sharer(application, task)) return;
    const auto& fs = application.fs_contexts.at(task.fs);
    const auto path = [&](ObjectId id) { return path_of(application.descriptions.at(id)); };
    // An unlinked working directory exists until the supervisor settles.
    if (stage == plan::Stage::thread) {
      sink.perform("working directory", "fs.directory", {call(SYS_chdir, plan::text(path(fs.working_directory)))});
    }
    if (stage != plan::Stage::final) return;
    plan::Calls calls;
    if (path(fs.root_directory) != "/") calls.push_back(call(SYS_chroot, plan::text(path(fs.root_directory))));
    calls.push_back(plan::expecting(call(SYS_umask, fs.umask), plan::Expectation::Kind::anything));
    sink.perform("root directory and umask", "fs.root", std::move(calls), {"CAP_SYS_CHROOT"});
  }

 private:
  static bool is_first_sharer(const model::Application& application, const model::Task& task) {
    for (const auto& other : application.tasks) {
      if (other.state != model::TaskState::zombie && other.fs == task.fs) return other.pid == task.pid;
    }
    return false;
  }
};

}  // namespace

const TaskRoom& fs_context_room() {
  static const FsContextRoom room;
  return room;
}

}  // namespace stasis::resource
