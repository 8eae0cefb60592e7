// The verifier against wrong programs: a correct one with one command left out, doubled, moved or changed.
#include <gmock/gmock.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>

#include <nlohmann/json.hpp>
#include <set>

#include "plan/planner.h"
#include "plan/verify.h"
#include "resource/registry.h"
#include "sample_tree.h"

namespace stasis::plan {
namespace {

using Json = nlohmann::ordered_json;
using model::Backing;

struct FakeMaker : DescriptionMaker {
  std::string_view kind() const override { return "fake"; }
  bool reopenable() const override { return true; }
  bool seekable() const override { return true; }
  Status make(const model::Application&, std::span<const Placement> placements, Sink& sink) const override {
    for (const auto& placement : placements) {
      if (placement.inherited >= 0)
        sink.add(Dup2{placement.inherited, placement.fd});
      else
        sink.add(Open{"/fake", 0, 0, placement.fd, placement.description->id});
      if (const Pid needed = process(*placement.description); needed.value != 0) {
        Perform perform{"look at a process", "", {}, {}, {call(4)}};
        perform.processes.push_back(needed);
        sink.add(std::move(perform));
      }
    }
    return {};
  }
  Status complete(const model::Application&, std::span<const Placement> placements, const OpenNumbers&,
                  Sink& sink) const override {
    for (const auto& placement : placements) {
      Perform perform{"fill", "", {}, {}, {call(3)}};
      perform.completes.push_back({placement.fd, placement.description->id});
      sink.add(std::move(perform));
    }
    return {};
  }
  bool can_be_inherited(const model::OpenDescription& description) const override {
    return description.id.value >= 510;
  }
  void start(const model::Application&, const model::OpenDescription& description, int fd, Sink& sink) const override {
    Perform perform{"start /fake", "", {}, {}, {call(3)}};
    perform.starts.push_back({fd, description.id});
    sink.add(std::move(perform));
  }
  Pid process(const model::OpenDescription& description) const override {
    return description.id.value == 507 ? Pid{105} : Pid{};
  }
  void contribute(Stage stage, const model::Application&, Sink& sink) const override {
    if (stage == Stage::prepare) {
      sink.perform("make /fake", "", {call(1)});
      sink.add(DecodeFile{"fake.img", 8, 100, -1, "/fake", 0});
    }
    if (stage == Stage::settle) sink.undo("remove /fake", std::string(only_on_success), {call(2)}, "make /fake");
  }
};

/// Threads, one whose first has ended, with an orphan that has a death signal, a zombie, a session whose leader is
/// dead, a group led from elsewhere, a lift to a subreaper, siblings that share their memory, a terminal with a group
/// in its foreground and a member that it does not control, a pid namespace that somebody else has entered, descriptors
/// and a table shared, some in flight, one taken from a process that cannot be named, an epoll whose targets are under
/// their numbers, in another process and under the number that it has itself by now, something that is started last,
/// two connections that are in repair mode until the end, something that is inherited, something that stasis gives,
/// memory with stored pages, one of which a child inherits, one that comes later, pages and a file that are stored in
/// blocks, System V memory, and locks of all kinds.
class Sample : private SampleTree {
 public:
  Sample() {
    add(100, 0, 100, 100, 2);
    add(101, 100, 102, 100);
    add(102, 100, 101, 100);                                              // two groups led crosswise
    add(103, 101, 90, 90).threads.front().parent_death_signal = SIGTERM;  // the leader of session 90 is dead
    add(104, 100, 100, 100).child_subreaper = true;
    add(105, 104, 105, 105);
    auto& zombie = add(106, 100, 100, 100);
    zombie.state = model::TaskState::zombie;
    zombie.exit_status = 3 << 8;
    zombie.threads.clear();
    add(107, 100, 100, 100, 3).threads[0].exit_status = 5 << 8;
    add(108, 107, 100, 100);
    add(126, 107, 91, 91).threads.front().parent_death_signal = SIGTERM;
    application_.root = Pid{100};
    add_terminal();
    add_namespace();
    add(114, 100, 100, 100), add(115, 100, 100, 100).address_space = task(114).address_space;
    task(102).descriptors = task(100).descriptors;
    task(102).fs = task(100).fs;
    open(100, 0, 501);
    open(100, 1, 502);
    open(101, 1, 501);
    open(101, 7, 503);
    open(105, 3, 503);
    application_.descriptions.at(ObjectId{502}).position = 77;
    describe(504), describe(505);  // in no table
    application_.descriptions.at(ObjectId{501}).carries = {ObjectId{503}, ObjectId{504}};
    application_.descriptions.at(ObjectId{504}).carries = {ObjectId{501}, ObjectId{505}};
    open(105, 4, 506);
    application_.descriptions.at(ObjectId{506}).starts_last = true;
    for (const uint32_t id : {512, 513}) open(105, static_cast<int>(id) - 500, id), connection(id);
    open(103, 12, 512);
    open(103, 0, 507);
    open(100, 5, 508);
    open(103, 5, 508);
    application_.descriptions.at(ObjectId{508}).given = 4;
    application_.descriptions.at(ObjectId{503}).watches = {
        {ObjectId{501}, 1, 0x19, 11}, {ObjectId{501}, 7, 0x40000000, 12}, {ObjectId{502}, 5, 0x1d, 13}};
    // What 108 is born with: under its number, and under a passing one.
    open(107, 8, 510), open(108, 8, 510);
    open(107, 9, 511), open(108, 10, 511);
    application_.descriptor_tables.at(task(108).descriptors).slots.at(8).close_on_exec = true;
    map(100, 0x10000, 4);
    map(105, 0x20000, 2);
    options_.pages.at(task(105).address_space).front().through_stasis = true;
    task(105).threads.front().clear_child_tid = 0x20000;  // of that page: it cannot wait
    options_.lazy = true;
    // 104 has the first page of 100 in common with it, and not the second.
    store(100, 0x12000, false);
    task(100).threads.front().clear_child_tid = 0x12000;  // so that it is there when 104 is born
    store(100, 0x13000, false);                           // and this one comes later
    map_file(105, 0x40000, 516);
    map(104, 0x10000, 4, true);
    application_.address_spaces.at(task(104).address_space).mappings.back().protection = PROT_READ;
    attach(105, 0x30000, false), attach(103, 0x30000, true);
    lock(101, 501, 0), lock(101, 501, 100), lock(100, 502, 7, Pid{102});
    own(503, model::FileLock::Kind::flock), own(506, model::FileLock::Kind::lease);
    contributors_ = resource::contributors();
    contributors_.makers = {&maker_};
  }

