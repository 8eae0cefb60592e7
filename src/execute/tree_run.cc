#include "execute/tree_run.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <thread>

#include "base/patience.h"
#include "base/unique_fd.h"
#include "execute/execute.h"
#include "execute/lower.h"
#include "image/directory.h"
#include "kernel/proc.h"
#include "kernel/processes.h"
#include "model/pid_namespaces.h"
#include "plan/bare_tree.h"
#include "plan/planner.h"

namespace stasis::execute {
namespace {

constexpr int equal = 0, different = 1, failed = 2;

using Differences = std::vector<std::string>;

/// Subreaper flags are not in /proc: each process is asked before it is READY. Gives the commands that ask.
std::map<Pid, size_t> ask_for_reaper_flags(plan::Program& program) {
  std::map<Pid, size_t> asking;
  std::vector<plan::Command> commands;
  for (auto& command : program.commands) {
    if (std::holds_alternative<plan::Ready>(command.action) && runner_of(command).second == leader_of(command.pid)) {
      asking[command.pid] = commands.size();
      plan::Perform ask{.purpose = "what its subreaper flag is"};
      ask.calls = {plan::call(SYS_prctl, PR_GET_CHILD_SUBREAPER, plan::Out{sizeof(int)})};
      commands.push_back({command.pid, command.tid, std::move(ask)});
    }
    commands.push_back(std::move(command));
  }
  program.commands = std::move(commands);
  return asking;
}

/// A tree that stands.
class Specimen {
 public:
  Specimen(const BuiltTree& built, const std::map<Pid, size_t>& asking, const model::Application& wanted)
      : built_(built), asking_(asking), wanted_(wanted) {}

