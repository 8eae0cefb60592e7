#include "resource/pstree.h"

#include <unordered_map>
#include <unordered_set>

#include "image/names.h"
#include "pstree.pb.h"

namespace stasis::resource {
namespace {

/// PID_MAX_LIMIT of 64-bit kernels (include/linux/threads.h).
constexpr uint32_t pid_limit = 4u << 20;

std::unexpected<Error> reject(const image::Reader& reader, std::string_view field, std::string cause) {
  return fail(Error::invalid("read checkpoint", std::move(cause), fmt::format("{}, field {}", reader.where(), field)));
}

class TreeDecoder {
 public:
  explicit TreeDecoder(image::Reader reader) : reader_(std::move(reader)) {}

  Result<DecodedTree> run() {
    for (pstree_entry entry; TRY(reader_.next(entry));) TRY(add(entry));
    if (tasks_.empty()) return fail(Error::invalid("read checkpoint", "there is no task", reader_.name()));
    return DecodedTree{TRY(sorted()), std::move(dead_leaders_)};
  }

 private:
  Result<pid_t> id(std::string_view field, uint32_t value, uint32_t least) {
    if (value < least || value > pid_limit) return reject(reader_, field, fmt::format("{} cannot be a pid", value));
    return static_cast<pid_t>(value);
  }

  Status add(const pstree_entry& entry) {
    model::Task task;
    task.pid = Pid{TRY(id("pid", entry.pid(), 1))};
    task.parent = Pid{TRY(id("ppid", entry.ppid(), 0))};
    task.group = Pid{TRY(id("pgid", entry.pgid(), 0))};
    task.session = Pid{TRY(id("sid", entry.sid(), 0))};
    TRY(claim("pid", task.pid.value));
    task.nested_pids = TRY(nested_ids(entry.nested_pids()));
    task.pid_namespace = Pid{TRY(id("pid_namespace", entry.pid_namespace(), 0))};
    task.outer_namespace = Pid{TRY(id("outer_namespace", entry.outer_namespace(), 0))};
    task.parent_thread = Tid{TRY(id("parent_thread", entry.parent_thread(), 0))};
    for (const auto& leader : entry.dead_leaders()) TRY(add(leader));
    // Who is alone is the leader: of a zombie, CRIU writes a number that it has not set.
    if (entry.threads_size() > 1 && entry.threads(0) != entry.pid())
      return reject(reader_, "threads",
                    fmt::format("the first is {}, not the leader {}", entry.threads(0), entry.pid()));
    task.threads.resize(std::max(1, entry.threads_size()));
    task.threads[0].tid = leader_of(task.pid);
    for (int i = 1; i < entry.threads_size(); ++i) {
      task.threads[i].tid = Tid{TRY(id("threads", entry.threads(i), 1))};
      TRY(claim("threads", task.threads[i].tid.value));
    }
    if (entry.has_childrens_namespace())
      task.threads[0].childrens_namespace =
          childrens_namespace_of(TRY(id("childrens_namespace", entry.childrens_namespace(), 0)));
    if (task.parent.value == 0) {
      if (has_root_) return reject(reader_, "ppid", fmt::format("a second root, {}", task.pid));
      has_root_ = true;
    }
    positions_.emplace(task.pid, tasks_.size());
    tasks_.push_back(std::move(task));
    return {};
  }

  Status add(const dead_leader_entry& entry) {
    const Pid pid{TRY(id("dead_leaders.pid", entry.pid(), 1))};
    model::DeadLeader leader{TRY(nested_ids(entry.nested_pids())),
                             Pid{TRY(id("dead_leaders.pid_namespace", entry.pid_namespace(), 1))}};
    if (!dead_leaders_.emplace(pid, std::move(leader)).second)
      return reject(reader_, "dead_leaders.pid", fmt::format("{} occurs twice", pid));
    return {};
  }

  Result<std::vector<pid_t>> nested_ids(const auto& list) {
    std::vector<pid_t> ids;
    for (const uint32_t nested : list) ids.push_back(TRY(id("nested_pids", nested, 1)));
    return ids;
  }

