// What the benchmark dumps: `subject processes N`, `threads N`, `descriptors N`, `memory MIB`, `connections N`,
// `kind NAME N` (so many descriptors of one kind), `small`, `increments MIB FILE`, `random MIB FILE`, `lazy MIB FILE`,
// `pause MIB`. Prints "ready" once set up. With `pause` it prints at each SIGUSR1 the longest time in nanoseconds for
// which it did not run since the one before.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static void* idle(void*) {
  for (;;) pause();
}

static volatile sig_atomic_t asked = 0;

static void ask(int) { asked = 1; }

static long nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

static void watch_clock() {
  long longest = 0;
  for (long before = nanoseconds();;) {
    const long now = nanoseconds();
    if (now - before > longest) longest = now - before;
    before = now;
    if (asked == 0) continue;
    printf("%ld\n", longest);
    fflush(stdout);
    asked = 0, longest = 0, before = nanoseconds();
  }
}

/// TCP connections over loopback: one process has the clients' ends, its parent the servers'.
static int connect_all(long count) {
  rlimit limit = {0, 0};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  socklen_t size = sizeof address;
  address.sin_family = AF_INET, address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener, 128) != 0) return 3;
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  if (fork() == 0) {
    close(listener);
    for (long i = 0; i < count; ++i) {
      const int client = socket(AF_INET, SOCK_STREAM, 0);
      if (client < 0 || connect(client, reinterpret_cast<const sockaddr*>(&address), size) != 0) _exit(3);
    }
    idle(nullptr);
  }
  for (long i = 0; i < count; ++i) {
    if (accept(listener, nullptr, nullptr) < 0) return 3;
  }
  return 0;
}

/// One or two descriptors, as many as the kind comes in; 0: it is not known.
static int open_some(const char* kind) {
  int pair[2];
  const auto is = [kind](const char* name) { return strcmp(kind, name) == 0; };
  if (is("pipe")) return pipe(pair) == 0 ? 2 : 0;
  if (is("unix")) return socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 ? 2 : 0;
  if (is("udp")) return socket(AF_INET, SOCK_DGRAM, 0) >= 0;
  if (is("eventfd")) return eventfd(1, 0) >= 0;
  if (is("timerfd")) return timerfd_create(CLOCK_MONOTONIC, 0) >= 0;
  if (is("epoll")) return epoll_create1(0) >= 0;
  if (is("memfd")) return memfd_create("memfd", 0) >= 0;
  if (!is("signalfd")) return 0;
  sigset_t mask;
  sigemptyset(&mask);
  return signalfd(-1, &mask, 0) >= 0;
}

static int open_kind(const char* kind, long count) {
  const rlimit limit = {8192, 8192};
  setrlimit(RLIMIT_NOFILE, &limit);
  for (long have = 0; have < count;) {
    const int more = open_some(kind);
    if (more == 0) return 3;
    have += more;
  }
  return 0;
}

static char* map_full(size_t size) {
  auto* memory = static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) return nullptr;
  unsigned long value = 88172645463325252ul;
  for (size_t at = 0; at < size; at += 64) {  // every page full of what does not compress
    value ^= value << 13, value ^= value >> 7, value ^= value << 17;
    memcpy(memory + at, &value, sizeof value);
  }
  return memory;
}

/// In a file that is read from outside while we are watched.
struct Report {
  volatile uint64_t longest_gap_ns, rounds_written;
};

static void* tick(void* argument) {
  auto* report = static_cast<Report*>(argument);
  uint64_t last = 0;
  for (;;) {
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    const uint64_t ns = static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
    if (last != 0 && ns - last > report->longest_gap_ns) report->longest_gap_ns = ns - last;
    last = ns;
    usleep(50);
  }
}

