// What the benchmark dumps: `subject processes N`, `threads N`, `descriptors N`, `memory MIB`, `connections N`,
// `small`. Prints "ready" once set up.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static void* idle(void*) {
  for (;;) pause();
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
  } else if (strcmp(what, "connections") == 0) {
    if (connect_all(count) != 0) return 3;
  } else if (strcmp(what, "memory") == 0) {
    const size_t size = static_cast<size_t>(count) << 20;
    auto* memory = static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory == MAP_FAILED) return 3;
    unsigned long value = 88172645463325252ul;
    for (size_t at = 0; at < size; at += 64) {  // every page full of what does not compress
      value ^= value << 13, value ^= value >> 7, value ^= value << 17;
      memcpy(memory + at, &value, sizeof value);
    }
  }
  printf("ready\n");
  fflush(stdout);
  idle(nullptr);
}
