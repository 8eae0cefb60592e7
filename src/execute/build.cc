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
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <ranges>
#include <set>
#include <thread>

#include "agent/area.h"
#include "base/parallel.h"
#include "execute/connection_ends.h"
#include "execute/decoding.h"
#include "execute/end_repair.h"
#include "execute/execute.h"
#include "execute/lower.h"
#include "execute/namespace_ends.h"
#include "execute/owing.h"
#include "execute/resume.h"
#include "kernel/descriptor_limit.h"
#include "kernel/id_holder.h"
#include "kernel/proc.h"
#include "kernel/process.h"
#include "plan/contributor.h"

namespace stasis::execute {
namespace {

/// The agent area mapped in stasis at the address it has in every process being built.
class SharedArea {
 public:
  static Result<SharedArea> create(AddressRange where) {
    const UniqueFd memory(memfd_create("stasis-agent", MFD_CLOEXEC));
    if (!memory.valid()) return fail_errno("memfd_create", "the agent area");
    if (ftruncate(memory.get(), static_cast<off_t>(where.size())) != 0)
      return fail_errno("ftruncate", "the agent area");
    void* mapped = mmap(reinterpret_cast<void*>(where.begin), where.size(), PROT_READ | PROT_WRITE | PROT_EXEC,
                        MAP_SHARED | MAP_FIXED_NOREPLACE, memory.get(), 0);
    if (mapped == MAP_FAILED) return fail_errno("mmap", fmt::format("the agent area at {:#x}", where.begin));
    return SharedArea(static_cast<uint8_t*>(mapped), where.size());
  }
  SharedArea(SharedArea&& other) noexcept : base_(std::exchange(other.base_, nullptr)), size_(other.size_) {}
  SharedArea& operator=(SharedArea&&) = delete;
  ~SharedArea() {
    if (base_ != nullptr) munmap(base_, size_);
  }

  uint8_t* base() const { return base_; }
  ByteView bytes() const { return {base_, size_}; }
  std::span<uint8_t> memory() const { return {base_, size_}; }
  agent::Header& header() const { return *reinterpret_cast<agent::Header*>(base_ + agent::code_space); }
  agent::Slot& slot(uint32_t index) const { return reinterpret_cast<agent::Slot*>(base_ + header().slots)[index]; }
  uint32_t ready() const {
    return __atomic_load_n(reinterpret_cast<uint32_t*>(base_ + header().counters) + agent::ready_counter,
                           __ATOMIC_ACQUIRE);
  }
  std::span<uint32_t> counters() const {
    return {reinterpret_cast<uint32_t*>(base_ + header().counters), header().counter_count};
  }
  uint32_t failed() const { return __atomic_load_n(&header().failed, __ATOMIC_ACQUIRE); }
  /// Makes every waiting slot give up, as a slot that fails does.
  void cancel() const {
    uint32_t nobody = 0;
    __atomic_compare_exchange_n(&header().failed, &nobody, agent::failing, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
  }

 private:
  SharedArea(uint8_t* base, uint64_t size) : base_(base), size_(size) {}
  uint8_t* base_;
  uint64_t size_;
};

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

/// Looks for tasks that died without saying so: nobody would ever post what others wait for.
class Watchdog {
 public:
  /// `runners` are those of the slots, by ids of the tree's own pid namespace: what a slot notes are its own numbers,
  /// which in a nested namespace are others.
  Watchdog(const SharedArea& area, std::vector<Runner> runners, bool same_namespace, unsigned timeout_seconds)
      : area_(area),
        runners_(std::move(runners)),
        same_namespace_(same_namespace),
        timeout_(timeout_seconds),
        thread_([this] { watch(); }) {}
  ~Watchdog() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// The slot whose thread died, once there is one.
  uint32_t dead_slot() const { return dead_slot_; }
  bool timed_out() const { return timed_out_; }

 private:
  void watch() {
    const auto start = std::chrono::steady_clock::now();
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, std::chrono::milliseconds(100), [this] { return done_; })) {
      const auto waited = std::chrono::steady_clock::now() - start;
      if (timeout_ != 0 && waited > std::chrono::seconds(timeout_)) {
        timed_out_ = true;
        area_.cancel();
        return;
      }
      look();
    }
  }
  /// Who cannot be seen need not be dead: a process that is born or gets another parent while the tree is walked may be
  /// missed. One that is dead is so the next time, too, and has not come further.
  void look() {
    std::map<uint32_t, uint32_t> suspects;
    std::map<pid_t, bool> states;
    if (!same_namespace_) states = namespace_states();
    for (uint32_t index = 1; index < area_.header().slot_count; ++index) {
      const auto& slot = area_.slot(index);
      if (__atomic_load_n(&slot.state, __ATOMIC_ACQUIRE) != agent::slot_running || slot.tid == 0) continue;
      const auto [pid, tid] = runners_.at(index);
      const auto state = states.find(pid.value);
      const bool dead = same_namespace_ ? is_dead(pid.value, tid.value) : state == states.end() || state->second;
      if (!dead || may_end_now(slot)) continue;
      suspects[index] = slot.program_counter;
      if (const auto before = suspects_.find(index); before == suspects_.end() || *before != *suspects.find(index))
        continue;
      dead_slot_ = index;
      area_.cancel();
      return;
    }
    suspects_ = std::move(suspects);
  }
  /// Whether processes are dead, by their ids in the tree's namespace. Their threads are not looked at.
  static std::map<pid_t, bool> namespace_states() {
    std::map<pid_t, bool> states;
    size_t own_level = 0;
    for (const pid_t pid : kernel::list_descendants(getpid())) {
      const auto status = kernel::read_status(pid);
      const auto stat = kernel::read_stat(pid);
      if (!status || !stat) continue;
      if (pid == getpid()) own_level = status->ns_pid.size();
      if (status->ns_pid.size() > own_level)
        states[status->ns_pid[own_level]] = stat->is_dead() && !stat->has_left_threads();
    }
    return states;
  }
  static bool is_dead(pid_t pid, pid_t tid) {
    const auto stat = kernel::read_thread_stat(pid, tid);
    return !stat || stat->is_dead();
  }
  /// A slot at its EXIT command is dying as it was told.
  bool may_end_now(const agent::Slot& slot) const {
    const auto* program = reinterpret_cast<const agent::Instruction*>(area_.base() + slot.instructions);
    return slot.program_counter < slot.instruction_count &&
           program[slot.program_counter].operation == agent::Operation::exit;
  }

