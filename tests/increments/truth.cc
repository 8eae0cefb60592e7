// A tree whose memory never rests, and that knows what is in it: maps, moves, discards, protects, writes, forks and
// execs at random (the seed is printed and repeats it), until the file `go` appears. Then every byte is compared.
//
//   truth DIRECTORY SEED
//
// Each world (a thread with areas of its own) keeps a table of areas: what every page holds follows from its stamp.
#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>
#include <random>
#include <vector>

#include "../system/programs/probe.h"

namespace {

constexpr size_t page = 4096, huge_page = 2 << 20;
constexpr unsigned maybe_zero = 1u << 31;  ///< discarded lazily: the content, or zeros

enum Kind { anonymous, populated, private_file, private_tmpfs, shared, memfd, huge, kinds };

struct Area {
  Kind kind;
  char* at;
  int descriptor;  // memfd
  bool can_write;
  std::vector<uint32_t> stamps;  // 0: as it was mapped
  size_t pages() const { return stamps.size(); }
};

const char* program;
unsigned seed;
bool have_huge_pages;
int file_of_stamps = -1, tmpfs_file = -1;

/// A page that follows from its stamp.
void fill(uint64_t* words, uint32_t stamp) {
  uint64_t state = stamp * 0x9e3779b97f4a7c15ull;
  for (size_t i = 0; i < page / sizeof *words; ++i) words[i] = stamp == 1 ? 0 : (state += 0xbf58476d1ce4e5b9ull) ^ i;
}
uint32_t initial(Kind kind, size_t index) {
  return kind == private_file || kind == private_tmpfs ? 1000 + static_cast<uint32_t>(index) : 1;
}

struct World {
  std::mt19937 random;
  std::vector<Area> areas;
  std::vector<pid_t> children;
  unsigned depth = 0;
  bool is_thread = false;
  uint32_t next_stamp = 2000;

  unsigned below(unsigned n) { return random() % n; }

  void map_new() {
    if (areas.size() > 40) return;
    Area area{static_cast<Kind>(below(kinds)), nullptr, -1, true, {}};
    if (area.kind == huge && (!have_huge_pages || is_thread || depth > 0)) area.kind = populated;
    if (depth > 0 && (area.kind == shared || area.kind == memfd)) area.kind = anonymous;
    size_t pages = 1 + below(64);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS, descriptor = -1;
    if (area.kind == populated) flags |= MAP_POPULATE;
    if (area.kind == shared) flags = MAP_SHARED | MAP_ANONYMOUS;
    if (area.kind == huge) flags |= MAP_HUGETLB, pages = huge_page / page;
    if (area.kind == private_file || area.kind == private_tmpfs)
      flags = MAP_PRIVATE, descriptor = area.kind == private_file ? file_of_stamps : tmpfs_file;
    if (area.kind == memfd) {
      area.descriptor = descriptor = static_cast<int>(syscall(SYS_memfd_create, "truth", 0));
      CHECK(descriptor >= 0 && ftruncate(descriptor, static_cast<off_t>(pages * page)) == 0);
      flags = MAP_SHARED;
    }
    void* at = mmap(nullptr, pages * page, PROT_READ | PROT_WRITE, flags, descriptor, 0);
    if (at == MAP_FAILED && area.kind == huge) return;
    CHECK(at != MAP_FAILED);
    area.at = static_cast<char*>(at);
    for (size_t i = 0; i < pages; ++i) area.stamps.push_back(initial(area.kind, i));
    areas.push_back(std::move(area));
  }

  void protect(Area& area, int protection) {
    CHECK(mprotect(area.at, area.pages() * page, protection) == 0);
    area.can_write = (protection & PROT_WRITE) != 0;
  }

  void write_some(Area& area) {
    if (!area.can_write) protect(area, PROT_READ | PROT_WRITE);
    for (unsigned count = 1 + below(8); count > 0; --count) {
      const size_t index = below(static_cast<unsigned>(area.pages()));
      const uint32_t stamp = below(8) == 0 ? 1 : ++next_stamp;  // zeros, at times
      uint64_t words[page / sizeof(uint64_t)];
      fill(words, stamp);
      if (area.kind == memfd && below(2) == 0) {
        if (below(2) == 0) {
          CHECK(pwrite(area.descriptor, words, page, static_cast<off_t>(index * page)) == static_cast<ssize_t>(page));
        } else {  // through a mapping that comes and goes
          void* other = mmap(nullptr, page, PROT_WRITE, MAP_SHARED, area.descriptor, static_cast<off_t>(index * page));
          CHECK(other != MAP_FAILED);
          memcpy(other, words, page);
          munmap(other, page);
        }
      } else if (area.kind == shared && below(3) == 0) {  // a process that comes and goes
        const pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
          memcpy(area.at + index * page, words, page);
          _exit(0);
        }
        int status = 0;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
      } else {
        memcpy(area.at + index * page, words, page);
      }
      area.stamps[index] = stamp;
    }
  }

