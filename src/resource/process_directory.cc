// The procfs that everybody opens files in is that of stasis: in a tree with a pid namespace of its own, numbers in
// paths are not those that the tree knows, and are others after a restore. Who opens a file of his own directory goes
// through /proc/self. The directory of a process that has ended and was reaped has lost its name, and nothing can be
// read in it any more (fs/proc/base.c, pid_revalidate): another process is made to end in its place.
#include "resource/process_directory.h"

#include <fmt/format.h>

#include <charconv>

namespace stasis::resource {
namespace {

constexpr std::string_view procfs = "/proc/", self = "/proc/self", own_thread = "/proc/thread-self";

std::string directory_of_thread(pid_t tid) { return fmt::format("/task/{}", tid); }

bool is_in_procfs(const struct stat& about) {
  struct stat top{};
  return stat("/proc", &top) == 0 && top.st_dev == about.st_dev;
}

/// Threads come into being when descriptors are open already.
bool is_of_other_thread(const ProcessFile& named) {
  constexpr std::string_view task = "/task/";
  pid_t tid = 0;
  if (!named.rest.starts_with(task)) return false;
  std::from_chars(named.rest.data() + task.size(), named.rest.data() + named.rest.size(), tid);
  return tid != named.pid;
}

}  // namespace

std::optional<ProcessFile> file_of_process(const std::string& path) {
  if (!path.starts_with(procfs)) return std::nullopt;
  ProcessFile file;
  const char* const end = path.data() + path.size();
  const auto [rest, error] = std::from_chars(path.data() + procfs.size(), end, file.pid);
  if (error != std::errc{} || file.pid <= 0 || (rest != end && *rest != '/')) return std::nullopt;
  file.rest.assign(rest, end);
  return file;
}

bool capture_process_file(CaptureContext& context, const DescriptorProbe& probe, RegularFile& file) {
  const auto named = file_of_process(original_path(probe.link));
  if (!named || !is_in_procfs(probe.stat)) return false;
  const auto known = context.host_to_tree.find(named->pid);
  // Only directories are marked as deleted then. The number may belong to another process by now.
  const bool has_ended = probe.link.ends_with(deleted_mark) || !is_reached_by_name(probe);
  if (!has_ended && known == context.host_to_tree.end()) return false;  // of nobody in the tree
  const pid_t pid = has_ended ? named->pid : known->second;
  std::string rest = named->rest;
  if (const auto thread = directory_of_thread(named->pid); rest.starts_with(thread))
    rest.replace(0, thread.size(), directory_of_thread(pid));
  file.path = fmt::format("{}{}{}", procfs, pid, rest);
  file.process = Pid{pid}, file.process_ended = has_ended;
  const bool renumbered = context.application.root_is_namespace_init;
  const bool is_directory_of_task = probe.fd < 0;  // a working directory, or a root
  if (has_ended && is_directory_of_task) {
    context.diagnostics.refuse(probe.subject, "it is the directory of a process that has ended, in procfs",
                               "have the program change to another before the dump");
  } else if (renumbered && (has_ended || probe.witness != named->pid || is_directory_of_task)) {
    context.diagnostics.refuse(probe.subject,
                               "it is a file of procfs, which names another task of the tree by an outer pid",
                               "close it before the dump: after a restore that pid is another");
  } else if (is_of_other_thread(*named) || (!has_ended && context.application.find(Pid{pid}) == nullptr)) {
    context.diagnostics.refuse(probe.subject, "it is a file of procfs about a thread other than the first",
                               "close it before the dump: threads come after descriptors at a restore");
  }
  return true;
}

Result<std::string> path_of_process_file(const model::Application& application, const RegularFile& file,
                                         const plan::Placement& placement, Pid runner) {
  const auto rest = file_of_process(file.path).value_or(ProcessFile{}).rest;
  if (!file.process_ended && file.process == runner) {
    const auto thread = directory_of_thread(runner.value);
    return rest.starts_with(thread) ? std::string(own_thread) + rest.substr(thread.size()) : std::string(self) + rest;
  }
  const auto* task = application.find(runner);
  const bool renumbered = application.root_is_namespace_init || (task != nullptr && task->pid_namespace.value != 0);
  if (renumbered) {
    return fail(Error::unsupported(
        "plan a file of procfs", fmt::format("task {}, which opens it, does not know the number it will have", runner),
        file.describe()));
  }
  return fmt::format("{}{}{}", procfs, file.process_ended ? placement.process_number : file.process.value, rest);
}

}  // namespace stasis::resource