/// Writes one page in a hundred at each SIGUSR1, and says how long it was ever kept from running.
static int write_in_rounds(size_t size, const char* path) {
  auto* memory = map_full(size);
  const int file = open(path, O_RDWR | O_CREAT, 0600);
  if (memory == nullptr || file < 0 || ftruncate(file, sizeof(Report)) != 0) return 3;
  void* report = mmap(nullptr, sizeof(Report), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (report == MAP_FAILED) return 3;
  sigset_t wanted;
  sigemptyset(&wanted);
  sigaddset(&wanted, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &wanted, nullptr);
  pthread_t ticker;
  if (pthread_create(&ticker, nullptr, tick, report) != 0) return 3;
  printf("ready\n");
  fflush(stdout);
  for (size_t round = 1;; ++round) {
    int signal = 0;
    sigwait(&wanted, &signal);
    for (size_t at = round % 100 * 4096; at < size; at += size_t{100} * 4096) memory[at]++;
    static_cast<Report*>(report)->rounds_written = round;
  }
}

/// Of a page that was written last in that round. Does not compress.
static void fill_page(char* page, uint64_t number, uint64_t round) {
  uint64_t value = (number + 1) * 0x9e3779b97f4a7c15 ^ (round + 1) * 0xd1b54a32d192ed03;
  for (size_t at = 0; at < 4096; at += sizeof value) {
    value ^= value << 13, value ^= value >> 7, value ^= value << 17;
    memcpy(page + at, &value, sizeof value);
  }
}

struct RandomReport {
  volatile uint64_t rounds_written, pages_wrong;
};

/// At each SIGUSR1 looks at all pages, and then writes a tenth of them, chosen at random.
static int write_at_random(size_t size, const char* path) {
  const size_t pages = size / 4096;
  auto* memory = static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  auto* written = static_cast<uint32_t*>(calloc(pages, sizeof(uint32_t)));
  const int file = open(path, O_RDWR | O_CREAT, 0600);
  if (memory == MAP_FAILED || written == nullptr || file < 0 || ftruncate(file, sizeof(RandomReport)) != 0) return 3;
  void* mapped = mmap(nullptr, sizeof(RandomReport), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) return 3;
  auto* report = static_cast<RandomReport*>(mapped);
  for (size_t page = 0; page < pages; ++page) fill_page(memory + page * 4096, page, 0);
  sigset_t wanted;
  sigemptyset(&wanted);
  sigaddset(&wanted, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &wanted, nullptr);
  printf("ready\n");
  fflush(stdout);
  unsigned seed = 1;
  for (uint32_t round = 1;; ++round) {
    int signal = 0;
    sigwait(&wanted, &signal);
    uint64_t wrong = 0;
    char expected[4096];
    for (size_t page = 0; page < pages; ++page) {
      fill_page(expected, page, written[page]);
      if (memcmp(memory + page * 4096, expected, sizeof expected) != 0) ++wrong;
    }
    report->pages_wrong = report->pages_wrong + wrong;
    for (size_t i = 0; i < pages / 10; ++i) {
      const size_t page = static_cast<size_t>(rand_r(&seed)) % pages;
      written[page] = round;
      fill_page(memory + page * 4096, page, round);
    }
    report->rounds_written = round;
  }
}

/// Notes in the file when it ran again after it had not run for a while, in nanoseconds of the monotonic clock.
static int note_return(size_t size, const char* path) {
  const int file = open(path, O_RDWR | O_CREAT, 0600);
  if (map_full(size) == nullptr || file < 0 || ftruncate(file, sizeof(long)) != 0) return 3;
  void* note = mmap(nullptr, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (note == MAP_FAILED) return 3;
  printf("ready\n");
  fflush(stdout);
  constexpr long while_away = 300'000'000;
  for (long before = nanoseconds();;) {
    const long now = nanoseconds();
    if (now - before > while_away) *static_cast<volatile long*>(note) = now;
    before = now;
  }
}

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const char* what = argv[1];
  const long count = argc > 2 ? atol(argv[2]) : 0;
  if (strcmp(what, "processes") == 0) {
    for (long i = 1; i < count; ++i) {
      if (fork() == 0) idle(nullptr);
    }
  } else if (strcmp(what, "threads") == 0) {
    for (long i = 1; i < count; ++i) {
      pthread_t thread;
      pthread_attr_t attributes;
      pthread_attr_init(&attributes);
      pthread_attr_setstacksize(&attributes, 64 << 10);
      if (pthread_create(&thread, &attributes, idle, nullptr) != 0) return 3;
    }
  } else if (strcmp(what, "descriptors") == 0) {
    rlimit limit = {8192, 8192};
    setrlimit(RLIMIT_NOFILE, &limit);
    for (long i = 3; i < count; ++i) {
      if (open(i % 2 ? "/dev/null" : argv[0], O_RDONLY) < 0) return 3;
    }
  } else if (strcmp(what, "kind") == 0) {
    if (argc < 4 || open_kind(argv[2], atol(argv[3])) != 0) return 3;
  } else if (strcmp(what, "connections") == 0) {
    if (connect_all(count) != 0) return 3;
  } else if (strcmp(what, "memory") == 0 || strcmp(what, "pause") == 0) {
    if (map_full(static_cast<size_t>(count) << 20) == nullptr) return 3;
  } else if (strcmp(what, "increments") == 0) {
    return argc < 4 ? 2 : write_in_rounds(static_cast<size_t>(count) << 20, argv[3]);
  } else if (strcmp(what, "random") == 0) {
    return argc < 4 ? 2 : write_at_random(static_cast<size_t>(count) << 20, argv[3]);
  } else if (strcmp(what, "lazy") == 0) {
    return argc < 4 ? 2 : note_return(static_cast<size_t>(count) << 20, argv[3]);
  }
  signal(SIGUSR1, ask);
  printf("ready\n");
  fflush(stdout);
  if (strcmp(what, "pause") == 0) watch_clock();
  idle(nullptr);
}
