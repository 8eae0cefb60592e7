// How rooms take part in planning without the planner knowing them.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/application.h"
#include "plan/program.h"

namespace stasis::plan {

/// When a contribution runs, in the order in which one process goes through them. Between `settle` and `final`
/// every process has waited for every other: nobody is touched from outside afterwards.
enum class Stage {
  prepare,     ///< supervisor only, before anything exists: ghost files, link remaps
  process,     ///< leader, once its descriptors and memory are in place: handlers, limits, layout, fs context …
  thread,      ///< each thread: name, scheduling, stacks, robust list …
  memory,      ///< each thread, once its memory is complete, whoever fills it: what the kernel writes to from then on
  settle,      ///< supervisor only, when every process is complete but none runs: removes what `prepare` left
  final,       ///< each thread (leader last), after all processes are complete: timers are armed, pending signals sent
  privileges,  ///< each thread, last of all: credentials, then seccomp
};

/// Attribute of a settling command that a failed restore leaves out: what it removes is needed for the next attempt.
inline constexpr std::string_view only_on_success = "only on success";
/// The opposite: what removes something that is to stay if all goes well.
inline constexpr std::string_view only_on_failure = "only on failure";

/// Receives commands for one runner.
class Sink {
 public:
  Sink(Program& program, Pid pid, Tid tid) : program_(program), pid_(pid), tid_(tid) {}
  void add(Action action) { program_.commands.push_back({pid_, tid_, std::move(action)}); }
  void perform(std::string purpose, std::string attribute, Calls calls, std::vector<std::string> needs = {}) {
    add(Perform{std::move(purpose), std::move(attribute), std::move(needs), {}, std::move(calls)});
  }
  /// Removes what the first call of the command with the purpose `made` has made.
  void undo(std::string purpose, std::string attribute, Calls calls, std::string made) {
    Perform perform{std::move(purpose), std::move(attribute), {}, {}, std::move(calls)};
    perform.undoes.push_back(std::move(made));
    add(std::move(perform));
  }
  Pid pid() const { return pid_; }
  Tid tid() const { return tid_; }
  int images_fd() const { return program_.images_fd; }

 private:
  Program& program_;
  Pid pid_;
  Tid tid_;
};

/// One description to make, and the number its maker gives it.
struct Placement {
  const model::OpenDescription* description = nullptr;
  int fd = -1;
  int scratch = -1;  ///< so many numbers from here on are free for the maker's own use
  static constexpr int scratch_numbers = 4;
  int inherited = -1;        ///< it is open under this number from birth on (model::Terminal::master)
  Pid process;               ///< a child of the runner that has ended (DescriptionMaker::ended_process)
  pid_t process_number = 0;  ///< as the runner has to call it
};

/// Under which number a description is open in a process; nothing: it is not. Few are asked for, of possibly many.
using OpenNumbers = std::function<std::optional<int>(ObjectId)>;
inline std::optional<int> nothing_is_open(ObjectId) { return std::nullopt; }

class Contributor {
 public:
  virtual ~Contributor() = default;
  virtual std::string_view name() const = 0;
  /// Supervisor's commands for `prepare` and `settle`.
  virtual void contribute(Stage, const model::Application&, Sink&) const {}
  /// A process's own (stages process), run by its leader.
  virtual void contribute(Stage, const model::Application&, const model::Task&, Sink&) const {}
  /// A thread's own (stages thread, final, privileges).
  virtual void contribute(Stage, const model::Application&, const model::Task&, const model::Thread&, Sink&) const {}
};

/// How descriptions of one kind are made.
class DescriptionMaker {
 public:
  virtual ~DescriptionMaker() = default;
  /// The kind whose descriptions it makes (KindValue::kind()).
  virtual std::string_view kind() const = 0;
  /// Descriptions that must be made in one go by one process share this number (the two ends of a pipe); 0: alone.
  virtual ObjectId made_together(const model::OpenDescription&) const { return {}; }
  /// Whether `make` may run in several processes and lead to the same object each time (a file that has a path). What
  /// is not reopenable is made once and passed on.
  virtual bool reopenable() const { return false; }
  /// The kind's own preparation and clean-up by the supervisor (stages prepare and settle).
  virtual void contribute(Stage, const model::Application&, Sink&) const {}
  /// Commands that make every placement at its number, with access mode and status flags right and offset 0.
  virtual Status make(const model::Application&, std::span<const Placement>, Sink&) const = 0;
  /// The second phase, for what was made together if any of it carries other descriptions
  /// (model::OpenDescription::carries): run by its maker once everything that is carried is open there, too.
  virtual Status complete(const model::Application&, std::span<const Placement>, const OpenNumbers&, Sink&) const {
    return {};
  }
  /// Commands that start what starts last, by a process that has it at this number, in stage final.
  virtual void start(const model::Application&, const model::OpenDescription&, int /*fd*/, Sink&) const {}
  /// Whether SO_REUSEADDR is set when the repair mode of a connection has ended (model::OpenDescription::in_repair).
  virtual bool reuses_address(const model::OpenDescription&) const { return false; }
  /// The process that a pidfd refers to: it exists when `make` runs. 0: none.
  virtual Pid process(const model::OpenDescription&) const { return {}; }
  /// A pidfd of a process that has ended, with this wait status, and was reaped: one like it is there when `make` runs.
  virtual std::optional<int> ended_process(const model::OpenDescription&) const { return std::nullopt; }
  /// Whether `make` needs nobody but its runner: then it may run before the runner has children, who inherit it.
  virtual bool can_be_inherited(const model::OpenDescription&) const { return false; }
  /// The terminal that has to control the process which runs `make` (what /dev/tty leads to). 0: any process may.
  virtual uint64_t needs_terminal(const model::Application&, const model::OpenDescription&) const { return 0; }
  /// A terminal of the application has just been opened under these numbers (slave -1: it is not), by the first process
  /// of the tree, before anybody is controlled by it.
  virtual void furnish_terminal(const model::Application&, uint64_t /*terminal*/, int /*master*/, int /*slave*/,
                                Sink&) const {}
  /// Offset is restored by LSEEK after `make`.
  virtual bool seekable() const { return false; }
};

struct Contributors {
  std::vector<const Contributor*> rooms;  ///< in the order in which they run within a stage
  std::vector<const DescriptionMaker*> makers;
};

}  // namespace stasis::plan
