#include "plan/planner.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <ranges>
#include <set>

#include "plan/descriptors.h"
#include "plan/memory.h"
#include "plan/sharing_births.h"
#include "plan/tree_emission.h"

namespace stasis::plan {
namespace {

/// Bytes the program will need in the agent area, generously: instructions, data, stacks.
uint64_t needed_area(const Program& program) {
  const auto size_of = [](const Argument& argument) -> uint64_t {
    if (const auto* in = std::get_if<In>(&argument)) return in->bytes.size() + 32;
    if (const auto* out = std::get_if<Out>(&argument)) return out->size + 32;
    if (const auto* both = std::get_if<InOut>(&argument)) return both->bytes.size() + 32;
    return 0;
  };
  uint64_t bytes = 64 << 10;
  for (const auto& command : program.commands) {
    bytes += 512;
    if (const auto* perform = std::get_if<Perform>(&command.action)) {
      for (const auto& one : perform->calls) {
        bytes += 128;
        for (const auto& argument : one.arguments) bytes += size_of(argument);
      }
    }
    if (const auto* load = std::get_if<LoadPages>(&command.action)) bytes += load->runs.size() * 16;
    if (const auto* open = std::get_if<Open>(&command.action)) bytes += open->path.size();
    if (const auto* open = std::get_if<OpenTerminal>(&command.action); open != nullptr && open->path.empty())
      bytes += 4ull * model::index_of_terminal(open->terminal);
    const bool creates = std::holds_alternative<Fork>(command.action) ||
                         std::holds_alternative<Clone>(command.action) ||
                         std::holds_alternative<StartThread>(command.action);
    if (creates) bytes += 16 << 10;
  }
  return (bytes + page_size - 1) / page_size * page_size;
}

/// More than most programs need, from the numbers of what has to be made.
uint64_t guessed_area(const model::Application& application) {
  uint64_t threads = 0, things = application.descriptions.size();
  for (const auto& task : application.tasks) threads += 1 + task.threads.size();
  for (const auto& [id, table] : application.descriptor_tables) things += table.slots.size();
  for (const auto& [id, space] : application.address_spaces) things += space.mappings.size() + space.pages.size();
  return (1 << 20) + threads * (32 << 10) + (things + 1) / 2 * page_size;
}

/// Likewise: growing step by step would copy all of them again and again.
size_t guessed_commands(const model::Application& application) {
  size_t guess = 1024;
  for (const auto& task : application.tasks) guess += 64 + 16 * task.threads.size();
  for (const auto& [id, table] : application.descriptor_tables) guess += 2 * table.slots.size();
  for (const auto& [id, space] : application.address_spaces) guess += 2 * space.mappings.size();
  return guess;
}

/// A gap between all mappings of all address spaces (and stasis' own), the highest that is large enough: low addresses
/// are where programs without position independence and their heaps live.
Result<AddressRange> choose_agent_area(const model::Application& application, const PlanOptions& options,
                                       uint64_t needed) {
  std::vector<AddressRange> used = options.occupied;
  for (const auto& [id, space] : application.address_spaces) {
    for (const auto& mapping : space.mappings) used.push_back(mapping.range);
  }
  std::ranges::sort(used, {}, &AddressRange::begin);
  // Behind the area a shared segment is mapped for a moment while it is filled: leave room for the largest.
  uint64_t scratch = 0;
  for (const auto& [id, segment] : application.shared_memories) scratch = std::max(scratch, scratch_space(segment));
  const uint64_t size = std::max(needed, options.agent_area_size), room = size + scratch + 2 * page_size;
  constexpr uint64_t lowest = 1 << 20, highest = 0x7ffffffff000;
  used.push_back({highest, ~0ull});
  uint64_t found = 0, covered = lowest;
  for (const auto& range : used) {
    if (range.begin > highest) break;
    if (range.begin > covered && range.begin - covered >= room) found = range.begin - room + page_size;
    covered = std::max(covered, range.end);
  }
  if (found == 0)
    return fail(Error::conflict("plan the restore", "no address range is free in all address spaces for the agent"));
  return AddressRange{found, found + size};
}

class Planner {
 public:
  Planner(const model::Application& application, const Contributors& contributors, const PlanOptions& options,
          AddressRange agent_area)
      : application_(application), out_(application, contributors, options), options_(options) {
    out_.program.agent_area = agent_area;
    for (const auto& task : application.tasks) ++users_[task.address_space];
  }

