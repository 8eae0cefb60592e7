// A child lays out many kinds of memory; what is captured of it is compared with what it did, then sent through the
// record and back.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>

#include "resource/address_space.h"
#include "resource/memory_record.h"

namespace stasis::resource {
namespace {

using model::Backing;
using model::Mapping;

constexpr uint32_t guard_install = 102;

/// Where the child puts things: far from everything else.
constexpr uint64_t base = 0x100000000000;
uint8_t* at(uint64_t page) { return reinterpret_cast<uint8_t*>(base + page * page_size); }
AddressRange pages(uint64_t first, uint64_t last) { return {base + first * page_size, base + last * page_size}; }

uint8_t* map(uint64_t page, uint64_t count, int protection, int flags, int fd = -1, off_t offset = 0) {
  void* got = mmap(at(page), count * page_size, protection, flags | MAP_FIXED_NOREPLACE, fd, offset);
  if (got != at(page)) _exit(9);
  return static_cast<uint8_t*>(got);
}
constexpr int anonymous = MAP_PRIVATE | MAP_ANONYMOUS, read_write = PROT_READ | PROT_WRITE;

class MemoryCapture : public testing::Test {
 protected:
  void SetUp() override {
#ifdef __SANITIZE_ADDRESS__
    GTEST_SKIP() << "the sanitizer keeps its shadow where the children lay out their memory";
#endif
  }
  ~MemoryCapture() override {
    for (const pid_t pid : children_) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
  }

  /// Runs `body` in a child that then waits; its address space is captured as that of task `pid`.
  pid_t child(const std::function<void()>& body) {
    int ready[2];
    EXPECT_EQ(pipe(ready), 0);
    const pid_t pid = fork();
    if (pid == 0) {
      body();
      if (write(ready[1], "x", 1) != 1) _exit(1);
      while (true) pause();
    }
    close(ready[1]);
    char byte = 0;
    EXPECT_EQ(read(ready[0], &byte, 1), 1) << "the child could not lay out its memory";
    close(ready[0]);
    children_.push_back(pid);
    return pid;
  }

  model::AddressSpace& capture(pid_t pid, Pid parent = Pid{0}) {
    model::Task task;
    task.pid = Pid{pid};
    task.parent = parent;
    task.name = "child";
    task.address_space = context.new_id();
    context.application.tasks.push_back(task);
    ProcessView view;
    view.host_pid = pid;
    view.host_tids = {pid};
    const auto status = memory.capture(context, view, task);
    EXPECT_TRUE(status) << status.error().message();
    EXPECT_TRUE(memory.finish(context));
    return context.application.address_spaces.at(task.address_space);
  }

  static const Mapping& mapping(const model::AddressSpace& space, AddressRange range) {
    static const Mapping none;
    const auto found = std::ranges::find(space.mappings, range, &Mapping::range);
    EXPECT_NE(found, space.mappings.end()) << "no mapping " << std::hex << range.begin << "-" << range.end;
    return found == space.mappings.end() ? none : *found;
  }
  static std::vector<AddressRange> stored(const model::AddressSpace& space, AddressRange where) {
    std::vector<AddressRange> found;
    for (const auto& run : space.pages) {
      if (run.range.overlaps(where))
        found.push_back({std::max(run.range.begin, where.begin), std::min(run.range.end, where.end)});
    }
    return found;
  }
  uint8_t byte_at(const model::AddressSpace& space, uint64_t address) {
    auto source = memory.address_space(space.id);
    EXPECT_TRUE(source);
    Bytes page(page_size);
    EXPECT_TRUE((*source)->read(address / page_size * page_size, page));
    return page[address % page_size];
  }

  CaptureContext context;
  TreeMemory memory;

