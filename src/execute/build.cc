#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ranges>
#include <set>

#include "agent/area.h"
#include "base/parallel.h"
#include "execute/connection_ends.h"
#include "execute/decoding.h"
#include "execute/end_repair.h"
#include "execute/execute.h"
#include "execute/host_threads.h"
#include "execute/lower.h"
#include "execute/namespace_ends.h"
#include "execute/owing.h"
#include "execute/resume.h"
#include "execute/shared_area.h"
#include "execute/watchdog.h"
#include "kernel/descriptor_limit.h"
#include "kernel/id_holder.h"
#include "kernel/proc.h"
#include "kernel/process.h"
#include "plan/contributor.h"

namespace stasis::execute {
namespace {

/// All signals are blocked in what we create, from its birth on: the final masks are set at the very end.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { sigprocmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

/// Orphans of a failing restore come to us while this lives, so that none escapes.
class Subreaper {
 public:
  Subreaper() {
    prctl(PR_GET_CHILD_SUBREAPER, &before_);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
  }
  ~Subreaper() { prctl(PR_SET_CHILD_SUBREAPER, before_); }
  Subreaper(const Subreaper&) = delete;
  Subreaper& operator=(const Subreaper&) = delete;

 private:
  int before_ = 0;
};

/// The image directory under the number that the program says.
class ImagesAtNumber {
 public:
  static Result<ImagesAtNumber> place(int fd, int number) {
    if (number < 0) return ImagesAtNumber(-1);
    kernel::raise_descriptor_limit();  // children may need numbers up to what the images say
    if (fcntl(number, F_GETFD) >= 0) {
      return fail(
          Error::internal("place the image directory", fmt::format("descriptor {} is in use in stasis", number)));
    }
    if (dup3(fd, number, 0) < 0) {
      return fail_errno("dup3", fmt::format("the image directory as descriptor {}", number));
    }
    return ImagesAtNumber(number);
  }
  ImagesAtNumber(ImagesAtNumber&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  ImagesAtNumber& operator=(ImagesAtNumber&&) = delete;
  ~ImagesAtNumber() {
    if (number_ >= 0) close(number_);
  }

 private:
  explicit ImagesAtNumber(int number) : number_(number) {}
  int number_;
};

std::vector<int> ignored_signals() {
  std::vector<int> ignored;
  const auto status = kernel::read_status(getpid());
  for (int signal = 1; status && signal <= 64; ++signal) {
    if ((status->ignored >> (signal - 1)) & 1) ignored.push_back(signal);
  }
  return ignored;
}

AddressRange own_rseq() {
  if (__rseq_size == 0) return {};
  const auto begin = reinterpret_cast<uint64_t>(__builtin_thread_pointer()) + static_cast<uint64_t>(__rseq_offset);
  return {begin, begin + 32};  // glibc registers 32 bytes, whatever __rseq_size says of those in use
}

/// What the C library had before main, with what every thread of a static program needs (its TLS, in which the kernel
/// writes: rseq(2)).
const char* const early_break = static_cast<const char*>(sbrk(0));

/// The root is forked from us and needs nothing of our heap: its tables are not copied, no page of ours becomes one to
/// be copied when it is next written, and the root has nothing to unmap (MADV_DONTFORK; kernel/fork.c, dup_mmap).
class HeapWithheld {
 public:
  HeapWithheld() {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(early_break) + page - 1) / page * page;
    const uintptr_t end = reinterpret_cast<uintptr_t>(sbrk(0)) / page * page;
    if (begin < end && madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTFORK) == 0) range_ = {begin, end};
  }
  ~HeapWithheld() {
    if (range_.size() != 0) madvise(reinterpret_cast<void*>(range_.begin), range_.size(), MADV_DOFORK);
  }
  HeapWithheld(const HeapWithheld&) = delete;
  HeapWithheld& operator=(const HeapWithheld&) = delete;