  Result<Program> run() {
    const auto [tree, carried, copied_from] = TRY(plan_sharing_tree(application_, options_));
    choose_numbers();
    out_.carried = carried;
    find_inheritance(tree, copied_from);
    lazy_.emplace(out_, inherits_);
    out_.program.commands.reserve(guessed_commands(application_));
    segments_.emplace(out_, memory_order(tree));
    descriptors_.emplace(out_, tree);

    supervise(Stage::prepare);
    TreeEmission emission(out_, tree,
                          {[this](Pid pid, Origin origin) { return born(pid, origin); },
                           [this](Pid pid, ObjectId table) { close_held(pid, table); }});
    TRY(emission.create());
    emission.groups();
    emission.terminals();
    emission.finish();
    // From here on the tree stands: nobody's parent, group or session changes any more.
    TRY(build_processes());
    build_threads();
    complete();
    supervise(Stage::settle);
    out_.close_given(Pid{0});
    TRY(finish());
    return std::move(out_.program);
  }

 private:
  // ---- numbers that must be free everywhere

  void choose_numbers() {
    int highest = 2;
    for (const auto& [id, table] : application_.descriptor_tables) {
      if (!table.slots.empty()) highest = std::max(highest, table.slots.rbegin()->first);
    }
    for (const auto& [id, description] : application_.descriptions) {
      for (const auto& watch : description.watches) highest = std::max(highest, watch.fd);
    }
    int first = std::max(highest + 1, options_.first_free_fd);
    if (options_.descriptor_limit != 0 && first > options_.descriptor_limit / 2) first = begin_of_widest_gap();
    out_.program.images_fd = first;
    const int pidfds = out_.spaces.any() ? 1 + static_cast<int>(application_.tasks.size()) : 0;
    // Until it gives them stasis itself may open one or the other file, under the lowest number.
    constexpr int opened_meanwhile = 16;
    const int given = first + 1 + pidfds + opened_meanwhile;
    out_.inherit_given(given);
    first_terminal_ = out_.given().empty() ? first + 1 + pidfds : given + static_cast<int>(out_.given().size());
    out_.set_first_temporary(first_terminal_ + 2 * static_cast<int>(application_.terminals.size()));
  }

  /// Programs like Valgrind have their descriptors under the highest numbers that there are.
  int begin_of_widest_gap() const {
    std::vector<int> taken{options_.descriptor_limit};
    for (const auto& [id, table] : application_.descriptor_tables) {
      for (const auto& [number, slot] : table.slots) taken.push_back(number);
    }
    for (const auto& [id, description] : application_.descriptions) {
      for (const auto& watch : description.watches) taken.push_back(watch.fd);
    }
    std::ranges::sort(taken);
    int next = std::max(3, options_.first_free_fd), best = next, width = 0;
    for (const int number : taken) {
      if (number - next > width) best = next, width = number - next;
      next = std::max(next, number + 1);
    }
    return best;
  }

  // ---- copy-on-write

  bool shares_pages(Pid pid) const {
    const auto* task = out_.tasks.find(pid);
    if (task == nullptr || task->state == model::TaskState::zombie) return false;
    const auto pages = options_.pages.find(task->address_space);
    return pages != options_.pages.end() && std::ranges::any_of(pages->second, &PageLocation::shared_with_parent);
  }

  /// A child inherits pages if the one whose copy it is at birth is its parent; that one's memory must be complete
  /// first.
  void find_inheritance(const CreationTree& tree, const std::map<Pid, Pid>& copied_from) {
    std::map<std::pair<Pid, ObjectId>, int>
        heirs;  // siblings that share one memory: none of them is its creator's copy
    for (const auto& [child, creator] : tree.creator) {
      if (const auto* task = out_.tasks.find(child)) ++heirs[{creator, task->address_space}];
    }
    for (const auto& [child, creator] : tree.creator) {
      const auto& node = tree.nodes.at(child);
      if (node.transient || node.parent != creator || copied_from.contains(child) || !shares_pages(child)) continue;
      // What is held open for others while memory is early would stay in the table that it does not keep.
      if (out_.carried.files.contains(child) || out_.carried.files.contains(creator)) continue;
      if (heirs.at({creator, out_.tasks.find(child)->address_space}) > 1) continue;
      const auto* parent = out_.tasks.find(creator);
      if (parent == nullptr || parent->address_space == out_.tasks.find(child)->address_space) continue;
      inherits_.insert(child);
      memory_first_.insert(creator);
    }
    // A process that inherits has its memory early by nature.
    for (const Pid pid : inherits_) memory_first_.insert(pid);
  }

