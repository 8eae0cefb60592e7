// What the tests of the command line dump: counts in <directory>/beat, whose size never changes, holds <directory>/data
// open and some memory filled, until <directory>/go exists.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

[[noreturn]] void failed(const char* what) {
  perror(what);
  _exit(2);
}

char* filled_memory(size_t size) {
  auto* memory = static_cast<char*>(malloc(size));
  if (memory == nullptr) failed("malloc");
  for (size_t i = 0; i < size; ++i) memory[i] = static_cast<char>(i * 2654435761u >> 13);
  return memory;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::string directory = argv[1];
  const size_t size = strtoul(argv[2], nullptr, 10) << 20;
  char* const memory = filled_memory(size + 1);
  const int data = open((directory + "/data").c_str(), O_RDONLY);
  if (data < 0) failed("data");
  const int beat = open((directory + "/beat").c_str(), O_WRONLY | O_CREAT, 0666);
  if (beat < 0) failed("beat");
  for (unsigned long count = 1; access((directory + "/go").c_str(), F_OK) != 0; ++count) {
    char text[32];
    snprintf(text, sizeof text, "%020lu\n", count);
    if (pwrite(beat, text, strlen(text), 0) < 0) failed("pwrite");
    usleep(2000);
  }
  free(memory);
  return 0;
}