  Status claim(std::string_view field, pid_t value) {
    if (!taken_.insert(value).second) return reject(reader_, field, fmt::format("{} occurs twice", value));
    return {};
  }

  std::unexpected<Error> reject_parent(const model::Task& task, std::string cause) const {
    return fail(Error::invalid("read checkpoint", std::move(cause),
                               fmt::format("{}, field ppid of task {}", reader_.name(), task.pid)));
  }

  /// In the order of the image, but every task after its parent.
  Result<std::vector<model::Task>> sorted() {
    std::vector<model::Task> result;
    result.reserve(tasks_.size());
    std::vector<bool> placed(tasks_.size());
    std::vector<size_t> line;  // from a task up to the nearest ancestor that is placed
    for (size_t start = 0; start < tasks_.size(); ++start) {
      for (size_t at = start; !placed[at];) {
        const model::Task& task = tasks_[at];
        line.push_back(at);
        if (line.size() > tasks_.size()) return reject_parent(task, "it is its own ancestor");
        if (task.parent.value == 0) break;
        const auto parent = positions_.find(task.parent);
        if (parent == positions_.end())
          return reject_parent(task, fmt::format("its parent {} is missing", task.parent));
        at = parent->second;
      }
      for (; !line.empty(); line.pop_back()) {
        placed[line.back()] = true;
        result.push_back(std::move(tasks_[line.back()]));
      }
    }
    return result;
  }

  image::Reader reader_;
  std::vector<model::Task> tasks_;
  std::unordered_map<Pid, size_t> positions_;
  std::map<Pid, model::DeadLeader> dead_leaders_;
  std::unordered_set<pid_t> taken_;
  bool has_root_ = false;
};

}  // namespace

namespace {

void add_ids(const std::vector<pid_t>& ids, auto& list) {
  for (const pid_t id : ids) list.Add(static_cast<uint32_t>(id));
}

void add_dead_leaders(const model::Application& application, pstree_entry& root) {
  for (const auto& [pid, leader] : application.dead_leaders) {
    auto& entry = *root.add_dead_leaders();
    entry.set_pid(static_cast<uint32_t>(pid.value));
    add_ids(leader.nested_pids, *entry.mutable_nested_pids());
    entry.set_pid_namespace(static_cast<uint32_t>(leader.pid_namespace.value));
  }
}

}  // namespace

Status encode_pstree(const model::Application& application, const image::Directory& directory) {
  auto writer = TRY(directory.create(image::file_name("pstree")));
  for (const model::Task& task : application.tasks) {
    pstree_entry entry;
    entry.set_pid(static_cast<uint32_t>(task.pid.value));
    entry.set_ppid(static_cast<uint32_t>(task.pid == application.root ? 0 : task.parent.value));
    entry.set_pgid(static_cast<uint32_t>(task.group.value));
    entry.set_sid(static_cast<uint32_t>(task.session.value));
    for (const model::Thread& thread : task.threads) entry.add_threads(static_cast<uint32_t>(thread.tid.value));
    if (task.threads.empty()) entry.add_threads(entry.pid());
    add_ids(task.nested_pids, *entry.mutable_nested_pids());
    if (task.pid_namespace.value != 0) entry.set_pid_namespace(static_cast<uint32_t>(task.pid_namespace.value));
    if (task.outer_namespace.value != 0) entry.set_outer_namespace(static_cast<uint32_t>(task.outer_namespace.value));
    if (!task.threads.empty() && task.threads[0].childrens_namespace.value != 0)
      entry.set_childrens_namespace(childrens_namespace_field(task.threads[0]));
    if (task.parent_thread.value != 0) entry.set_parent_thread(static_cast<uint32_t>(task.parent_thread.value));
    if (task.pid == application.root) add_dead_leaders(application, entry);
    TRY(writer.append(entry));
  }
  return writer.finish();
}

Result<DecodedTree> decode_pstree(const image::Directory& directory) {
  return TreeDecoder(TRY(directory.read(image::file_name("pstree")))).run();
}

}  // namespace stasis::resource
