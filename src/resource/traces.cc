// Cgroups, and System V objects that nobody has attached. Of the latter the kernel says (/proc/sysvipc) which process
// has made a segment and was the last to attach it, and who has sent and received the last message; of a semaphore,
// semctl(GETPID) says who has changed it last. The numbers stay when the process has ended.
#include "resource/traces.h"

#include <fmt/format.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "kernel/mounts.h"
#include "kernel/proc.h"
#include "resource/capture_context.h"
#include "resource/inet_socket.h"

namespace stasis::resource {
namespace {

std::string file_text(const std::string& path) { return kernel::read_file(path).value_or(std::string()); }

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

/// Where a hierarchy is mounted as a whole. `controllers` as in /proc/PID/cgroup: "cpu,cpuacct", "name=systemd"; of the
/// second version "".
std::string mount_point(const std::vector<kernel::MountInfo>& mounts, const std::string& controllers) {
  const auto wanted = split(controllers, ',');
  const auto is_it = [&](const kernel::MountInfo& mount) {
    if (mount.root != "/") return false;
    if (controllers.empty()) return mount.type == "cgroup2";
    const auto options = split(mount.options, ',');
    return mount.type == "cgroup" && std::ranges::all_of(wanted, [&](const auto& one) {
             return std::ranges::find(options, one) != options.end();
           });
  };
  const auto found = std::ranges::find_if(mounts, is_it);
  return found == mounts.end() ? std::string() : found->point;
}

/// The lines of /proc/sysvipc/KIND as numbers: key, id, mode (in octal) …
std::vector<std::vector<int64_t>> list_objects(const char* kind) {
  std::vector<std::vector<int64_t>> objects;
  auto lines = split(file_text(fmt::format("/proc/sysvipc/{}", kind)), '\n');
  for (size_t index = 1; index < lines.size(); ++index) {
    std::istringstream stream(lines[index]);
    auto& numbers = objects.emplace_back();
    for (int64_t number = 0; stream >> number;) numbers.push_back(number);
    constexpr size_t fewest = 7;
    if (numbers.size() < fewest) objects.pop_back();
  }
  return objects;
}

bool has_attached(const model::Application& application, int64_t segment) {
  return std::ranges::any_of(application.shared_memories, [&](const auto& entry) {
    return entry.second.system_v && entry.second.system_v->id == segment;
  });
}

}  // namespace

std::vector<Leftover> leftovers(const model::Application& application, const NetworkFacts& network) {
  auto found = leftovers(application);
  if (!network.tcp_closed) add_leftover(network.lock, connections_of(application), found);
  return found;
}

Traces::Traces(const CaptureContext& context) {
  const auto mounts = kernel::read_mountinfo().value_or(std::vector<kernel::MountInfo>{});
  std::set<std::string> lines;
  for (const auto& [host_pid, pid] : context.host_to_tree) {
    pids_.insert(host_pid);
    for (auto& line : split(file_text(fmt::format("/proc/{}/cgroup", host_pid)), '\n')) lines.insert(std::move(line));
  }
  for (const auto& line : lines) {  // "4:memory:/path"
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const auto path = line.substr(second + 1), point = mount_point(mounts, line.substr(first + 1, second - first - 1));
    const bool is_within_reach = path.size() > 1 && path.front() == '/' && !path.starts_with("/..");
    if (is_within_reach && !point.empty()) cgroups_.insert(point + path);
  }
}

std::vector<Leftover> Traces::leftovers(const model::Application& application) const {
  std::vector<Leftover> found;
  for (const auto& directory : cgroups_) {
    const auto processes = kernel::read_file(directory + "/cgroup.procs");
    if (processes && processes->empty())
      found.push_back({"empty cgroup " + directory, fmt::format("rmdir '{}'", directory)});
  }
  const auto is_ours = [&](int64_t pid) { return pids_.contains(static_cast<int>(pid)); };
  const auto add = [&](const char* what, int64_t id, char option) {
    found.push_back({fmt::format("System V {} {}, which a process of the tree has made or used last", what, id),
                     fmt::format("ipcrm -{} {}; restored processes may look for it", option, id)});
  };
  enum : size_t { id = 1, count = 3, creator = 4, last = 5, receiver = 6 };  // columns
  for (const auto& segment : list_objects("shm")) {
    const bool known = has_attached(application, segment[id]);
    if (!known && (is_ours(segment[creator]) || is_ours(segment[last]))) add("segment", segment[id], 'm');
  }
  for (const auto& queue : list_objects("msg"))
    if (is_ours(queue[last]) || is_ours(queue[receiver])) add("message queue", queue[id], 'q');
  for (const auto& set : list_objects("sem")) {
    bool used = false;
    for (int64_t index = 0; index < set[count] && !used; ++index)
      used = is_ours(semctl(static_cast<int>(set[id]), static_cast<int>(index), GETPID));
    if (used) add("semaphore set", set[id], 's');
  }
  return found;
}

}  // namespace stasis::resource
