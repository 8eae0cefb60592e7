// What is planned for an address space, command by command.
#include "plan/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <array>

#include "plan/page_loading.h"

namespace stasis::plan {
namespace {

using model::Backing;
using model::Mapping;
using testing::HasSubstr;

constexpr uint32_t read_write = PROT_READ | PROT_WRITE;

struct FakeFile final : model::KindValue {
  std::string_view kind() const override { return "fake"; }
  bool equals(const model::KindValue& other) const override { return this == &other; }
  std::string describe() const override { return "fake file"; }
};
struct FakeMaker : DescriptionMaker {
  std::string_view kind() const override { return "fake"; }
  bool reopenable() const override { return true; }
  Status make(const model::Application&, std::span<const Placement> placements, Sink& sink) const override {
    for (const auto& placement : placements) sink.add(Open{"/fake", 0, 0, placement.fd, placement.description->id});
    return {};
  }
};

class MemoryPlans : public testing::Test {
 protected:
  MemoryPlans() {
    contributors.makers.push_back(&maker);
    for (const int pid : {7, 8}) {
      model::Task task;
      task.pid = Pid{pid};
      task.parent = Pid{pid == 7 ? 0 : 7};
      task.address_space = ObjectId{static_cast<uint32_t>(pid)};
      task.descriptors = ObjectId{static_cast<uint32_t>(pid)};
      application.tasks.push_back(task);
      auto& space = application.address_spaces[task.address_space];
      space.id = task.address_space;
      space.executable = ObjectId{1};
    }
    model::OpenDescription file;
    file.id = ObjectId{1};
    file.state.value = std::make_shared<FakeFile>();
    application.descriptions[file.id] = file;
  }

  model::AddressSpace& space(uint32_t id = 7) { return application.address_spaces.at(ObjectId{id}); }
  Mapping& map(uint32_t id, uint64_t begin, uint64_t end, uint32_t protection = read_write,
               Backing backing = Backing::private_anonymous) {
    Mapping mapping;
    mapping.range = {begin, end};
    mapping.protection = protection;
    mapping.backing = backing;
    mapping.accounted = (protection & PROT_WRITE) != 0;
    if (backing == Backing::private_file || backing == Backing::shared_file) mapping.file = ObjectId{1};
    return space(id).mappings.emplace_back(mapping);
  }
  void store(uint32_t id, uint64_t begin, uint64_t end, uint64_t offset, bool shared = false,
             const std::string& file = "pages-1.img") {
    options.pages[ObjectId{id}].push_back({{begin, end}, shared, file, offset});
    const auto space = application.address_spaces.find(ObjectId{id});
    if (space != application.address_spaces.end()) space->second.pages.push_back({{begin, end}, shared});
  }

  /// The commands for address space `id`, as text.
  std::vector<std::string> planned(uint32_t id = 7, bool inherits = false) {
    Emission out(application, contributors, options);
    prepare(out);
    SharedSegments segments(out, {Pid{7}, Pid{8}});
    LazyMemory lazy(out, heirs);
    const Pid pid{static_cast<pid_t>(id)};
    const MemoryPlan plan{
        .pid = pid, .space = &space(id), .inherited_from = inherits ? &space(7) : nullptr, .lazy = &lazy};
    auto status = plan_segments(out, plan, segments);
    if (status) status = plan_mappings(out, plan, segments, nothing_is_open);
    lazy.plan(out, *out.tasks.find(pid));
    return status ? lines(out.program) : std::vector{status.error().message()};
  }
  std::vector<std::string> planned_state(uint32_t id = 7) {
    Emission out(application, contributors, options);
    prepare(out);
    const auto status = plan_memory_state(out, {Pid{7}, &space(id), nullptr}, nothing_is_open);
    return status ? lines(out.program) : std::vector{status.error().message()};
  }

  model::Application application;
  Contributors contributors;
  PlanOptions options;
  std::set<Pid> heirs;

