// What the benchmark dumps: `subject processes N`, `threads N`, `descriptors N`, `memory MIB`, `small`. Prints "ready"
// once set up.
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

static void* idle(void*) {
  for (;;) pause();
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