  /// The order in which address spaces are built: those that are inherited from come with the tree, the others later.
  std::vector<Pid> memory_order(const CreationTree& tree) const {
    std::vector<Pid> order;
    std::ranges::copy_if(birth_order(tree), std::back_inserter(order),
                         [&](Pid pid) { return memory_first_.contains(pid); });
    for (const auto& task : application_.tasks) {
      if (!memory_first_.contains(task.pid)) order.push_back(task.pid);
    }
    return order;
  }

  /// Called when a process has been created and before it creates anybody.
  Status born(Pid pid, Origin origin) {
    if (pid == application_.root) {
      out_.open_root_pidfd(out_.program.images_fd + 1);
      out_.open_terminals(first_terminal_);
    }
    const auto* task = out_.tasks.find(pid);
    const auto* memorys = out_.tasks.find(origin.memory);
    const bool shares_memory = task != nullptr && memorys != nullptr && task->address_space == memorys->address_space &&
                               task->state != model::TaskState::zombie;
    const ObjectId table = out_.table_of(pid);
    const bool shares_files = table.value != 0 && table == out_.table_of(origin.table);
    if (!shares_files) close_held(pid, out_.table_of(origin.table));
    TRY(descriptors_->born(pid, origin.table));
    if (shares_memory) return {};
    const bool creator_has_memory = memory_first_.contains(origin.memory);
    if (origin.memory.value == 0 || (creator_has_memory && !inherits_.contains(pid)))
      out_.process(pid).add(ClearMemory{});
    if (task == nullptr || task->state == model::TaskState::zombie || !memory_first_.contains(pid)) return {};
    return build_memory(*task);
  }

  /// Whoever has this table may hold shared segments open in it for others: who has a copy does not.
  void close_held(Pid pid, ObjectId table) {
    const auto held = held_for_others_.find(table);
    if (held == held_for_others_.end()) return;
    for (const int fd : held->second) out_.process(pid).add(Close{fd});
  }

  MemoryPlan memory_plan(const model::Task& task) {
    const auto* space = &application_.address_spaces.at(task.address_space);
    const model::AddressSpace* from = nullptr;
    if (inherits_.contains(task.pid))
      from = &application_.address_spaces.at(out_.tasks.find(task.parent)->address_space);
    return {.pid = task.pid, .space = space, .inherited_from = from, .lazy = &*lazy_};
  }

  Status build_memory(const model::Task& task) {
    auto plan = memory_plan(task);
    plan.part = MemoryPlan::Part::without_passed_files;  // descriptors come later
    TRY(plan_segments(out_, plan, *segments_));
    for (const auto& [id, fd] : segments_->held_at) {
      if (segments_->is_owner(id, task.pid)) held_for_others_[task.descriptors].push_back(fd);
    }
    TRY(plan_mappings(out_, plan, *segments_, nothing_is_open));
    mapped_.insert(task.address_space);
    return {};
  }

  // ---- processes

  template <typename Visit>
  Status each_live(Visit visit) {
    for (const auto& task : application_.tasks) {
      if (task.state != model::TaskState::zombie) TRY(visit(task));
    }
    return {};
  }