  const SharedArea& area_;
  std::vector<Runner> runners_;
  bool same_namespace_;
  unsigned timeout_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool done_ = false;
  std::map<uint32_t, uint32_t> suspects_;  ///< slots that looked dead the last time, and where they stood
  std::atomic<uint32_t> dead_slot_{0};
  std::atomic<bool> timed_out_{false};
  std::thread thread_;  // last: it uses all of the above
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
    std::vector<Runner> runners(area_->header().slot_count);
    for (const auto& [runner, slot] : lowered_.slot_of) runners.at(slot) = runner;
    const Watchdog watchdog(*area_, std::move(runners), !application_.root_is_namespace_init, options_.timeout_seconds);
    const RequestScene scene{.counters = area_->counters(),
                             .has_failed = [this] { return area_->failed() != 0; },
                             .cancel = [this] { area_->cancel(); },
                             .host_pid = [this](Pid pid) { return host_pid(pid); }};
    const Decoding decoding(program_, lowered_, images, scene, options_.consumed);
    const Owing owing(program_, lowered_, scene, options_.hand_over);
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
    const uint32_t all = slot.instruction_count;
    if (lowered_.last_wait && !options_.only_build) {
      slot.instruction_count = *lowered_.last_wait;
      agent::run_here(area_->base(), 0);
      if (slot.state == agent::slot_failed) return;  // how far it has come is known by its program counter (clean_up)
      stop_ready_threads(
          reinterpret_cast<const agent::Instruction*>(area_->base() + slot.instructions)[*lowered_.last_wait]);
      slot.program_counter = *lowered_.last_wait, slot.instruction_count = all;
    }
    agent::run_here(area_->base(), 0);
  }

  void stop_ready_threads(const agent::Instruction& until) {
    const auto counter = [&] { return __atomic_load_n(&area_->counters()[until.args[0]], __ATOMIC_ACQUIRE); };
    const auto is_ready = [&](Pid pid, Tid tid) {
      auto& slot = area_->slot(lowered_.slot_of.at({pid, tid}));
      return __atomic_load_n(&slot.state, __ATOMIC_ACQUIRE) == agent::slot_done;
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
      if (const pid_t root = spawned_root(); root != 0) {
        const auto own = kernel::read_status(root);
        const size_t level = own ? own->ns_pid.size() : 0;
        for (const pid_t found : kernel::list_descendants(root)) {
          const auto status = kernel::read_status(found);
          if (level != 0 && status && status->ns_pid.size() >= level && status->ns_pid[level - 1] == pid.value)
            return found;
        }
      }
      usleep(1000);
    }
    return fail(Error::gone("find the process to be filled", fmt::format("pid {} of the namespace", pid)));
  }

  pid_t spawned_root() const {
    const auto& supervisor = area_->slot(0);
    const bool ran = supervisor.program_counter > lowered_.root_spawn ||
                     __atomic_load_n(&supervisor.state, __ATOMIC_ACQUIRE) == agent::slot_done;
    const int64_t result = ran ? agent::result_of(area_description_, area_->bytes(), 0, lowered_.root_spawn) : 0;
    return result > 0 ? static_cast<pid_t>(result) : 0;
  }

  Error failure(const Watchdog& watchdog) const {
    if (watchdog.timed_out()) {
      return Error::conflict("build the processes", fmt::format("not complete after {} s", options_.timeout_seconds))
          .advise("raise --timeout");
    }
    while (area_->failed() == agent::failing && watchdog.dead_slot() == 0) usleep(1000);
    const uint32_t slot = watchdog.dead_slot() != 0 ? watchdog.dead_slot() : area_->failed() - 1;
    const auto [pid, tid] =
        std::ranges::find(lowered_.slot_of, slot, [](const auto& entry) { return entry.second; })->first;
    const auto& header = area_->header();
    const uint32_t instruction =
        watchdog.dead_slot() != 0 ? area_->slot(slot).program_counter : header.failed_instruction;
    const auto& origins = area_description_.slots[slot].origins;
    const uint32_t command = instruction < origins.size() ? origins[instruction] : 0;
    const std::string name(plan::name_of(program_.commands[command].action));
    const std::string subject = pid.value == 0
                                    ? fmt::format("command {} {} of the supervisor", command, name)
                                    : fmt::format("command {} {} of task {}, thread {}", command, name, pid, tid);
    if (watchdog.dead_slot() != 0) {
      return Error::conflict("run the restore program", "the task died in the middle of it", subject);
    }
    return explain(command, subject, header.failed_result, purpose_of(command));
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