  using SampleTree::application;
  Program program() const {
    auto made = make_program(application_, contributors_, options_);
    if (!made) throw std::runtime_error(made.error().message());
    return *made;
  }

 private:
  void add_terminal() {
    const uint64_t terminal = model::terminal_with_index(0);
    add(109, 105, 109, 105).controlling_terminal = terminal;
    add(110, 105, 105, 105);
    task(105).controlling_terminal = terminal;
    open(100, 14, 515);
    application_.descriptions.at(ObjectId{515}).flags = O_RDWR;
    application_.terminals[terminal] = {ObjectId{515}, Pid{105}, Pid{109}, true};
  }
  void add_namespace() {
    const auto enter = [&](pid_t pid, pid_t nested) {
      auto& inside = task(pid);
      inside.pid_namespace = Pid{111}, inside.nested_pids = {nested};
      inside.threads.front().nested_tids = {nested};
    };
    add(111, 100, 100, 100), add(112, 111, 100, 100), add(113, 100, 100, 100);
    enter(111, 1), enter(112, 2);
    task(113).threads.front().childrens_namespace = Pid{111};
    add(124, 100, 100, 100), add(125, 124, 100, 100);
    task(125).fs = task(100).fs;
    open(101, 12, 514), open(112, 3, 514);
  }
  void map(pid_t pid, uint64_t begin, uint64_t pages, bool shared_with_parent = false) {
    auto& space = application_.address_spaces.at(task(pid).address_space);
    auto& mapping = space.mappings.emplace_back();
    mapping.range = {begin, begin + pages * page_size};
    mapping.protection = PROT_READ | PROT_WRITE;
    mapping.accounted = true;
    store(pid, begin, shared_with_parent);
  }
  void map_file(pid_t pid, uint64_t begin, uint32_t file) {
    describe(file);
    auto& mapping = application_.address_spaces.at(task(pid).address_space).mappings.emplace_back();
    mapping.range = {begin, begin + page_size};
    mapping.backing = Backing::shared_file, mapping.file = ObjectId{file};
    mapping.protection = PROT_READ;
  }
  /// A segment of two pages; who only reads has a part of it.
  void attach(pid_t pid, uint64_t begin, bool part) {
    const ObjectId id{700};
    application_.shared_memories[id] = {id, 2 * page_size, 0, model::SystemVSegment{.id = 5, .size = 2 * page_size}};
    auto& mapping = application_.address_spaces.at(task(pid).address_space).mappings.emplace_back();
    mapping.range = {begin, begin + (part ? 1 : 2) * page_size};
    mapping.backing = Backing::shared_anonymous, mapping.shared_memory = id;
    mapping.protection = part ? PROT_READ : PROT_READ | PROT_WRITE;
    mapping.offset = part ? page_size : 0, mapping.read_only_attach = part;
  }
  void connection(uint32_t id) { application_.descriptions.at(ObjectId{id}).in_repair = true; }
  void lock(pid_t pid, uint32_t description, uint64_t start, Pid holder = {}) {
    application_.descriptor_tables.at(task(pid).descriptors)
        .locks.push_back({.type = model::FileLock::Type::write,
                          .start = start,
                          .length = 10,
                          .description = ObjectId{description},
                          .holder = holder.value == 0 ? Pid{pid} : holder});
  }
  void own(uint32_t description, model::FileLock::Kind kind) {
    application_.descriptions.at(ObjectId{description})
        .locks.push_back({.kind = kind, .type = model::FileLock::Type::write, .description = ObjectId{description}});
  }
  void store(pid_t pid, uint64_t page, bool shared_with_parent) {
    auto& space = application_.address_spaces.at(task(pid).address_space);
    space.pages.push_back({.range = {page, page + page_size}, .shared_with_parent = shared_with_parent});
    options_.pages[space.id].push_back({{page, page + page_size}, shared_with_parent, "pages-1.img", 0});
  }