  void discard(Area& area) {
    const size_t first = below(static_cast<unsigned>(area.pages()));
    const size_t count = 1 + below(static_cast<unsigned>(area.pages() - first));
    char* at = area.at + first * page;
    if (area.kind == huge) return;
    if (area.kind == memfd) {
      CHECK(fallocate(area.descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(first * page),
                      static_cast<off_t>(count * page)) == 0);
    } else if (area.kind == shared) {
      if (!area.can_write) protect(area, PROT_READ | PROT_WRITE);
      CHECK(madvise(at, count * page, MADV_REMOVE) == 0);
    } else if (area.kind <= populated && below(3) == 0) {
      CHECK(madvise(at, count * page, MADV_FREE) == 0);
      for (size_t i = first; i < first + count; ++i) area.stamps[i] |= maybe_zero;
      return;
    } else {
      CHECK(madvise(at, count * page, MADV_DONTNEED) == 0);
    }
    for (size_t i = first; i < first + count; ++i) area.stamps[i] = initial(area.kind, i);
  }

  void move(Area& area) {
    if (area.kind == huge || area.kind == private_file || area.kind == private_tmpfs || area.kind == memfd) return;
    const size_t before = area.pages() * page;
    if (area.kind != shared && below(2) == 0) {  // longer
      const size_t more = 1 + below(8);
      void* at = mremap(area.at, before, before + more * page, MREMAP_MAYMOVE);
      if (at == MAP_FAILED) return;  // two mappings that the kernel keeps apart
      area.at = static_cast<char*>(at);
      area.stamps.insert(area.stamps.end(), more, 1);
      return;
    }
    // Somewhere else, at times where another area of ours has been until now.
    char* target = nullptr;
    size_t victim = areas.size();
    for (size_t i = 0; i < areas.size() && below(2) == 0; ++i) {
      if (&areas[i] != &area && areas[i].kind != huge && areas[i].pages() >= area.pages()) victim = i;
    }
    if (victim < areas.size()) {
      target = areas[victim].at;
    } else {
      target = static_cast<char*>(mmap(nullptr, before, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      CHECK(target != MAP_FAILED);
    }
    if (mremap(area.at, before, before, MREMAP_MAYMOVE | MREMAP_FIXED, target) == MAP_FAILED) {
      if (victim == areas.size())
        munmap(target, before);
      else
        forget(victim, true);
      return;
    }
    area.at = target;
    if (victim < areas.size()) {
      const size_t rest = areas[victim].pages() * page - before;
      if (rest > 0) munmap(target + before, rest);
      forget(victim, false);
    }
  }

  void forget(size_t index, bool unmap) {
    Area& area = areas[index];
    if (unmap) CHECK(munmap(area.at, area.pages() * page) == 0);
    if (area.descriptor >= 0) close(area.descriptor);
    areas.erase(areas.begin() + static_cast<long>(index));
  }

  /// A new mapping where an old one was.
  void replace(Area& area) {
    if (area.kind > populated) return;
    void* at =
        mmap(area.at, area.pages() * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(at == area.at);
    std::ranges::fill(area.stamps, 1);
    area.can_write = true;
  }

  /// The half of it goes.
  void shorten(Area& area) {
    if (area.pages() < 2 || area.kind == huge) return;
    const size_t left = area.pages() / 2;
    CHECK(munmap(area.at + left * page, (area.pages() - left) * page) == 0);
    area.stamps.resize(left);
  }

  void step() {
    const unsigned what = below(100);
    if (areas.empty() || what < 10) return map_new();
    Area& area = areas[below(static_cast<unsigned>(areas.size()))];
    if (what < 70) return write_some(area);
    if (what < 77) return discard(area);
    if (what < 83) return move(area);
    if (what < 86) return forget(static_cast<size_t>(&area - areas.data()), true);
    if (what < 90) return protect(area, below(2) == 0 ? PROT_READ : PROT_NONE);
    if (what < 93) return replace(area);
    if (what < 95) return shorten(area);
    if (what < 97 && !is_thread && depth < 2 && children.size() < 2) return bear();
    if (what < 98) return end_child();
  }

  void bear();
  void end_child() {
    if (children.empty() || below(2) == 0) return;
    kill(children.back(), SIGTERM);
    int status = 0;
    CHECK(waitpid(children.back(), &status, 0) == children.back());
    children.pop_back();
  }

  void check() {
    uint64_t expected[page / sizeof(uint64_t)];
    static const uint64_t zeros[page / sizeof(uint64_t)]{};
    for (Area& area : areas) {
      CHECK(mprotect(area.at, area.pages() * page, PROT_READ) == 0);
      for (size_t i = 0; i < area.pages(); ++i) {
        fill(expected, area.stamps[i] & ~maybe_zero);
        if (memcmp(area.at + i * page, expected, page) == 0) continue;
        if ((area.stamps[i] & maybe_zero) != 0 && memcmp(area.at + i * page, zeros, page) == 0) continue;
        uint64_t found;
        memcpy(&found, area.at + i * page, sizeof found);
        probe::failed("seed %u, depth %u%s: page %zu of %zu at %p, kind %d, has %#llx instead of stamp %u", seed, depth,
                      is_thread ? ", thread" : "", i, area.pages(), static_cast<void*>(area.at), area.kind,
                      static_cast<unsigned long long>(found), area.stamps[i]);
      }
    }
  }

  static bool is_over() {
    char path[4096];
    snprintf(path, sizeof path, "%s/go", probe::directory);
    return access(path, F_OK) == 0;
  }

  void live() {
    while (!is_over()) {
      step();
      usleep(below(400));
    }
    check();
    for (const pid_t child : children) {
      int status = 0;
      CHECK(waitpid(child, &status, 0) == child);
      if (status != 0) probe::failed("seed %u: child %d ended with %#x", seed, child, status);
    }
  }
};

void World::bear() {
  const unsigned its_seed = random();
  const bool exec = below(3) == 0;
  const pid_t parent = getpid();
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child != 0) return children.push_back(child);
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // no orphans
  if (getppid() != parent) _exit(0);
  if (exec) {
    char number[16], level[16];
    snprintf(number, sizeof number, "%u", its_seed);
    snprintf(level, sizeof level, "%u", depth + 1);
    execl(program, program, probe::directory, number, level, nullptr);
    _exit(98);
  }
  ++depth;
  random.seed(its_seed);
  children.clear();
  // What is shared goes on with the parent.
  std::erase_if(areas, [](const Area& area) {
    const bool is_shared = area.kind == shared || area.kind == memfd || area.kind == huge;
    if (is_shared) munmap(area.at, area.pages() * page);
    if (area.descriptor >= 0) close(area.descriptor);
    return is_shared;
  });
  live();
  _exit(0);
}

void make_file(int descriptor) {
  for (size_t i = 0; i < 80; ++i) {
    uint64_t words[page / sizeof(uint64_t)];
    fill(words, initial(private_file, i));
    CHECK(write(descriptor, words, page) == static_cast<ssize_t>(page));
  }
}

int open_file(const char* directory, const char* name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  int descriptor = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (descriptor >= 0) {
    make_file(descriptor);
  } else {
    descriptor = open(path, O_RDWR | O_CLOEXEC);
    CHECK(descriptor >= 0);
  }
  return descriptor;
}

void* thread_main(void* argument) {
  static_cast<World*>(argument)->live();
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  program = argv[0];
  seed = argc > 2 ? static_cast<unsigned>(atoi(argv[2])) : 1;
  // The checkpoint holds files by name: one on the disk of the directory, one in memory.
  file_of_stamps = open_file(probe::directory, "file");
  tmpfs_file = open_file(probe::directory, "tmpfs");
  void* trial = mmap(nullptr, huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  have_huge_pages = trial != MAP_FAILED;
  if (have_huge_pages) munmap(trial, huge_page);

  static World world, other;
  world.random.seed(seed);
  if (argc > 3) {  // a child that has called exec
    world.depth = static_cast<unsigned>(atoi(argv[3]));
    world.live();
    return 0;
  }
  other.random.seed(seed + 1);
  other.is_thread = true;
  for (int i = 0; i < 10; ++i) world.map_new(), other.map_new();
  pthread_t thread;
  CHECK(pthread_create(&thread, nullptr, thread_main, &other) == 0);
  probe::ready();
  world.live();
  CHECK(pthread_join(thread, nullptr) == 0);
  probe::passed();
}