 private:
  AddressRange range_;
};

class Tree final : public BuiltTree {
 public:
  Tree(const plan::Program& program, const model::Application& application, const ExecuteOptions& options)
      : program_(program), application_(application), options_(options) {}
  ~Tree() override {
    if (!resumed_) undo();
  }

  Status build(const image::Directory& images) {
    const auto before = kernel::list_descendants(getpid());
    bystanders_.insert(before.begin(), before.end());
    // Before another thread has its stack there.
    area_.emplace(TRY(SharedArea::create(program_.agent_area)));
    const AddressRange rseq = own_rseq();  // of this thread, which the root is forked from
    const auto prepare_or_verify = [&](size_t step) {
      return step == 0 ? prepare(rseq) : options_.verify ? options_.verify() : Status();
    };
    TRY(parallel_for(2, prepare_or_verify, 2));
    supervision_.emplace(TRY(Supervision::begin(area_->header())));
    resumption_ = Resumption::of(application_, program_.agent_area);
    const auto placed = TRY(ImagesAtNumber::place(images.fd(), program_.images_fd));
    const Subreaper reaper;
    Status outcome = run(images);
    if (outcome && !options_.only_build) outcome = resumption_->stop_all(host_root_);
    if (outcome && options_.before_resume) outcome = options_.before_resume(host_root_);
    if (!outcome) undo();
    return outcome;
  }

  pid_t host_root() const override { return host_root_; }

  std::vector<Bytes> answers_of(size_t command) const override {
    const uint32_t slot = lowered_.slot_of.at(runner_of(program_.commands[command]));
    const auto& origins = area_description_.slots[slot].origins;
    std::vector<Bytes> answers;
    for (uint32_t instruction = 0; instruction < origins.size(); ++instruction) {
      if (origins[instruction] != command) continue;
      auto outs = agent::outs_of(area_description_, area_->bytes(), slot, instruction);
      std::ranges::move(outs, std::back_inserter(answers));
    }
    return answers;
  }

  Status resume() override {
    bool begun = false;
    Status resumed = resumption_->let_go(options_.leave_stopped, [&](const auto& host_pids) -> Status {
      if (options_.at_last) TRY(options_.at_last());
      begun = true;
      return end_repairs(program_, host_pids, options_.fail_at_command);
    });
    if (!resumed && begun && options_.undo_last) options_.undo_last();
    resumed_ = resumed.has_value();
    if (resumed_) supervision_.reset();
    return resumed;
  }

 private:
  Status prepare(AddressRange rseq) {
    lowered_ =
        TRY(lower(program_, application_, {options_.sibling, options_.fail_at_command, ignored_signals(), rseq}));
    area_description_ = TRY(agent::build_area_in(area_->memory(), program_.agent_area.begin, std::move(lowered_.slots),
                                                 lowered_.counter_count));
    return {};
  }