  /// Zombies and stops come about when they come about: looked at until all have, or for a while.
  Result<Differences> compare(bool with_stops) const {
    const auto end = std::chrono::steady_clock::now() + patience;
    for (;;) {
      const auto found = TRY(look());
      auto differences = plan::tree_differences(wanted_, found, with_stops);
      if (differences.empty() || has_come_to_rest(found, with_stops) || std::chrono::steady_clock::now() > end)
        return differences;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  /// As a restore's last step does. Nobody's end may come later: it would continue the stopped of a group that it
  /// leaves orphaned (kernel/exit.c, kill_orphaned_pgrp).
  Status stop() const {
    const size_t level = TRY(kernel::read_status(built_.host_root())).ns_tgid.size();
    for (const pid_t host_pid : kernel::list_descendants(built_.host_root())) {
      const auto status = TRY(kernel::read_status(host_pid));
      const auto* task = wanted_.find(Pid{status.ns_tgid.at(level - 1)});
      if (task == nullptr || task->state != model::TaskState::stopped) continue;
      if (kill(host_pid, SIGSTOP) != 0) return fail_errno("stop", fmt::format("task {}", task->pid));
    }
    return {};
  }

 private:
  /// Everybody who is to end or to stop has done so: what differs now differs for good.
  bool has_come_to_rest(const model::Application& found, bool with_stops) const {
    const model::TaskIndex tasks(found);
    return std::ranges::all_of(wanted_.tasks, [&](const model::Task& task) {
      const auto* now = tasks.find(task.pid);
      if (now == nullptr) return true;
      if (task.state == model::TaskState::stopped) return !with_stops || now->state == task.state;
      return task.state == model::TaskState::zombie ? now->state == task.state
                                                    : task.leader_has_ended() == now->leader_has_ended();
    });
  }
  Result<model::Application> look() const {
    auto found = TRY(look_at_tree(built_.host_root()));
    for (auto& task : found.tasks) {
      const auto asked = asking_.find(task.pid);
      if (asked == asking_.end()) continue;
      const auto answers = built_.answers_of(asked->second);
      int flag = 0;
      std::memcpy(&flag, answers.front().data(), sizeof flag);
      task.child_subreaper = flag != 0;
    }
    return found;
  }

  const BuiltTree& built_;
  const std::map<Pid, size_t>& asking_;
  const model::Application& wanted_;
};

/// That a program uses: those of terminals.
int highest_fd(const plan::Program& program) {
  int highest = -1;
  for (const auto& command : program.commands) {
    if (const auto* open = std::get_if<plan::OpenTerminal>(&command.action))
      highest = std::max({highest, open->master_fd, open->slave_fd});
  }
  return highest;
}

/// In the new namespace, of which we are the init.
Result<Differences> build_and_compare(plan::Program program, const model::Application& wanted) {
  if (mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return fail_errno("make mounts private", "/");
  if (mount("proc", "/proc", "proc", 0, nullptr) != 0) return fail_errno("mount", "/proc");
  // Terminals of its own, from index 0 on. The multiplexer beside the mount point leads there (fs/devpts/inode.c).
  if (!wanted.terminals.empty() && mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666") != 0)
    return fail_errno("mount", "/dev/pts");
  const auto asking = ask_for_reaper_flags(program);
  TRY(plan::place_agent(program, TRY(own_mappings())));
  const auto nothing = TRY(image::Directory::open("/"));  // a bare tree reads no images
  program.images_fd = std::max(TRY(own_highest_fd()), highest_fd(program)) + 1;
  ExecuteOptions options;
  options.only_build = true;
  const auto built = TRY(BuiltTree::build(program, wanted, nothing, options));
  const Specimen specimen(*built, asking, wanted);
  auto differences = TRY(specimen.compare(false));
  if (!differences.empty()) return differences;
  TRY(specimen.stop());
  return specimen.compare(true);
}

std::string joined(const Differences& lines) {
  std::string text;
  for (const auto& line : lines) text += line + '\n';
  return text;
}

/// The new namespace's init: says what it has found, and ends; with it ends whatever may be left.
[[noreturn]] void be_init(const plan::Program& program, const model::Application& wanted, int out) {
  const auto differences = build_and_compare(program, wanted);
  const std::string text = differences ? joined(*differences) : differences.error().message();
  const bool told = write(out, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  _exit(!differences || !told ? failed : differences->empty() ? equal : different);
}

std::string read_all(int fd) {
  std::string text;
  char buffer[4096];
  for (ssize_t got = 0; (got = read(fd, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(got));
  return text;
}

Differences lines_of(const std::string& text) {
  Differences lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

}  // namespace

Result<Differences> run_tree(const plan::Program& program, const model::Application& wanted) {
  const auto* root = wanted.find(wanted.root);
  if (root == nullptr || (root->session != root->pid)) {
    return fail(Error::unsupported("run the tree", "its root does not lead its session, which comes from outside")
                    .advise("make the root lead it (sid equal to pid)"));
  }
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return fail_errno("pipe2", "for the answer");
  const UniqueFd from(ends[0]);
  UniqueFd to(ends[1]);
  // clone3 would do it in one step, but leaves the C library without its fork handlers.
  const pid_t helper = fork();
  if (helper < 0) return fail_errno("fork", "of a helper");
  if (helper == 0) {
    if (unshare(CLONE_NEWPID | CLONE_NEWNS) != 0) {
      dprintf(to.get(), "unshare a pid namespace: %s: it needs CAP_SYS_ADMIN", strerror(errno));
      _exit(failed);
    }
    const pid_t init = fork();
    if (init == 0) be_init(program, wanted, to.get());
    int status = 0;
    const bool ended = init > 0 && waitpid(init, &status, 0) == init && WIFEXITED(status);
    _exit(ended ? WEXITSTATUS(status) : failed);
  }
  to.reset();
  const std::string text = read_all(from.get());
  int status = 0;
  if (waitpid(helper, &status, 0) != helper) return fail_errno("wait", "for the helper");
  const int outcome = WIFEXITED(status) ? WEXITSTATUS(status) : failed;
  if (outcome != equal && outcome != different)
    return fail(Error::conflict("run the tree", text.empty() ? "its init died" : text));
  return lines_of(text);
}

namespace {

/// What /proc says of a tree below a process, from level `level` of the pid namespaces inwards.
class TreeLook {
 public:
  Result<model::Application> run(pid_t root) {
    for (const pid_t host_pid : kernel::list_descendants(root)) {
      auto stat = kernel::read_stat(host_pid);
      auto status = kernel::read_status(host_pid);
      if (stat && status) {
        if (host_pid == root) level_ = status->ns_pid.size();
        add(host_pid, *stat, *status);
      } else if (host_pid == root) {
        return fail(Error::gone("look at the tree", fmt::format("task {}", root)));
      }  // else it has just ended
    }
    tree_.root = tree_.tasks.front().pid;
    tree_.root_is_namespace_init = tree_.root.value == 1;
    tree_.shell_job = tree_.tasks.front().session != tree_.root;
    place_in_namespaces();
    find_terminals();
    return std::move(tree_);
  }

 private:
  struct Seen {
    pid_t host_pid;
    std::vector<pid_t> groups, sessions;
    uint64_t terminal;
    pid_t foreground;  ///< as we see it
    pid_t group;       ///< likewise
    pid_t witness;     ///< its first thread that lives
  };
  pid_t own(const std::vector<pid_t>& ids) const { return ids.at(level_ - 1); }
  std::vector<pid_t> nested(const std::vector<pid_t>& ids) const {
    return {ids.begin() + static_cast<ptrdiff_t>(level_), ids.end()};
  }

  void add(pid_t host_pid, const kernel::StatInfo& stat, const kernel::StatusInfo& status) {
    model::Task task;
    task.pid = Pid{own(status.ns_tgid)}, task.nested_pids = nested(status.ns_tgid);
    task.group = Pid{own(status.ns_pgid)}, task.session = Pid{own(status.ns_sid)};
    task.parent = known_.empty() ? Pid{0} : known_[stat.ppid];
    known_[host_pid] = task.pid;
    seen_.push_back({host_pid, nested(status.ns_pgid), nested(status.ns_sid), static_cast<uint32_t>(stat.tty_nr),
                     stat.tty_pgrp, status.ns_pgid.front(), host_pid});
    if (stat.is_dead() && !stat.has_left_threads()) {
      task.state = model::TaskState::zombie;
      task.exit_status = stat.exit_code;
    } else {
      seen_.back().witness = look_at_threads(host_pid, task);
    }
    tree_.tasks.push_back(std::move(task));
  }

  /// The first that lives is returned.
  pid_t look_at_threads(pid_t host_pid, model::Task& task) const {
    pid_t witness = 0;
    const auto tids = kernel::list_threads(host_pid);
    for (const pid_t tid : tids ? *tids : std::vector<pid_t>{}) {
      const auto status = kernel::read_thread_status(host_pid, tid);
      const auto stat = kernel::read_thread_stat(host_pid, tid);
      if (!status || !stat) continue;
      auto& thread = task.threads.emplace_back();
      thread.tid = Tid{own(status->ns_pid)}, thread.nested_tids = nested(status->ns_pid);
      if (tid == host_pid && stat->has_left_threads())
        thread.exit_status = stat->exit_code;
      else if (witness == 0)
        witness = tid;
      if (stat->state == 'T') task.state = model::TaskState::stopped, task.stop_signal = SIGSTOP;
    }
    return witness;
  }

  static std::string link_of(pid_t host_pid, const char* name) {
    return kernel::read_link(fmt::format("/proc/{}/ns/{}", host_pid, name)).value_or("");
  }
  void place_in_namespaces() {
    std::map<std::string, Pid> inits;
    for (size_t i = 0; i < seen_.size(); ++i) {
      const auto& task = tree_.tasks[i];
      if (!task.nested_pids.empty() && task.nested_pids.back() == 1)
        inits[link_of(seen_[i].host_pid, "pid")] = task.pid;
    }
    for (size_t i = 0; i < seen_.size(); ++i) {
      auto& task = tree_.tasks[i];
      if (!task.nested_pids.empty()) task.pid_namespace = inits[link_of(seen_[i].host_pid, "pid")];
      if (model::is_begun_for_sibling(tree_, task))
        task.outer_namespace = inits[kernel::outer_pid_namespace(seen_[i].host_pid).value_or("")];
      if (task.state == model::TaskState::zombie) continue;
      auto* witness = task.first_living();
      if (witness == nullptr) continue;
      const auto link = link_of(seen_[i].witness, "pid_for_children");
      const auto childrens = inits.find(link);
      if (childrens != inits.end() && childrens->second != task.pid_namespace)
        witness->childrens_namespace = childrens->second;
      else if (link.empty())  // it leads nowhere as long as nobody has been born there
        witness->childrens_namespace = model::empty_namespace;
    }
    for (size_t i = 0; i < seen_.size(); ++i) {
      model::note_dead_leader(tree_, tree_.tasks[i], tree_.tasks[i].group, seen_[i].groups);
      model::note_dead_leader(tree_, tree_.tasks[i], tree_.tasks[i].session, seen_[i].sessions);
    }
  }

  /// Pseudo-terminals that control sessions of the tree.
  void find_terminals() {
    for (size_t i = 0; i < seen_.size(); ++i) {
      const auto& task = tree_.tasks[i];
      const uint64_t number = seen_[i].terminal;
      const uint32_t index = model::index_of_terminal(number);
      if (task.session != task.pid || number == 0 || number != model::terminal_with_index(index)) continue;
      model::Terminal made{.session = task.pid, .slave_opened = true};
      for (size_t j = 0; j < seen_.size(); ++j) {
        if (seen_[j].group == seen_[i].foreground && tree_.tasks[j].session == task.pid)
          made.foreground = tree_.tasks[j].group;
      }
      tree_.terminals[number] = made;
    }
    for (size_t i = 0; i < seen_.size(); ++i) {
      const auto terminal = tree_.terminals.find(seen_[i].terminal);
      const bool has_it = terminal != tree_.terminals.end() && terminal->second.session == tree_.tasks[i].session &&
                          tree_.tasks[i].state != model::TaskState::zombie;
      if (has_it) tree_.tasks[i].controlling_terminal = terminal->first;
    }
  }

  model::Application tree_;
  std::vector<Seen> seen_;      ///< of the tasks
  std::map<pid_t, Pid> known_;  ///< by the pid that we see
  size_t level_ = 1;
};

}  // namespace

Result<model::Application> look_at_tree(pid_t root) { return TreeLook().run(root); }

}  // namespace stasis::execute