 private:
  std::vector<pid_t> children_;
};

using Ranges = std::vector<AddressRange>;

TEST_F(MemoryCapture, anonymous_memory_and_its_pages) {
  const pid_t pid = child([] {
    map(0, 16, read_write, anonymous);
    at(1)[5] = 7;
    at(2)[5] = 7;
    [[maybe_unused]] volatile uint8_t only_read = at(4)[0];
    at(9)[0] = 8;
    mprotect(at(9), page_size, PROT_NONE);
    map(32, 4, PROT_READ, anonymous);
    map(64, uint64_t{1} << 28, PROT_NONE, anonymous | MAP_NORESERVE);  // a terabyte
  });
  const auto& space = capture(pid);
  EXPECT_EQ(stored(space, pages(0, 16)), (Ranges{pages(1, 3), pages(9, 10)}));
  EXPECT_EQ(byte_at(space, base + page_size + 5), 7);
  EXPECT_EQ(byte_at(space, base + 9 * page_size), 8) << "content behind PROT_NONE";
  EXPECT_EQ(mapping(space, pages(0, 9)).protection, uint32_t{read_write});
  EXPECT_EQ(mapping(space, pages(9, 10)).protection, uint32_t{PROT_NONE});
  EXPECT_TRUE(mapping(space, pages(9, 10)).accounted);
  EXPECT_FALSE(mapping(space, pages(32, 36)).accounted);
  const auto& huge = mapping(space, pages(64, 64 + (uint64_t{1} << 28)));
  EXPECT_EQ(huge.map_flags, uint32_t{MAP_NORESERVE});
  EXPECT_EQ(huge.backing, Backing::private_anonymous);
  EXPECT_TRUE(stored(space, huge.range).empty());
  EXPECT_FALSE(context.diagnostics.refused());
}

/// Where nothing but anonymous memory is mapped the kernel is not asked whose a page is.
TEST_F(MemoryCapture, pages_of_files_among_large_anonymous_memory) {
  constexpr uint64_t many = 160 << 8, filled = 20 << 8;  // 160 and 20 MiB
  constexpr uint64_t file = many, behind = file + 4, hidden = behind + many, last = hidden + 4;
  const pid_t pid = child([] {
    const int program = open("/proc/self/exe", O_RDONLY);
    map(0, many, read_write, anonymous);
    memset(at(8), 1, filled * page_size);
    map(file, 4, read_write, MAP_PRIVATE, program);
    [[maybe_unused]] volatile uint8_t only_read = at(file)[0];
    only_read = at(file + 1)[0];
    at(file + 2)[0] = 7;
    map(behind, many, read_write, anonymous);
    at(behind)[0] = at(behind + many - 1)[0] = 7;
    only_read = at(behind + 1)[0];
    map(hidden, 4, PROT_READ, MAP_PRIVATE, program);
    only_read = at(hidden)[0];
    mprotect(at(hidden), 4 * page_size, PROT_NONE);
    map(last, 1, read_write, anonymous)[0] = 7;
  });
  // The page cache may map the program's neighbouring pages as well: none of them is the child's own.
  const Ranges expected = {pages(8, 8 + filled), pages(file + 2, file + 3), pages(behind, behind + 1),
                           pages(hidden - 1, hidden), pages(last, last + 1)};
  EXPECT_EQ(stored(capture(pid), pages(0, last + 1)), expected);

  const ObjectId next{context.new_id().value + 1};
  ASSERT_TRUE(memory.look_ahead({{next, pid}}));
  const auto& again = capture(pid);
  ASSERT_EQ(again.id, next);
  EXPECT_EQ(stored(again, pages(0, last + 1)), expected) << "found before it was known what is mapped";
}

TEST_F(MemoryCapture, layout_and_special_mappings) {
  const auto& space = capture(child([] {}));
  const auto count = [&](auto predicate) { return std::ranges::count_if(space.mappings, predicate); };
  EXPECT_EQ(count([](const Mapping& m) { return m.backing == Backing::vdso; }), 1);
  EXPECT_GE(count([](const Mapping& m) { return m.backing == Backing::vvar; }), 1);
  EXPECT_EQ(count([](const Mapping& m) { return m.is_stack && (m.map_flags & MAP_GROWSDOWN) != 0; }), 1);
  EXPECT_EQ(count([](const Mapping& m) { return m.is_heap; }), 1);
  EXPECT_NE(space.layout.start_stack, 0u);
  EXPECT_GT(space.layout.auxv.size(), 20u);
  EXPECT_NE(space.executable.value, 0u);
  for (const auto& m : space.mappings) {
    if (m.backing == Backing::vdso) {
      EXPECT_EQ(stored(space, m.range), Ranges{m.range});
    }
    if (m.backing == Backing::vvar) {
      EXPECT_TRUE(stored(space, m.range).empty());
    }
  }
}

TEST_F(MemoryCapture, advice_locks_and_seals) {
  const pid_t pid = child([] {
    const int advice[] = {MADV_DONTFORK, MADV_WIPEONFORK, MADV_DONTDUMP,  MADV_SEQUENTIAL,
                          MADV_RANDOM,   MADV_HUGEPAGE,   MADV_NOHUGEPAGE};
    for (int i = 0; i < 7; ++i) {
      map(static_cast<uint64_t>(i) * 4, 2, read_write, anonymous);
      if (madvise(at(static_cast<uint64_t>(i) * 4), 2 * page_size, advice[i]) != 0) _exit(2);
    }
    map(40, 2, read_write, anonymous);
    if (mlock(at(40), 2 * page_size) != 0) _exit(3);
    map(44, 2, read_write, anonymous);
    if (syscall(SYS_mlock2, at(44), 2 * page_size, 1) != 0) _exit(3);
    map(48, 2, read_write, anonymous);
    syscall(462, at(48), 2 * page_size, 0);
    map(52, 8, read_write, anonymous);
    at(53)[0] = 1;
    madvise(at(54), 2 * page_size, guard_install);
  });
  const auto& space = capture(pid);
  const int advice[] = {MADV_DONTFORK, MADV_WIPEONFORK, MADV_DONTDUMP,  MADV_SEQUENTIAL,
                        MADV_RANDOM,   MADV_HUGEPAGE,   MADV_NOHUGEPAGE};
  for (uint64_t i = 0; i < 7; ++i) EXPECT_EQ(mapping(space, pages(i * 4, i * 4 + 2)).advice, std::set<int>{advice[i]});
  EXPECT_TRUE(mapping(space, pages(40, 42)).locked);
  EXPECT_FALSE(mapping(space, pages(40, 42)).locked_on_fault);
  EXPECT_TRUE(mapping(space, pages(44, 46)).locked_on_fault);
  EXPECT_TRUE(mapping(space, pages(48, 50)).sealed);
  EXPECT_EQ(mapping(space, pages(52, 60)).guards, Ranges{pages(54, 56)});
  EXPECT_EQ(stored(space, pages(52, 60)), Ranges{pages(53, 54)});
}

TEST_F(MemoryCapture, files_private_shared_and_unlinked) {
  char path[] = "/tmp/stasis-mapped-XXXXXX";
  const int fd = mkstemp(path);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(ftruncate(fd, 8 * page_size), 0);
  const int only_read = open(path, O_RDONLY);
  const pid_t pid = child([&] {
    map(0, 4, read_write, MAP_PRIVATE, fd);
    at(1)[0] = 0;  // a page of its own, though all zeros
    [[maybe_unused]] volatile uint8_t seen = at(2)[0];
    map(8, 4, read_write, MAP_SHARED, fd, 4 * page_size);
    at(8)[0] = 1;
    map(16, 2, PROT_READ, MAP_SHARED, only_read);
  });
  const auto& space = capture(pid);
  unlink(path);
  close(fd);
  close(only_read);
  const auto& own = mapping(space, pages(0, 4));
  EXPECT_EQ(own.backing, Backing::private_file);
  EXPECT_EQ(stored(space, pages(0, 4)), Ranges{pages(1, 2)});
  for (const auto& run : space.pages) {
    if (run.range.overlaps(pages(0, 4))) {
      EXPECT_TRUE(run.keep_zeros);
    }
  }
  const auto& shared = mapping(space, pages(8, 12));
  EXPECT_EQ(shared.backing, Backing::shared_file);
  EXPECT_EQ(shared.offset, 4 * page_size);
  EXPECT_TRUE(stored(space, shared.range).empty());
  EXPECT_EQ(context.application.descriptions.at(shared.file).flags & O_ACCMODE, uint32_t{O_RDWR});
  EXPECT_EQ(context.application.descriptions.at(mapping(space, pages(16, 18)).file).flags & O_ACCMODE,
            uint32_t{O_RDONLY});
  EXPECT_NE(shared.file.value, 0u);
  EXPECT_FALSE(context.diagnostics.refused());
}

TEST_F(MemoryCapture, shared_segments_are_known_across_tasks) {
  map(0, 64, read_write, MAP_SHARED | MAP_ANONYMOUS);
  at(3)[0] = 1;
  const pid_t one = child([] { at(40)[0] = 2; });
  const pid_t two = child([] {
    munmap(at(0), 32 * page_size);
    munmap(at(60), 4 * page_size);
    map(100, 4, read_write, MAP_SHARED | MAP_ANONYMOUS);
  });
  munmap(at(0), 64 * page_size);
  const auto& first = capture(one);
  const auto& second = capture(two);
  const auto& whole = mapping(first, pages(0, 64));
  const auto& part = mapping(second, pages(32, 60));
  EXPECT_EQ(whole.backing, Backing::shared_anonymous);
  EXPECT_EQ(whole.shared_memory, part.shared_memory);
  EXPECT_EQ(part.offset, 32 * page_size);
  EXPECT_NE(mapping(second, pages(100, 104)).shared_memory, whole.shared_memory);
  const auto& segment = context.application.shared_memories.at(whole.shared_memory);
  EXPECT_EQ(segment.size, 64 * page_size);
  const auto runs = memory.shared_memory_runs(segment);
  ASSERT_TRUE(runs) << runs.error().message();
  ASSERT_EQ(runs->size(), 2u);
  EXPECT_EQ((*runs)[0].range, (AddressRange{3 * page_size, 4 * page_size}));
  EXPECT_EQ((*runs)[1].range, (AddressRange{40 * page_size, 41 * page_size}));
  auto source = memory.shared_memory(segment.id);
  ASSERT_TRUE(source);
  Bytes page(page_size);
  ASSERT_TRUE((*source)->read(40 * page_size, page));
  EXPECT_EQ(page[0], 2);
  EXPECT_TRUE(stored(first, whole.range).empty());
}

TEST_F(MemoryCapture, huge_pages) {
  void* huge = mmap(nullptr, 4 << 20, read_write, anonymous | MAP_HUGETLB, -1, 0);
  if (huge == MAP_FAILED) GTEST_SKIP() << "no huge pages here";
  munmap(huge, 4 << 20);
  const pid_t pid = child([] {
    map(0, 1024, read_write, anonymous | MAP_HUGETLB);
    at(3)[0] = 1;
    map(1024, 512, read_write, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB);
    at(1024)[0] = 2;
  });
  const auto& space = capture(pid);
  const uint32_t two_megabytes = MAP_HUGETLB | 21u << MAP_HUGE_SHIFT;
  const auto& own = mapping(space, pages(0, 1024));
  EXPECT_EQ(own.backing, Backing::private_anonymous);
  EXPECT_EQ(own.map_flags & ~uint32_t{MAP_NORESERVE}, two_megabytes);
  EXPECT_EQ(stored(space, own.range), Ranges{pages(0, 512)});
  const auto& shared = mapping(space, pages(1024, 1536));
  EXPECT_EQ(shared.backing, Backing::shared_anonymous);
  EXPECT_EQ(context.application.shared_memories.at(shared.shared_memory).map_flags, two_megabytes);
  auto source = memory.shared_memory(shared.shared_memory);
  ASSERT_TRUE(source);
  Bytes page(page_size);
  ASSERT_TRUE((*source)->read(0, page));
  EXPECT_EQ(page[0], 2);
}

TEST_F(MemoryCapture, pages_shared_with_the_parent) {
  map(0, 16, read_write, anonymous);
  std::memset(at(0), 1, 16 * page_size);
  const pid_t pid = child([] {
    at(3)[0] = 2;
    at(4)[0] = 2;
    madvise(at(8), page_size, MADV_DONTNEED);
    munmap(at(12), 4 * page_size);
  });
  const auto& parent = capture(getpid());
  auto& space = capture(pid, Pid{getpid()});
  Ranges common, own;
  for (const auto& run : space.pages) {
    if (run.range.overlaps(pages(0, 16))) (run.shared_with_parent ? common : own).push_back(run.range);
  }
  EXPECT_EQ(common, (Ranges{pages(0, 3), pages(5, 8), pages(9, 12)}));
  EXPECT_EQ(own, Ranges{pages(3, 5)});
  EXPECT_TRUE(std::ranges::none_of(parent.pages, &model::PageRun::shared_with_parent));
  munmap(at(0), 16 * page_size);
}

TEST_F(MemoryCapture, neighbours_that_differ_in_nothing_are_one) {
  const pid_t pid = child([] {
    map(0, 2, read_write, anonymous);
    at(0)[0] = 1;
    map(4, 2, read_write, anonymous);
    at(4)[0] = 1;
    map(2, 2, read_write, anonymous);  // may join only one of its neighbours: they have anon_vmas of their own
    at(2)[0] = 1;
  });
  EXPECT_EQ(mapping(capture(pid), pages(0, 6)).protection, uint32_t{read_write});
}

TEST_F(MemoryCapture, system_v_memory_is_known_by_its_segment) {
  const pid_t pid = child([] {
    const long id = syscall(SYS_shmget, 0, page_size, 0600);
    if (id < 0 || syscall(SYS_shmat, id, at(0), 0) < 0) _exit(4);
    syscall(SYS_shmctl, id, 0, nullptr);
  });
  capture(pid);
  EXPECT_FALSE(context.diagnostics.refused());
  ASSERT_EQ(context.application.shared_memories.size(), 1U);
  const auto& segment = context.application.shared_memories.begin()->second;
  ASSERT_TRUE(segment.system_v.has_value());
  EXPECT_TRUE(segment.system_v->destroyed);
  EXPECT_EQ(segment.size, page_size);
}

TEST_F(MemoryCapture, survives_the_record) {
  const pid_t pid = child([] {
    map(0, 16, read_write, anonymous);
    mlock(at(0), 16 * page_size);
    map(20, 16, read_write, anonymous);
    madvise(at(22), 2 * page_size, guard_install);
    madvise(at(20), 16 * page_size, MADV_DONTFORK);
    map(40, 4, read_write, MAP_SHARED | MAP_ANONYMOUS);
    map(64, 1 << 20, PROT_NONE, anonymous | MAP_NORESERVE);
    map(50, 1, read_write, MAP_PRIVATE, open("/dev/zero", O_RDWR));
  });
  auto& space = capture(pid);
  space.layout.brk = space.layout.start_brk + 0x1000;
  space.lock_future = true;
  mm_entry record;
  ASSERT_TRUE(encode_memory(context.application, space, record));
  model::Application other;
  model::AddressSpace back;
  back.id = space.id;
  const auto status = decode_memory(record, "mm-7.img", other, back);
  ASSERT_TRUE(status) << status.error().message();
  back.pages = space.pages;  // these are in the pagemap
  EXPECT_EQ(back.layout.auxv, space.layout.auxv);
  EXPECT_EQ(back.layout, space.layout);
  ASSERT_EQ(back.mappings.size(), space.mappings.size());
  for (size_t i = 0; i < back.mappings.size(); ++i) {
    EXPECT_EQ(back.mappings[i], space.mappings[i]) << std::hex << space.mappings[i].range.begin;
  }
  EXPECT_EQ(back, space);
  EXPECT_EQ(other.shared_memories, context.application.shared_memories);
}

}  // namespace
}  // namespace stasis::resource