  /// The supervisor's slot runs here, in the thread whose child the root becomes; then everybody else gets ready.
  Status run(const image::Directory& images) {
    const SignalsBlocked blocked;
    std::atomic<uint64_t> served = 0;
    Watchdog::Scene watched{*area_, lowered_, served, nullptr, options_.patience};
    if (application_.root_is_namespace_init) watched.namespace_init = [this] { return spawned_root(); };
    const Watchdog watchdog(std::move(watched));
    const RequestScene scene{.counters = area_->counters(),
                             .served = served,
                             .has_failed = [this] { return area_->failed() != 0; },
                             .cancel = [this] { area_->cancel(); },
                             .host_pid = [this](Pid pid) { return host_pid(pid); }};
    const Decoding decoding(program_, lowered_, images, scene, options_.consumed);
    const Owing owing(program_, lowered_, scene, options_.hand_over);
    const HeapWithheld withheld;
    run_supervisor();
    host_root_ = spawned_root();
    while (area_->ready() < lowered_.ready_threads && area_->failed() == 0) {
      const timespec pause{0, 100'000};
      nanosleep(&pause, nullptr);
    }
    if (area_->failed() == 0) return {};
    if (auto error = decoding.error()) return fail(std::move(*error));
    if (auto error = owing.error()) return fail(std::move(*error));
    return fail(failure(watchdog));
  }

  /// Runs slot 0. Before its last wait, threads that are ready are stopped: then that is done when the last one is.
  void run_supervisor() {
    auto& slot = area_->slot(0);
    const auto whole = area_->program(slot);
    if (lowered_.last_wait && !options_.only_build) {
      slot.instruction_count = *lowered_.last_wait;
      agent::run_here(area_->base(), 0);
      if (slot.state == agent::slot_failed) return;  // how far it has come is known by its program counter (clean_up)
      stop_ready_threads(whole[*lowered_.last_wait]);
      slot.program_counter = *lowered_.last_wait, slot.instruction_count = static_cast<uint32_t>(whole.size());
    }
    agent::run_here(area_->base(), 0);
  }

  void stop_ready_threads(const agent::Instruction& until) {
    const auto counter = [&] { return __atomic_load_n(&area_->counters()[until.args[0]], __ATOMIC_ACQUIRE); };
    const auto is_ready = [&](Pid pid, Tid tid) {
      return area_->state(lowered_.slot_of.at({pid, tid})) == agent::slot_done;
    };
    // A test may have put a failure in its place.
    while (until.operation == agent::Operation::wait && area_->failed() == 0 && counter() < until.args[1]) {
      const timespec pause{0, 100'000};
      if (!resumption_->stop_ready(is_ready)) nanosleep(&pause, nullptr);
    }
  }

  /// Of a process that runs commands.
  Result<pid_t> host_pid(Pid pid) const {
    if (!application_.root_is_namespace_init) return pid.value;
    while (area_->failed() == 0) {  // who runs is there, but may be missed while it gets another parent
      const pid_t root = spawned_root();
      const auto threads = root != 0 ? host_threads(root) : std::map<pid_t, HostThread>();
      if (const auto found = threads.find(pid.value); found != threads.end()) return found->second.pid;
      usleep(1000);
    }
    return fail(Error::gone("find the process to be filled", fmt::format("pid {} of the namespace", pid)));
  }

  pid_t spawned_root() const {
    const auto& supervisor = area_->slot(0);
    const bool ran = supervisor.program_counter > lowered_.root_spawn || area_->state(0) == agent::slot_done;
    const int64_t result = ran ? agent::result_of(area_description_, area_->bytes(), 0, lowered_.root_spawn) : 0;
    return result > 0 ? static_cast<pid_t>(result) : 0;
  }

  Error failure(const Watchdog& watchdog) const {
    const auto stands_still = [&] { return watchdog.dead() || watchdog.standing(); };
    while (area_->failed() == agent::failing && !stands_still()) usleep(1000);
    if (const auto dead = watchdog.dead()) return died(*dead);
    if (const auto standing = watchdog.standing()) return no_headway(*standing);
    const auto& header = area_->header();
    const Watchdog::Position at{area_->failed() - 1, header.failed_instruction};
    return explain(command_at(at), subject_of(at), header.failed_result, purpose_of(command_at(at)));
  }

  Error died(Watchdog::Position at) const {
    const bool had_begun = area_->state(at.slot) != agent::slot_not_started;
    return Error::conflict("run the restore program",
                           had_begun ? "the task died in the middle of it" : "the task died before it had begun",
                           subject_of(at));
  }

  Error no_headway(const std::vector<Watchdog::Position>& standing) const {
    constexpr size_t most = 10;
    std::string places;
    for (const auto& at : standing | std::views::take(most)) places += "; " + subject_of(at);
    if (standing.size() > most) places += fmt::format("; and {} more", standing.size() - most);
    const auto seconds = std::chrono::duration<double>(options_.patience).count();
    return Error::conflict("run the restore program", fmt::format("nothing has moved for {} s{}", seconds, places))
        .advise("see who stops or blocks these tasks; `stasis plan` shows what they wait for");
  }

  uint32_t command_at(Watchdog::Position at) const {
    const auto& origins = area_description_.slots[at.slot].origins;
    return at.instruction < origins.size() ? origins[at.instruction] : 0;
  }
  std::string subject_of(Watchdog::Position at) const {
    const auto [pid, tid] =
        std::ranges::find(lowered_.slot_of, at.slot, [](const auto& entry) { return entry.second; })->first;
    const uint32_t command = command_at(at);
    const auto name = plan::name_of(program_.commands[command].action);
    return pid.value == 0 ? fmt::format("command {} {} of the supervisor", command, name)
                          : fmt::format("command {} {} of task {}, thread {}", command, name, pid, tid);
  }

  static std::optional<pid_t> id_created_by(const plan::Action& action) {
    if (const auto* fork = std::get_if<plan::Fork>(&action)) return fork->child_pid.value;
    if (const auto* clone = std::get_if<plan::Clone>(&action)) return clone->child_pid.value;
    if (const auto* thread = std::get_if<plan::StartThread>(&action)) return thread->tid.value;
    return std::nullopt;
  }

  std::string purpose_of(uint32_t command) const {
    const auto* perform = std::get_if<plan::Perform>(&program_.commands[command].action);
    return perform == nullptr ? std::string() : perform->purpose;
  }

  Error explain(uint32_t command, const std::string& subject, int64_t result, const std::string& purpose) const {
    const std::string operation = purpose.empty() ? "run the restore program" : "restore " + purpose;
    if (result >= 0) {
      return Error::conflict(
          operation, fmt::format("a system call returned {}, which the program does not expect", result), subject);
    }
    auto error = Error::system(operation, static_cast<int>(-result), subject);
    const auto& action = program_.commands[command].action;
    const auto created = id_created_by(action);
    if (created && result == -EEXIST) {
      const auto holder =
          application_.root_is_namespace_init ? "another of its namespace" : kernel::holder_of_id(*created);
      return Error::conflict(operation, fmt::format("pid {} is taken by {}", *created, holder), subject)
          .advise("end that process, or restore in a pid namespace of its own");
    }
    if (created && result == -EINVAL) return std::move(error).advise("ids must be below the sysctl kernel.pid_max");
    if (created && result == -EPERM) {
      return std::move(error).advise("choosing pids needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN");
    }
    if (const auto* lock = std::get_if<plan::Lock>(&action);
        lock != nullptr && (result == -EAGAIN || result == -EACCES)) {
      return Error::conflict(operation,
                             fmt::format("the {} lock ({}, from byte {}, length {}) on {} is in the hands of another",
                                         lock->kind, lock->type, lock->start, lock->length, lock->path),
                             subject)
          .advise("`lslocks` shows whose it is: end that process, or let it give up its lock");
    }
    if (const auto* open = std::get_if<plan::Open>(&action)) return std::move(error).about(subject + ": " + open->path);
    return error;
  }

  /// Kills and reaps everything that was created.
  void destroy() {
    if (host_root_ == 0 && area_) host_root_ = spawned_root();
    const Subreaper reaper;
    ConnectionEnds connections(program_);
    NamespaceEnds namespaces(program_.agent_area);
    // Orphans have come to us, the root is our child or our sibling: from both everything can be reached.
    for (int round = 0; round < 1000; ++round) {
      bool found = false;
      std::vector<pid_t> doomed;
      if (options_.sibling && host_root_ > 0) doomed = kernel::list_descendants(host_root_);
      if (const auto children = kernel::list_children(getpid())) {
        for (const pid_t child : *children) {
          if (bystanders_.contains(child)) continue;
          const auto below = kernel::list_descendants(child);
          doomed.insert(doomed.end(), below.begin(), below.end());
        }
      }
      connections.prepare(doomed);
      namespaces.prepare(doomed);
      for (const pid_t pid : doomed) found = kill(pid, SIGKILL) == 0 || found;
      for (const pid_t pid : doomed) reap(pid);
      if (!found) return;
      usleep(500);
      if (options_.sibling && doomed.size() == 1) return;  // a zombie that its own parent reaps
    }
  }

  /// A thread that we trace has to be waited for on its own, and before its leader.
  static void reap(pid_t pid) {
    for (const pid_t tid : kernel::list_threads(pid).value_or(std::vector<pid_t>{})) {
      if (tid != pid) waitpid(tid, nullptr, __WALL | WNOHANG);
    }
    waitpid(pid, nullptr, __WALL | WNOHANG);
  }

  void undo() {
    destroy();
    const bool has_begun = !area_description_.slots.empty();
    if (has_begun && !std::exchange(is_cleaned_up_, true)) clean_up();
  }

  /// How many instructions of each command the supervisor has run with success.
  std::vector<size_t> supervised() const {
    const auto& slot = area_->slot(0);
    const auto& origins = area_description_.slots[0].origins;
    std::vector<size_t> done(program_.commands.size());
    const size_t end = slot.state == agent::slot_done ? origins.size() : slot.program_counter;
    for (size_t instruction = 0; instruction < end; ++instruction) ++done[origins[instruction]];
    return done;
  }

  /// Runs what the supervisor would have done last (removing temporary files), as far as it has not, whatever became of
  /// the rest.
  void clean_up() const {
    agent::SlotProgram settle(agent::EndMode::return_to_caller);
    const auto done = supervised();
    std::set<std::string> made;
    bool after_first_wait = false;
    for (size_t index = 0; index < program_.commands.size(); ++index) {
      const auto& command = program_.commands[index];
      if (command.pid.value != 0) continue;
      if (std::holds_alternative<plan::Await>(command.action)) after_first_wait = true;
      const auto* perform = std::get_if<plan::Perform>(&command.action);
      if (perform != nullptr && done[index] != 0) made.insert(perform->purpose);
      if (!after_first_wait || perform == nullptr || perform->attribute == plan::only_on_success) continue;
      if (!std::ranges::all_of(perform->undoes, [&](const auto& purpose) { return made.contains(purpose); })) continue;
      for (auto call : perform->calls | std::views::drop(done[index]))
        settle.call(plan::expecting(std::move(call), plan::Expectation::Kind::anything), 0);
    }
    if (settle.size() == 0) return;
    std::vector<agent::SlotProgram> slots;
    slots.push_back(std::move(settle));
    auto area = agent::build_area(0, std::move(slots), 1);
    if (area) agent::run_here(area->bytes.data(), 0);
  }

  // Copies: a tree may outlive the caller's temporaries.
  const plan::Program& program_;
  const model::Application& application_;
  ExecuteOptions options_;
  Lowered lowered_;
  agent::Area area_description_;
  std::optional<SharedArea> area_;
  std::optional<Supervision> supervision_;
  std::unique_ptr<Resumption> resumption_;
  std::set<pid_t> bystanders_;  ///< descendants of the program that has become stasis: none of our business
  pid_t host_root_ = 0;
  bool resumed_ = false, is_cleaned_up_ = false;
};

}  // namespace

Result<std::unique_ptr<BuiltTree>> BuiltTree::build(const plan::Program& program, const model::Application& application,
                                                    const image::Directory& images, const ExecuteOptions& options) {
  auto tree = std::make_unique<Tree>(program, application, options);
  TRY(tree->build(images));
  return std::unique_ptr<BuiltTree>(std::move(tree));
}

Result<std::vector<AddressRange>> own_mappings() {
  std::vector<AddressRange> ranges;
  for (const auto& entry : TRY(kernel::read_maps(getpid()))) ranges.push_back(entry.range);
  return ranges;
}

Result<int> own_highest_fd() {
  const auto open = TRY(kernel::list_descriptors(getpid()));
  return open.empty() ? 2 : open.back();
}

}  // namespace stasis::execute