  FakeMaker maker_;
  Contributors contributors_;
  PlanOptions options_;
};

std::string text_of(const Program& program, size_t index) {
  return Json::parse(to_json(program))["commands"][index].dump();
}

template <size_t... Index>
std::set<std::string_view> names_of_all(std::index_sequence<Index...>) {
  return {std::variant_alternative_t<Index, Action>::name...};
}

class Mutations : public testing::Test {
 protected:
  bool accepted(const Program& program) const { return !verify(program, sample_.application()).has_value(); }

  Sample sample_;
  const Program correct_ = sample_.program();
};

TEST_F(Mutations, the_correct_program_is_accepted) {
  const auto rejection = verify(correct_, sample_.application());
  EXPECT_FALSE(rejection.has_value()) << rejection->message(correct_) << "\n" << to_text(correct_);
}

/// So that none of them is left out here.
TEST_F(Mutations, the_correct_program_has_commands_of_all_kinds) {
  auto missing = names_of_all(std::make_index_sequence<std::variant_size_v<Action>>());
  for (const auto& command : correct_.commands) missing.erase(name_of(command.action));
  EXPECT_THAT(missing, testing::IsEmpty());
}

/// Without effect on the outcome: what a room does beside its attributes or to be safe, events that nobody waits for,
/// and waits for what other waits order, too.
bool may_be_missing(const Program& program, const Command& command) {
  if (const auto* perform = std::get_if<Perform>(&command.action)) {
    const bool to_be_safe = perform->attribute == "attributes.dumpable" && command.tid != leader_of(command.pid);
    return perform->creates.empty() && perform->completes.empty() && perform->starts.empty() &&
           (perform->attribute.empty() || perform->attribute == only_on_success ||
            perform->attribute == only_on_failure || to_be_safe);
  }
  if (const auto* post = std::get_if<Post>(&command.action)) {
    return std::ranges::none_of(program.commands, [&](const Command& other) {
      const auto* await = std::get_if<Await>(&other.action);
      return await != nullptr && await->event == post->event;
    });
  }
  // Unmapped is what an inherited memory holds that is no mapping to the model (the vDSO); the protection for loading
  // may be the one that an inherited mapping has; and nobody asks what memory a zombie had.
  // What is in a file its room knows.
  return std::holds_alternative<Await>(command.action) || std::holds_alternative<Munmap>(command.action) ||
         std::holds_alternative<Mprotect>(command.action) || std::holds_alternative<DecodeFile>(command.action) ||
         (std::holds_alternative<ClearMemory>(command.action) && command.pid == Pid{106});
}

TEST_F(Mutations, a_command_left_out_is_noticed) {
  std::set<std::string> needed_waits;
  for (size_t index = 0; index < correct_.commands.size(); ++index) {
    Program mutant = correct_;
    mutant.commands.erase(mutant.commands.begin() + static_cast<ptrdiff_t>(index));
    const bool is_wait = std::holds_alternative<Await>(correct_.commands[index].action);
    const bool passes = accepted(mutant);
    if (is_wait && !passes) needed_waits.insert(std::get<Await>(correct_.commands[index].action).event);
    EXPECT_TRUE(!passes || may_be_missing(correct_, correct_.commands[index]))
        << index << ": " << text_of(correct_, index);
  }
  // One for each rule; the others are implied by these or guard what no rule of ours is about.
  for (const auto* event :
       {"lift 1 ready", "lift 1 moved", "group 102", "moved 101", "moved 102", "opened by 100", "opened by 101",
        "105 is there", "table 100 is free, 5", "table 100 is final", "complete", "settled"})
    EXPECT_TRUE(needed_waits.contains(event)) << event << " is not among " << testing::PrintToString(needed_waits);
}

TEST_F(Mutations, a_command_done_twice_is_noticed) {
  for (size_t index = 0; index < correct_.commands.size(); ++index) {
    const auto& action = correct_.commands[index].action;
    const bool idempotent = std::holds_alternative<SetPgid>(action) || std::holds_alternative<SetChildReaper>(action) ||
                            std::holds_alternative<SetCloseOnExec>(action) || std::holds_alternative<Lseek>(action) ||
                            std::holds_alternative<Mprotect>(action) || std::holds_alternative<LoadPages>(action) ||
                            std::holds_alternative<DecodePages>(action) ||
                            std::holds_alternative<ClearMemory>(action) || std::holds_alternative<Munmap>(action) ||
                            std::holds_alternative<DropPages>(action) ||
                            std::holds_alternative<EnterPidNamespace>(action) ||
                            std::holds_alternative<Unshare>(action) || std::holds_alternative<AwaitChild>(action);
    if (idempotent || may_be_missing(correct_, correct_.commands[index])) continue;
    Program mutant = correct_;
    mutant.commands.insert(mutant.commands.begin() + static_cast<ptrdiff_t>(index), correct_.commands[index]);
    EXPECT_FALSE(accepted(mutant)) << index << ": " << text_of(correct_, index);
  }
}

TEST_F(Mutations, a_command_by_another_runner_is_noticed) {
  for (size_t index = 0; index < correct_.commands.size(); ++index) {
    if (may_be_missing(correct_, correct_.commands[index])) continue;
    for (const pid_t other : {100, 101, 103, 105}) {
      Program mutant = correct_;
      auto& command = mutant.commands[index];
      // 100 and 102 share a table: what one does to it, the other may do as well.
      if (command.pid.value == other || command.pid.value == 102) continue;
      const auto* set = std::get_if<SetPgid>(&command.action);
      if (set != nullptr && sample_.application().find(set->target)->parent.value == other) continue;  // may do it, too
      command.pid = Pid{other};
      command.tid = leader_of(command.pid);
      if (std::holds_alternative<Post>(command.action)) continue;  // the event counts, whoever posts it
      EXPECT_FALSE(accepted(mutant)) << index << " by " << other << ": " << text_of(correct_, index);
    }
  }
}

/// The first thread of 107 ends, alone, and last of all that it does.
/// A restore that fails must know whether it has made what it is about to remove.
TEST_F(Mutations, what_is_undone_has_been_made_by_one_command_before) {
  const auto purpose_of = [](const Command& command) {
    const auto* perform = std::get_if<Perform>(&command.action);
    return perform == nullptr ? std::string() : perform->purpose;
  };
  const auto made = std::ranges::find(correct_.commands, "make /fake", purpose_of);
  ASSERT_NE(made, correct_.commands.end());
  Program never = correct_, twice = correct_;
  never.commands.erase(never.commands.begin() + (made - correct_.commands.begin()));
  twice.commands.insert(twice.commands.begin(), *made);
  for (const auto& mutant : {never, twice}) {
    const auto rejection = verify(mutant, sample_.application());
    ASSERT_TRUE(rejection);
    EXPECT_EQ(rejection->rule, "it undoes 'make /fake', which is not one command before");
  }
}

class EndOfALeader : public Mutations {
 protected:
  static constexpr Pid pid{107};
  size_t end_of_leader() const {
    for (size_t index = 0; index < correct_.commands.size(); ++index) {
      if (std::holds_alternative<ExitThread>(correct_.commands[index].action)) return index;
    }
    return correct_.commands.size();
  }
  std::string rule_for(const Program& program) const {
    const auto rejection = verify(program, sample_.application());
    return rejection ? rejection->rule : "accepted";
  }
};

TEST_F(EndOfALeader, comes_after_everything_else_that_it_does) {
  const size_t end = end_of_leader();
  ASSERT_LT(end, correct_.commands.size());
  EXPECT_EQ(correct_.commands[end].tid, leader_of(pid));
  bool later_steps = false;
  for (size_t earlier = end; earlier-- > 0;) {
    const auto& passed_by = correct_.commands[earlier];
    const auto* birth = std::get_if<Fork>(&passed_by.action);
    if (birth != nullptr && birth->child_pid == pid) break;
    later_steps = later_steps || passed_by.tid == leader_of(pid);
    Program mutant = correct_;
    mutant.commands.erase(mutant.commands.begin() + static_cast<ptrdiff_t>(end));
    mutant.commands.insert(mutant.commands.begin() + static_cast<ptrdiff_t>(earlier), correct_.commands[end]);
    EXPECT_EQ(accepted(mutant), !later_steps) << "before " << text_of(correct_, earlier);
  }
  EXPECT_TRUE(later_steps);
}

TEST_F(EndOfALeader, is_what_the_application_says) {
  const size_t end = end_of_leader();
  Program mutant = correct_;
  mutant.commands[end].action = Ready{};
  EXPECT_EQ(rule_for(mutant), "126 does not become the child of this thread: a deadlock");
  std::erase_if(mutant.commands,
                [](const Command& command) { return std::holds_alternative<AwaitChild>(command.action); });
  EXPECT_EQ(rule_for(mutant), "its first thread should have ended");
  mutant = correct_;
  mutant.commands[end].action = ExitThread{6 << 8};
  EXPECT_EQ(rule_for(mutant), "its first thread ends with 0x600 instead of 0x500");
  sample_.application().find(pid)->threads[0].exit_status.reset();
  EXPECT_EQ(rule_for(correct_), "its first thread should live");
}

TEST_F(EndOfALeader, is_not_for_other_threads_nor_for_the_only_one) {
  Program mutant = correct_;
  for (auto& command : mutant.commands) {
    const bool another = command.pid == pid && command.tid != leader_of(pid);
    if (another && std::holds_alternative<Ready>(command.action)) command.action = ExitThread{5 << 8};
  }
  EXPECT_EQ(rule_for(mutant), "nothing is left of a thread that ends, unless it is the leader");
  mutant = correct_;
  for (auto& command : mutant.commands) {
    if (command.pid == Pid{105} && std::holds_alternative<Ready>(command.action)) command.action = ExitThread{0};
  }
  EXPECT_EQ(rule_for(mutant), "it is the only thread: the whole process would end");
}

TEST_F(EndOfALeader, would_send_death_signals_to_children) {
  sample_.application().find(Pid{108})->threads[0].parent_death_signal = SIGTERM;
  EXPECT_EQ(rule_for(correct_), "nothing makes sure that the thread that is its parent is settled by then");
  EXPECT_EQ(rule_for(sample_.program()), "accepted") << "another thread creates it";
}

/// 126 has come to it as an orphan.
TEST_F(EndOfALeader, passes_on_those_who_wait_for_it) {
  const auto await = std::ranges::find_if(
      correct_.commands, [](const Command& one) { return std::holds_alternative<AwaitChild>(one.action); });
  ASSERT_NE(await, correct_.commands.end());
  EXPECT_EQ(await->pid, pid);
  EXPECT_EQ(std::get<AwaitChild>(await->action).child_pid, Pid{126});
  Program mutant = correct_;
  mutant.commands.erase(mutant.commands.begin() + (await - correct_.commands.begin()));
  EXPECT_EQ(rule_for(mutant), "nothing makes sure that the thread that is its parent is settled by then");
}

/// The filters of the one who waits might forbid it.
TEST_F(EndOfALeader, passes_children_on_before_filters_are_in_force) {
  const Tid next = sample_.application().find(pid)->threads[1].tid;
  auto& seccomp = sample_.application().find(pid)->threads[1].seccomp;
  seccomp.mode = model::Seccomp::Mode::strict;
  const auto program = sample_.program();
  const auto by_next = [&](auto is_it) {
    return std::ranges::find_if(program.commands,
                                [&](const Command& command) { return command.tid == next && is_it(command.action); });
  };
  const auto await = by_next([](const Action& action) { return std::holds_alternative<AwaitChild>(action); });
  const auto filters = by_next([](const Action& action) {
    const auto* perform = std::get_if<Perform>(&action);
    return perform != nullptr && perform->attribute == "seccomp";
  });
  ASSERT_LT(await, filters);
  ASSERT_NE(filters, program.commands.end());
  Program mutant = program;
  const auto moved = mutant.commands.begin() + (await - program.commands.begin());
  std::rotate(moved, moved + 1, mutant.commands.begin() + (filters - program.commands.begin()) + 1);
  EXPECT_EQ(rule_for(mutant), "it comes after the thread's seccomp filters, which may forbid it (EPERM)");
}

/// The children of 113 are to be born in another pid namespace.
TEST_F(EndOfALeader, namespaces_are_entered_while_the_right_lasts) {
  const auto enters = [](const Command& command) {
    return command.pid == Pid{113} && std::holds_alternative<EnterPidNamespace>(command.action);
  };
  const auto is_ready = [](const Command& command) {
    return command.pid == Pid{113} && std::holds_alternative<Ready>(command.action);
  };
  Program mutant = correct_;
  const auto enter = std::ranges::find_if(mutant.commands, enters);
  const auto ready = std::ranges::find_if(mutant.commands, is_ready);
  ASSERT_LT(enter, ready);
  std::rotate(enter, enter + 1, ready);
  EXPECT_EQ(rule_for(mutant), "it needs CAP_SYS_ADMIN, which the thread has given up by then (EPERM)");
}

using Repair = EndOfALeader;

TEST_F(Repair, ends_when_nobody_runs_anything_any_more) {
  const auto is_end = [](const Command& command) { return std::holds_alternative<EndRepair>(command.action); };
  const auto first = std::ranges::find_if(correct_.commands, is_end);
  ASSERT_EQ(correct_.commands.end() - first, 2);
  ASSERT_TRUE(std::ranges::all_of(first, correct_.commands.end(), is_end));
  for (const auto* earlier = &*first - 1; earlier >= correct_.commands.data(); --earlier) {
    Program mutant = correct_;
    mutant.commands.pop_back();
    mutant.commands.insert(mutant.commands.begin() + (earlier - correct_.commands.data()), correct_.commands.back());
    EXPECT_FALSE(accepted(mutant)) << "before " << to_text(earlier->action);
  }
  Program mutant = correct_;
  std::swap(mutant.commands[mutant.commands.size() - 1], mutant.commands[mutant.commands.size() - 2]);
  EXPECT_TRUE(accepted(mutant));  // one before the other, whichever
}

TEST_F(Repair, is_of_connections) {
  sample_.application().descriptions.at(ObjectId{512}).in_repair = false;
  EXPECT_EQ(rule_for(correct_), "512 is not in repair mode");
  sample_.application().descriptions.at(ObjectId{512}).in_repair = true;
  sample_.application().descriptions.at(ObjectId{501}).in_repair = true;
  EXPECT_EQ(rule_for(correct_), "501 stays in repair mode");
}

/// Fields whose value is a room's or the file system's business.
bool is_opaque(std::string_view command, std::string_view field) {
  if (field == "command" || field == "pid" || field == "tid") return true;
  if (command == "PERFORM") return field == "purpose" || field == "calls" || field == "processes";
  if (command == "OPEN") return field == "path" || field == "mode" || field == "flags";
  if (command == "LOAD_PAGES" || command == "MMAP") return field == "offset" || field == "flags";
  if (command == "DECODE_PAGES") return field == "file" || field == "offset";
  if (command == "DECODE_FILE") return true;
  if (command == "OWE_PAGES") return field == "fd";  // it is free again at once
  if (command == "MMAP_ANON") return field == "flags";
  if (command == "LOCK") return field == "path";
  if (command == "END_REPAIR") return field == "reuse_address";
  return false;
}

std::vector<Json> other_values(const Json& value) {
  if (value.is_boolean()) return {!value.get<bool>()};
  if (value.is_number()) return {value.get<int64_t>() + 1, value.get<int64_t>() - 1, value.get<int64_t>() + 4096};
  if (value.is_string()) return {value.get<std::string>() + "'"};
  if (value.is_array() && !value.empty()) {
    std::vector<Json> others;
    for (size_t at = 0; at < value.size(); ++at) {
      for (const auto& other : other_values(value[at])) {
        others.push_back(value);
        others.back()[at] = other;
      }
    }
    return others;
  }
  return {};
}

/// A room sets other flags of a master side; the namespace is the same, whoever in it is named. And the kernel goes
/// from there to the terminal (drivers/tty/tty_io.c, tty_pair_get_tty), but not in TIOCNOTTY.
bool leads_to_the_same(const Program& program, std::string_view command, std::string_view field, const Json& value,
                       const Json& other) {
  if (command == "OPEN_TERMINAL" && field == "flags")
    return ((value.get<uint32_t>() ^ other.get<uint32_t>()) & O_ACCMODE) == 0;
  if (command == "ENTER_PID_NAMESPACE") return other == 112;
  if (command == "UNSHARE" && field == "files") return true;  // it shares its table with nobody
  if (field != "fd" || (command != "SET_CONTROLLING_TERMINAL" && command != "SET_FOREGROUND_GROUP")) return false;
  return std::ranges::any_of(program.commands, [&](const Command& one) {
    const auto* open = std::get_if<OpenTerminal>(&one.action);
    return open != nullptr && other == open->master_fd;
  });
}

/// By the same process, after the command.
bool is_closed_later(const Program& program, const Command& command, int fd) {
  for (const auto* later = &command; later != program.commands.data() + program.commands.size(); ++later) {
    const auto* close = std::get_if<Close>(&later->action);
    if (close != nullptr && later->pid == command.pid && close->fd == fd) return true;
  }
  return false;
}

/// Of processes that are gone in the end, of descriptors that are closed again, of events that nobody waits for: what
/// such a field says does not reach the outcome.
bool is_passing(const Program& program, const model::Application& application, const Command& command,
                std::string_view field) {
  const auto* fork = std::get_if<Fork>(&command.action);
  if (fork != nullptr && field.starts_with("share_")) {
    const auto* child = application.find(fork->child_pid);
    const bool lives = child != nullptr && child->state != model::TaskState::zombie;
    return !lives || (command.pid.value != 0 && application.find(command.pid) == nullptr);
  }
  if (std::holds_alternative<Exit>(command.action)) return application.find(command.pid) == nullptr;
  if (const auto* open = std::get_if<Open>(&command.action); open != nullptr && field == "description") {
    const auto* task = application.find(command.pid);
    const auto& slots = application.descriptor_tables.at(task->descriptors).slots;
    return !slots.contains(open->fd);
  }
  if (field == "close_on_exec") {
    const auto* dup = std::get_if<Dup2>(&command.action);
    const auto* transfer = std::get_if<TransferFd>(&command.action);
    const auto* take = std::get_if<TakeFd>(&command.action);
    return is_closed_later(program, command,
                           dup != nullptr        ? dup->new_fd
                           : transfer != nullptr ? transfer->target_fd
                                                 : take->target_fd);
  }
  return std::holds_alternative<Post>(command.action) && may_be_missing(program, command);
}

TEST_F(Mutations, a_changed_field_is_noticed) {
  const auto whole = Json::parse(to_json(correct_));
  ASSERT_TRUE(from_json(whole.dump()));
  size_t changed = 0, unreadable = 0;
  for (size_t index = 0; index < correct_.commands.size(); ++index) {
    const auto& command = whole["commands"][index];
    const auto name = command["command"].get<std::string>();
    for (const auto& [field, value] : command.items()) {
      if (is_opaque(name, field) || is_passing(correct_, sample_.application(), correct_.commands[index], field))
        continue;
      for (const auto& other : other_values(value)) {
        auto mutant = whole;
        mutant["commands"][index][field] = other;
        const auto read = from_json(mutant.dump());
        ++changed;
        if (!read) {  // not even a program
          ++unreadable;
          continue;
        }
        const bool fewer = name == "AWAIT" && field == "count" && other < value;
        EXPECT_TRUE(!accepted(*read) || fewer || leads_to_the_same(correct_, name, field, value, other))
            << mutant["commands"][index].dump() << " instead of " << command.dump();
      }
    }
  }
  EXPECT_GT(changed - unreadable, 500U);
}

/// Whoever gets its death signal while a relay is still its parent is sent it when that ends; and whoever changes its
/// ids afterwards loses it.
TEST_F(Mutations, a_death_signal_that_comes_too_early_is_noticed) {
  const auto performs = [](const Command& command, std::string_view attribute) {
    const auto* perform = std::get_if<Perform>(&command.action);
    return command.pid == Pid{103} && perform != nullptr && perform->attribute == attribute;
  };
  Program mutant = correct_;
  auto& commands = mutant.commands;
  const auto set = std::ranges::find_if(commands, [&](const auto& c) { return performs(c, "attributes.dumpable"); });
  const auto ids = std::ranges::find_if(commands, [&](const auto& c) { return performs(c, "credentials"); });
  ASSERT_TRUE(ids < set && set != commands.end());
  std::iter_swap(ids, set);
  EXPECT_THAT(verify(mutant, sample_.application())->rule, testing::HasSubstr("it resets the thread's dumpable flag"));

  commands = correct_.commands;
  const auto signal = std::ranges::find_if(commands, [&](const auto& c) { return performs(c, "attributes.dumpable"); });
  const auto first = std::ranges::find(commands, Pid{103}, &Command::pid);
  std::rotate(first, signal, signal + 1);
  EXPECT_THAT(verify(mutant, sample_.application())->rule, testing::HasSubstr("would be sent its parent death signal"));
}

TEST_F(Mutations, merging_that_comes_after_its_exceptions_is_noticed) {
  const auto of_root = [](std::string_view attribute) {
    return [attribute](const Command& command) {
      const auto* perform = std::get_if<Perform>(&command.action);
      return command.pid == Pid{100} && perform != nullptr && perform->attribute == attribute;
    };
  };
  sample_.application().address_spaces.at(ObjectId{100}).merge_any = true;
  Program mutant = sample_.program();
  ASSERT_TRUE(accepted(mutant));
  const auto merging = std::ranges::find_if(mutant.commands, of_root("memory.merging"));
  const auto exception = std::ranges::find_if(mutant.commands, of_root("memory.state"));
  ASSERT_TRUE(merging < exception && exception != mutant.commands.end());
  std::iter_swap(merging, exception);
  EXPECT_THAT(verify(mutant, sample_.application())->rule, testing::HasSubstr("has been kept from it already"));
}

/// Neighbours of one runner, the other way round: accepted only if the order does not matter to the outcome.
TEST_F(Mutations, swapped_neighbours_are_noticed_where_order_matters) {
  size_t noticed = 0, swapped = 0;
  for (size_t index = 0; index + 1 < correct_.commands.size(); ++index) {
    Program mutant = correct_;
    if (mutant.commands[index].tid != mutant.commands[index + 1].tid) continue;
    std::swap(mutant.commands[index], mutant.commands[index + 1]);
    ++swapped;
    const bool rejected = !accepted(mutant);
    noticed += rejected;
    const auto& first = correct_.commands[index].action;
    const auto& second = correct_.commands[index + 1].action;
    const bool clears = std::holds_alternative<ClearMemory>(second) && !std::holds_alternative<Await>(first) &&
                        !std::holds_alternative<Post>(first) && !std::holds_alternative<Open>(first) &&
                        !std::holds_alternative<OpenTerminal>(first);
    const bool must = std::holds_alternative<Ready>(second) || clears ||
                      (std::holds_alternative<Open>(first) && std::holds_alternative<Lseek>(second));
    EXPECT_TRUE(rejected || !must) << index << ": " << text_of(correct_, index);
  }
  EXPECT_GT(noticed, swapped / 10);
}

}  // namespace
}  // namespace stasis::plan