  Status build_processes() {
    TRY(each_live([&](const model::Task& task) -> Status {
      if (!descriptors_->works_on_table(task)) return {};
      out_.take_table(task.pid);
      return descriptors_->make(task.pid);
    }));
    TRY(each_live([&](const model::Task& task) -> Status {
      if (!descriptors_->works_on_table(task)) return {};
      out_.take_table(task.pid);
      TRY(descriptors_->take(task.pid));
      return descriptors_->complete(task.pid);
    }));
    // Everybody has what belongs to him: now epolls get what they wait for.
    TRY(each_live([&](const model::Task& task) -> Status {
      if (!descriptors_->works_on_table(task)) return {};
      out_.take_table(task.pid);
      descriptors_->borrow(task.pid);
      return {};
    }));
    TRY(each_live([&](const model::Task& task) -> Status {
      if (!descriptors_->works_on_table(task)) return {};
      out_.take_table(task.pid);
      descriptors_->watch(task.pid);
      return {};
    }));
    TRY(each_live([&](const model::Task& task) -> Status {
      out_.take_table(task.pid);
      auto plan = memory_plan(task);
      if (mapped_.contains(task.address_space)) {
        if (!memory_first_.contains(task.pid)) return {};  // through another task that has it
        plan.part = MemoryPlan::Part::passed_files_only;
      } else {
        TRY(plan_segments(out_, plan, *segments_));
      }
      TRY(plan_mappings(out_, plan, *segments_, descriptors_->open_in(task.pid)));
      mapped_.insert(task.address_space);
      return {};
    }));
    std::set<ObjectId> done;
    TRY(each_live([&](const model::Task& task) -> Status {
      if (!done.insert(task.address_space).second) return {};
      out_.take_table(task.pid);
      close_segments(out_, task.pid, *segments_);
      TRY(plan_memory_state(out_, memory_plan(task), descriptors_->open_in(task.pid)));
      lazy_->plan(out_, task);
      return {};
    }));
    return each_live([&](const model::Task& task) -> Status {
      out_.take_table(task.pid);
      if (descriptors_->works_on_table(task)) descriptors_->close_temporaries(task.pid);
      auto sink = out_.process(task.pid);
      for (const auto* room : out_.contributors.rooms) room->contribute(Stage::process, application_, task, sink);
      return {};
    });
  }

  void build_threads() {
    for (const auto& task : application_.tasks) {
      if (task.state == model::TaskState::zombie) continue;
      for (const auto& thread : task.threads) {
        // It was there before the memory was, to create somebody.
        if (out_.has_started(thread.tid)) early_threads_.insert(thread.tid);
      }
      out_.start_threads(task);
      for (const auto& thread : task.threads) {
        auto sink = out_.thread(task.pid, thread.tid);
        contribute(Stage::thread, task, thread, sink);
        if (has_all_memory(task, thread)) contribute(Stage::memory, task, thread, sink);
      }
    }
  }

  void contribute(Stage stage, const model::Task& task, const model::Thread& thread, Sink& sink) const {
    for (const auto* room : out_.contributors.rooms) room->contribute(stage, application_, task, thread, sink);
  }

  /// When the thread's own commands run: nobody else may still be filling it.
  bool has_all_memory(const model::Task& task, const model::Thread& thread) const {
    return users_.at(task.address_space) == 1 && !early_threads_.contains(thread.tid);
  }

  void supervise(Stage stage) {
    auto sink = out_.process(Pid{0});
    for (const auto* room : out_.contributors.rooms) room->contribute(stage, application_, sink);
    for (const auto* maker : out_.contributors.makers) maker->contribute(stage, application_, sink);
  }

  /// Everybody has everything that comes from outside of himself.
  void complete() {
    for (const auto& task : application_.tasks) {
      if (task.state == model::TaskState::zombie) continue;
      for (const auto& thread : task.threads) out_.post(out_.thread(task.pid, thread.tid), "complete");
    }
    out_.await_all(out_.process(Pid{0}), "complete");
  }

  Status finish() {
    out_.post(out_.process(Pid{0}), "settled");
    std::set<Tid> waited;
    for (const auto& task : application_.tasks) {
      if (task.state == model::TaskState::zombie) continue;
      for (const auto& thread : std::views::reverse(task.threads)) {  // the leader last
        TRY(once_settled(task, thread, waited, [&](Sink& sink) { return finish(task, thread, sink); }));
      }
    }
    for (const auto& task : application_.tasks) {  // parents first: their threads end
      if (task.state == model::TaskState::zombie) continue;
      out_.await_passing_on(task);
      for (const auto& thread : task.threads) {  // the last may wait for all others
        TRY(once_settled(task, thread, waited, [&](Sink& sink) -> Status {
          contribute(Stage::privileges, task, thread, sink);
          return {};
        }));
        if (thread.has_ended()) out_.end(task, thread);  // the next takes its children over before its own rights go
      }
      for (const auto& thread : task.threads) {
        if (!thread.has_ended()) out_.end(task, thread);
      }
    }
    descriptors_->end_repairs();
    return {};
  }