 private:
  static void prepare(Emission& out) {
    out.program.agent_area = {0x10000000, 0x10100000};
    out.program.images_fd = 100;
    out.set_first_temporary(101);
  }
  static std::string ranges(const std::vector<uint64_t>& runs) {
    std::string text;
    for (size_t i = 0; i < runs.size(); i += 2) text += fmt::format(" {:x}-{:x}", runs[i], runs[i] + runs[i + 1]);
    return text;
  }
  static std::string show(const Call& call) {
    std::string text = call_name(call.number);
    for (const auto& argument : call.arguments) {
      if (const auto* number = std::get_if<uint64_t>(&argument)) text += fmt::format(" {:x}", *number);
    }
    return text;
  }
  struct Show {
    std::string operator()(const MmapAnon& m) const {
      return fmt::format("anon {:x}-{:x} {}{} flags {:x}", m.addr, m.addr + m.length, m.is_shared ? "shared " : "",
                         m.prot, m.flags);
    }
    std::string operator()(const Mmap& m) const {
      return fmt::format("file {:x}-{:x} {}{} fd {} at {:x}", m.addr, m.addr + m.length, m.is_shared ? "shared " : "",
                         m.prot, m.fd, m.offset);
    }
    std::string operator()(const Munmap& m) const { return fmt::format("unmap {:x}-{:x}", m.addr, m.addr + m.length); }
    std::string operator()(const Mprotect& m) const {
      return fmt::format("protect {:x}-{:x} {}", m.addr, m.addr + m.length, m.prot);
    }
    std::string operator()(const DropPages& d) const {
      return fmt::format("drop {:x}-{:x}", d.addr, d.addr + d.length);
    }
    std::string operator()(const LoadPages& l) const {
      return fmt::format("load {} at {:x}:{}", l.fd, l.offset, ranges(l.runs));
    }
    std::string operator()(const OwePages& o) const {
      return fmt::format("owe {}:{} in{}", o.fd, ranges(o.runs), ranges(o.mappings));
    }
    std::string operator()(const Open& o) const { return fmt::format("open {} as {}", o.path, o.fd); }
    std::string operator()(const Close& c) const { return fmt::format("close {}", c.fd); }
    std::string operator()(const Await& a) const { return fmt::format("await {}", a.event); }
    std::string operator()(const Post& p) const { return fmt::format("post {}", p.event); }
    std::string operator()(const TransferFd& t) const {
      return fmt::format("take {} of {} as {}", t.fd, t.from_pid, t.target_fd);
    }
    std::string operator()(const Perform& p) const {
      std::string text = "perform";
      for (const auto& call : p.calls) text += ": " + show(call);
      return text;
    }
    template <typename T>
    std::string operator()(const T&) const {
      return std::string(T::name);
    }
  };
  static std::vector<std::string> lines(const Program& program) {
    std::vector<std::string> all;
    for (const auto& command : program.commands) all.push_back(std::visit(Show{}, command.action));
    return all;
  }