  Status finish(const model::Task& task, const model::Thread& thread, Sink& sink) {
    out_.enter_childrens_namespace(task, thread);
    if (thread.tid == leader_of(task.pid)) {
      if (out_.bereaved.contains(task.pid)) forget_children(task, sink);
      if (descriptors_->works_on_table(task)) {
        sink.add(Close{out_.program.images_fd});
        out_.close_pidfds(task.pid);
        out_.close_given(task.pid);
        out_.close_terminals(task.pid);
        descriptors_->start(task.pid);
      }
      TRY(descriptors_->lock(task));
    }
    if (!has_all_memory(task, thread)) contribute(Stage::memory, task, thread, sink);
    contribute(Stage::final, task, thread, sink);
    return {};
  }

  /// What a thread does last waits until everything is settled. One that has nothing left to do is not made to wait: to
  /// sleep and be woken once more is a good part of what a thread costs.
  Status once_settled(const model::Task& task, const model::Thread& thread, std::set<Tid>& waited,
                      const std::function<Status(Sink&)>& add) {
    auto& commands = out_.program.commands;
    const auto begin = static_cast<ptrdiff_t>(commands.size());
    auto sink = out_.thread(task.pid, thread.tid);
    TRY(add(sink));
    const auto acts = [](const Command& command) {
      const auto* perform = std::get_if<Perform>(&command.action);
      return perform == nullptr || !perform->calls.empty();
    };
    const auto added = std::ranges::subrange(commands.begin() + begin, commands.end());
    if (std::ranges::none_of(added, acts) || !waited.insert(thread.tid).second) return {};
    out_.await_all(sink, "settled");
    std::rotate(commands.begin() + begin, commands.end() - 1, commands.end());
    return {};
  }

  /// Children have ended while the tree was built: their SIGCHLD is not part of what was saved. Zombies that belong to
  /// the tree are awaited (without reaping them) so that theirs is there before it is dropped.
  void forget_children(const model::Task& task, Sink& sink) {
    Calls calls;
    for (const auto& child : application_.tasks) {
      if (child.parent != task.pid || child.state != model::TaskState::zombie) continue;
      calls.push_back(
          call(SYS_waitid, P_PID, out_.spaces.number(child.pid.value, task.pid_namespace), 0, WEXITED | WNOWAIT, 0));
    }
    const uint64_t only_sigchld = 1ull << (SIGCHLD - 1);
    const std::array<int64_t, 2> at_once{0, 0};
    calls.push_back(
        expecting(call(SYS_rt_sigtimedwait, struct_in(only_sigchld), 0, struct_in(at_once), sizeof only_sigchld),
                  Expectation::Kind::anything));
    sink.perform("forget the ends of transient processes", "", std::move(calls));
  }

  const model::Application& application_;
  Emission out_;
  const PlanOptions& options_;
  int first_terminal_ = -1;
  std::map<ObjectId, int> users_;  ///< of each address space
  std::set<Tid> early_threads_;
  std::set<Pid> inherits_, memory_first_;
  std::set<ObjectId> mapped_;
  std::map<ObjectId, std::vector<int>> held_for_others_;  ///< by descriptor table
  std::optional<SharedSegments> segments_;
  std::optional<LazyMemory> lazy_;
  std::optional<DescriptorPlan> descriptors_;
};

}  // namespace

Result<Program> make_program(const model::Application& application, const Contributors& contributors,
                             const PlanOptions& options) {
  // The commands speak of the agent area's address, which is chosen before its size is known. Addresses cost nothing:
  // the guess is generous, and only a program that does not fit after all is planned again.
  auto area = TRY(choose_agent_area(application, options, guessed_area(application)));
  auto program = TRY(Planner(application, contributors, options, area).run());
  const uint64_t needed = needed_area(program);
  if (needed <= area.size()) return program;
  area = TRY(choose_agent_area(application, options, needed));
  return Planner(application, contributors, options, area).run();
}

Status place_agent(Program& program, std::vector<AddressRange> occupied) {
  PlanOptions options;
  options.occupied = std::move(occupied);
  program.agent_area = TRY(choose_agent_area({}, options, needed_area(program)));
  return {};
}

}  // namespace stasis::plan