  FakeMaker maker;
};

using Lines = std::vector<std::string>;

TEST_F(MemoryPlans, memory_that_was_never_written_is_only_mapped) {
  map(7, 0x400000, 0x402000);
  map(7, 0x500000, 0x40000500000, PROT_NONE).map_flags = MAP_NORESERVE;
  EXPECT_EQ(planned(), (Lines{"anon 400000-402000 3 flags 0", "anon 500000-40000500000 0 flags 4000"}));
}

TEST_F(MemoryPlans, pages_come_in_as_few_reads_as_the_file_allows) {
  map(7, 0x400000, 0x402000);
  map(7, 0x402000, 0x404000, PROT_READ);
  map(7, 0x500000, 0x501000);
  store(7, 0x401000, 0x403000, 0x1000);  // across two mappings
  store(7, 0x500000, 0x501000, 0x3000);  // next in the file
  EXPECT_EQ(planned(),
            (Lines{"anon 400000-402000 3 flags 0", "anon 402000-404000 3 flags 0", "anon 500000-501000 3 flags 0",
                   "perform: openat 64 80000 0: move_fd 65 80000", "load 101 at 1000: 401000-403000 500000-501000",
                   "close 101", "protect 402000-404000 1"}));
}

TEST_F(MemoryPlans, a_gap_or_another_file_begins_a_new_read) {
  map(7, 0x400000, 0x408000);
  store(7, 0x400000, 0x401000, 0);
  store(7, 0x402000, 0x403000, 0x5000);
  store(7, 0x404000, 0x405000, 0x6000, false, "parent/pages-1.img");
  const auto lines = planned();
  EXPECT_THAT(lines, testing::IsSupersetOf({"load 101 at 0: 400000-401000", "load 101 at 5000: 402000-403000",
                                            "load 102 at 6000: 404000-405000", "close 101", "close 102"}));
}

TEST_F(MemoryPlans, once_writable_memory_is_mapped_writable) {
  map(7, 0x400000, 0x401000, PROT_NONE).accounted = true;
  EXPECT_EQ(planned(), (Lines{"anon 400000-401000 2 flags 0", "protect 400000-401000 0"}));
}

TEST_F(MemoryPlans, lazily_all_is_owed_but_what_threads_touch_before) {
  options.lazy = true;
  model::Thread thread;
  thread.rseq.address = 0x402f80;  // reaches into the next page
  thread.registers.general = bytes_of(std::array<uint64_t, 2>{0x405800, 3});
  application.tasks[0].threads.push_back(thread);
  map(7, 0x400000, 0x410000, PROT_READ);
  map(7, 0x500000, 0x510000);
  store(7, 0x400000, 0x408000, 0);
  store(7, 0x500000, 0x501000, 0x8000);
  EXPECT_EQ(planned(), (Lines{"anon 400000-410000 3 flags 0", "anon 500000-510000 3 flags 0",
                              "perform: openat 64 80000 0: move_fd 65 80000", "load 101 at 2000: 402000-404000",
                              "load 101 at 5000: 405000-406000", "close 101", "protect 400000-410000 1",
                              "owe 101: 400000-402000 404000-405000 406000-408000 500000-501000 in 400000-410000 "
                              "500000-510000"}));
}

TEST_F(MemoryPlans, lazily_some_memory_cannot_wait) {
  options.lazy = true;
  map(7, 0x400000, 0x401000).locked = true;
  map(7, 0x600000, 0x800000).map_flags = MAP_HUGETLB;
  map(7, 0x800000, 0x801000).advice = {MADV_WIPEONFORK};
  map(7, 0x900000, 0x901000, read_write, Backing::private_file);
  map(7, 0xa00000, 0xa01000).map_flags = model::map_droppable;
  for (const uint64_t begin : {0x400000, 0x600000, 0x800000, 0x900000, 0xa00000})
    store(7, begin, begin + 0x1000, begin);
  EXPECT_THAT(planned(), testing::Not(testing::Contains(HasSubstr("owe"))));
}

TEST_F(MemoryPlans, lazily_what_children_share_comes_before_they_are_born) {
  options.lazy = true;
  heirs = {Pid{8}};
  map(7, 0x400000, 0x404000);
  map(8, 0x400000, 0x404000);
  store(7, 0x400000, 0x404000, 0);
  store(8, 0x401000, 0x403000, 0, true, "pages-2.img");
  store(8, 0x403000, 0x404000, 0, false, "pages-2.img");
  EXPECT_THAT(planned(7), testing::IsSupersetOf({"load 101 at 1000: 401000-403000",
                                                 "owe 101: 400000-401000 403000-404000 in 400000-404000"}));
  EXPECT_THAT(planned(8, true), testing::Contains("owe 101: 403000-404000 in 400000-404000"));
}

TEST_F(MemoryPlans, what_is_in_no_image_is_owed_wherever_it_is) {
  model::Thread thread;
  thread.rseq.address = 0x401000;
  application.tasks[0].threads.push_back(thread);
  map(7, 0x400000, 0x410000);
  store(7, 0x400000, 0x402000, 0, false, "");
  store(7, 0x402000, 0x403000, 0);
  EXPECT_THAT(planned(), testing::ElementsAre(testing::AllOf(
                             HasSubstr("task 7, page 0x400000"), HasSubstr("it is in no image"),
                             HasSubstr("restore with --lazy-pages, beside `stasis lazy-pages --page-server`"))));
  options.lazy = true;
  EXPECT_EQ(planned(), (Lines{"anon 400000-410000 3 flags 0", "owe 101: 400000-403000 in 400000-410000"}));
  space().mappings[0].locked = true;
  EXPECT_THAT(planned(), testing::ElementsAre(HasSubstr("it is in no image, but cannot come later")));
}

TEST_F(MemoryPlans, a_dump_leaves_out_what_every_restore_can_owe) {
  map(7, 0x400000, 0x404000);
  map(7, 0x404000, 0x405000).locked = true;
  map(7, 0x405000, 0x408000);
  map(8, 0x400000, 0x404000);
  store(7, 0x400000, 0x408000, 0);
  store(8, 0x401000, 0x402000, 0, true, "pages-2.img");
  model::Thread thread;
  thread.rseq.address = 0x406000;
  application.tasks[0].threads.push_back(thread);
  const auto left_out = pages_that_can_wait(application);
  using Ranges = std::vector<AddressRange>;
  EXPECT_EQ(left_out.at(ObjectId{7}),
            (Ranges{{0x400000, 0x401000}, {0x402000, 0x404000}, {0x405000, 0x406000}, {0x407000, 0x408000}}));
  EXPECT_EQ(left_out.at(ObjectId{8}), (Ranges{{0x400000, 0x401000}, {0x402000, 0x404000}}));
}

TEST_F(MemoryPlans, files_are_opened_once_and_closed) {
  map(7, 0x400000, 0x401000, PROT_READ, Backing::private_file);
  map(7, 0x401000, 0x402000, read_write, Backing::private_file).offset = 0x1000;
  map(7, 0x402000, 0x404000, read_write, Backing::shared_file).offset = 0x8000;
  store(7, 0x400000, 0x401000, 0);
  const auto lines = planned();
  EXPECT_THAT(Lines(lines.begin(), lines.begin() + 5),
              testing::ElementsAre("open /fake as 101", "file 400000-401000 3 fd 101 at 0",
                                   "file 401000-402000 3 fd 101 at 1000", "file 402000-404000 shared 3 fd 101 at 8000",
                                   "close 101"));
  EXPECT_EQ(lines.back(), "protect 400000-401000 1");
}

TEST_F(MemoryPlans, long_runs_are_populated_first) {
  map(7, 0x400000, 0x800000);
  store(7, 0x400000, 0x600000, 0);
  EXPECT_EQ(planned()[1], "perform: madvise 400000 200000 17");
}

TEST_F(MemoryPlans, what_stasis_brings_is_allocated_as_it_comes) {
  map(7, 0x400000, 0x800000);
  store(7, 0x400000, 0x600000, 0);
  options.pages.at(ObjectId{7}).front().through_stasis = true;
  const auto lines = planned();
  EXPECT_THAT(lines, testing::Contains("DECODE_PAGES"));
  EXPECT_THAT(lines, testing::Not(testing::Contains(HasSubstr("madvise"))));
}

TEST_F(MemoryPlans, huge_page_advice_comes_before_the_pages) {
  map(7, 0x400000, 0x800000).advice = {MADV_HUGEPAGE, MADV_DONTFORK};
  store(7, 0x400000, 0x401000, 0);
  EXPECT_EQ(planned()[1], "perform: madvise 400000 400000 e");
  EXPECT_EQ(planned_state()[0], "perform: madvise 400000 400000 a");
}

TEST_F(MemoryPlans, the_vdso_block_goes_to_its_lowest_address) {
  map(7, 0x7f0000000000, 0x7f0000004000, PROT_READ, Backing::vvar);
  map(7, 0x7f0000004000, 0x7f0000006000, PROT_READ | PROT_EXEC, Backing::vdso);
  store(7, 0x7f0000004000, 0x7f0000006000, 0);
  EXPECT_EQ(planned(), Lines{"perform: arch_prctl 2003 7f0000000000"}) << "its pages are the kernel's";
}

TEST_F(MemoryPlans, a_child_keeps_what_it_shares_with_its_parent) {
  map(7, 0x400000, 0x410000);
  map(7, 0x500000, 0x510000);
  map(8, 0x400000, 0x420000);  // has grown
  store(7, 0x400000, 0x408000, 0);
  store(8, 0x400000, 0x404000, 0, true);
  store(8, 0x406000, 0x407000, 0x4000);  // its own, over the parent's
  store(8, 0x410000, 0x411000, 0x5000);
  EXPECT_EQ(planned(8, true), (Lines{"unmap 0-400000", "unmap 410000-10000000", "unmap 10100000-7ffffffff000",
                                     "drop 404000-406000", "drop 407000-410000", "anon 410000-420000 3 flags 0",
                                     "protect 400000-420000 3", "perform: openat 64 80000 0: move_fd 65 80000",
                                     "load 101 at 4000: 406000-407000 410000-411000", "close 101"}));
}

TEST_F(MemoryPlans, what_comes_later_or_is_long_is_dropped_before) {
  for (const uint32_t id : {7u, 8u}) map(id, 0x400000, 0x800000);
  store(7, 0x400000, 0x800000, 0);
  store(8, 0x400000, 0x401000, 0, true);
  store(8, 0x402000, 0x403000, 0x1000);
  store(8, 0x410000, 0x800000, 0x2000);  // long enough to be made at once
  EXPECT_THAT(planned(8, true), testing::IsSupersetOf({"drop 401000-402000", "drop 403000-800000"}));
  options.lazy = true;
  EXPECT_THAT(planned(8, true), testing::Contains("drop 401000-800000"));
}

TEST_F(MemoryPlans, a_child_keeps_mappings_that_both_have_and_writes_over_a_few_pages) {
  for (const uint32_t id : {7u, 8u}) {
    map(id, 0x400000, 0x402000, PROT_READ, Backing::private_file);
    map(id, 0x402000, 0x404000, read_write, Backing::private_file).offset = 0x2000;
    map(id, 0x500000, 0x501000);
  }
  store(7, 0x402000, 0x403000, 0);
  store(8, 0x402000, 0x403000, 0);
  EXPECT_EQ(planned(8, true),
            (Lines{"unmap 0-400000", "unmap 404000-500000", "unmap 501000-10000000", "unmap 10100000-7ffffffff000",
                   "perform: openat 64 80000 0: move_fd 65 80000", "load 101 at 0: 402000-403000", "close 101"}));
}

TEST_F(MemoryPlans, mappings_that_are_not_as_the_parent_has_them_are_made_anew) {
  map(7, 0x400000, 0x402000, read_write, Backing::private_file);
  map(8, 0x400000, 0x402000, PROT_READ, Backing::private_file);                                   // changed since
  for (const uint32_t id : {7u, 8u}) map(id, 0x410000, 0x411000, PROT_READ).accounted = id == 7;  // since it was born
  for (const uint32_t id : {7u, 8u}) map(id, 0x500000, 0x800000);
  store(8, 0x500000, 0x800000, 0);  // not worth copying all of the parent's
  for (const uint32_t id : {7u, 8u}) map(id, 0x40000000, 0x40200000).map_flags = MAP_HUGETLB;
  EXPECT_EQ(planned(8, true)[0], "unmap 0-10000000");
}

TEST_F(MemoryPlans, what_came_complete_is_not_made_writable) {
  for (const uint32_t id : {7u, 8u}) map(id, 0x400000, 0x402000, PROT_READ).accounted = true;
  store(7, 0x400000, 0x401000, 0);
  store(8, 0x400000, 0x401000, 0, true);
  EXPECT_THAT(planned(8, true), testing::Not(testing::Contains(HasSubstr("protect"))));
  store(8, 0x401000, 0x402000, 0x1000);
  EXPECT_THAT(planned(8, true), testing::IsSupersetOf({"protect 400000-402000 3", "protect 400000-402000 1"}));
}

TEST_F(MemoryPlans, nothing_is_inherited_from_mappings_that_fork_leaves_out) {
  map(7, 0x400000, 0x410000).advice = {MADV_DONTFORK};
  map(8, 0x400000, 0x410000);
  store(8, 0x400000, 0x404000, 0, true);
  const auto lines = planned(8, true);
  EXPECT_THAT(lines, testing::IsSupersetOf(
                         {"unmap 0-10000000", "anon 400000-410000 3 flags 0", "load 101 at 0: 400000-404000"}));
}

TEST_F(MemoryPlans, what_the_image_calls_shared_but_is_not_inherited_is_loaded) {
  map(7, 0x400000, 0x402000);
  map(8, 0x400000, 0x408000);
  store(8, 0x401000, 0x404000, 0x1000, true);
  const auto lines = planned(8, true);
  EXPECT_THAT(lines, testing::Contains("load 101 at 2000: 402000-404000"));
}

TEST_F(MemoryPlans, files_of_other_parts_are_not_inherited) {
  map(7, 0x400000, 0x402000, read_write, Backing::private_file).offset = 0x1000;
  map(8, 0x400000, 0x402000, read_write, Backing::private_file).offset = 0x2000;
  store(8, 0x400000, 0x401000, 0, true);
  EXPECT_THAT(planned(8, true), testing::Contains("load 102 at 0: 400000-401000").Times(0));
  EXPECT_EQ(planned(8, true)[0], "unmap 0-10000000");
}

TEST_F(MemoryPlans, segments_are_made_by_the_first_that_maps_them) {
  application.shared_memories[ObjectId{5}] = {ObjectId{5}, 0x4000, 0};
  for (const uint32_t id : {7u, 8u})
    map(id, 0x400000, 0x402000, read_write, Backing::shared_anonymous).shared_memory = ObjectId{5};
  space(8).mappings[0].offset = 0x2000;
  store(5, 0x1000, 0x2000, 0);
  EXPECT_EQ(planned(7),
            (Lines{"anon 10100000-10104000 shared 3 flags 4000", "open /proc/self/map_files/10100000-10104000 as 101",
                   "perform: openat 64 80000 0: move_fd 66 80000", "load 102 at 0: 10101000-10102000", "close 102",
                   "unmap 10100000-10104000", "post segment 5", "file 400000-402000 shared 3 fd 101 at 0"}));
}

TEST_F(MemoryPlans, huge_segments_are_made_at_aligned_addresses) {
  const uint32_t flags = MAP_HUGETLB | 21u << MAP_HUGE_SHIFT;
  application.shared_memories[ObjectId{5}] = {ObjectId{5}, 0x400000, flags};
  auto& mapping = map(7, 0x40000000, 0x40400000, read_write, Backing::shared_anonymous);
  mapping.shared_memory = ObjectId{5};
  mapping.map_flags = flags;
  EXPECT_EQ(planned(7)[0], fmt::format("anon 10200000-10600000 shared 3 flags {:x}", flags));
  EXPECT_EQ(scratch_space(application.shared_memories.at(ObjectId{5})), 0x600000u);
}

TEST_F(MemoryPlans, pages_beyond_a_segment_are_refused) {
  application.shared_memories[ObjectId{5}] = {ObjectId{5}, 0x4000, 0};
  map(7, 0x400000, 0x402000, read_write, Backing::shared_anonymous).shared_memory = ObjectId{5};
  store(5, 0x4000, 0x5000, 0);
  EXPECT_THAT(planned(7)[0], HasSubstr("pages beyond its end"));
}

TEST_F(MemoryPlans, state_comes_in_the_kernels_order) {
  auto& mapping = map(7, 0x400000, 0x408000);
  mapping.guards = {{0x401000, 0x402000}};
  mapping.advice = {MADV_DONTDUMP};
  mapping.locked = mapping.locked_on_fault = true;
  mapping.sealed = true;
  mapping.protection_key = 2;
  space().lock_future = true;
  const auto lines = planned_state();
  ASSERT_EQ(lines.size(), 7u);
  EXPECT_EQ(lines[0], "perform: madvise 401000 1000 66: madvise 400000 8000 10: mlock2 400000 8000 1");
  EXPECT_THAT(lines[1], HasSubstr("pkey_alloc 0 0: pkey_alloc 0 0: pkey_mprotect 400000 8000 3 2: pkey_free 1"));
  EXPECT_EQ(lines[2], "open /fake as 101");
  EXPECT_THAT(lines[3], HasSubstr("perform: prctl"));
  EXPECT_EQ(lines[4], "close 101");
  EXPECT_EQ(lines[5], "perform: mlockall 2");
  EXPECT_EQ(lines[6], "perform: " + (call_number("mseal") == 462 ? std::string("mseal") : std::string("syscall 462")) +
                          " 400000 8000 0");
}

TEST_F(MemoryPlans, what_is_kept_from_being_merged_is_so_after_all_have_been_made_mergeable) {
  space().merge_any = true;
  map(7, 0x400000, 0x401000);
  map(7, 0x402000, 0x403000, PROT_READ, Backing::private_file);
  map(7, 0x404000, 0x405000).advice = {MADV_MERGEABLE};
  map(7, 0x406000, 0x407000, PROT_READ, Backing::shared_file);  // the kernel merges none of these
  map(7, 0x800000, 0xa00000).map_flags = MAP_HUGETLB;
  map(7, 0xc00000, 0xc01000).map_flags = model::map_droppable;
  const auto lines = planned_state();
  ASSERT_GT(lines.size(), 4u);
  EXPECT_EQ(lines[0], "perform: prctl 43 1 0 0 0");
  EXPECT_EQ(lines[1], "perform: madvise 400000 1000 d");
  EXPECT_EQ(lines[2], "perform: madvise 402000 1000 d");
  EXPECT_EQ(lines[3], "perform: madvise 404000 1000 c");
  EXPECT_EQ(lines[4], "open /fake as 101");
}

TEST(PagesWithin, cuts_to_the_range) {
  const std::vector<PageLocation> pages{{{0x1000, 0x4000}, false, "a", 0}, {{0x6000, 0x7000}, false, "a", 0x3000}};
  const auto found = pages_within(pages, {0x2000, 0x6000});
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].range, (AddressRange{0x2000, 0x4000}));
  EXPECT_EQ(found[0].offset, 0x1000u);
  EXPECT_TRUE(pages_within(pages, {0x4000, 0x6000}).empty());
}

}  // namespace
}  // namespace stasis::plan
