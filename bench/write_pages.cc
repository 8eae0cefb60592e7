// How fast the memory of a live task gets into a page store, beside a plain copy of as much memory of our own into a
// file on the same file system. write_pages [MiB] [directory]
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>

#include <fmt/format.h>

#include "memory/pages.h"

namespace {

using namespace stasis;
using Clock = std::chrono::steady_clock;

double milliseconds(Clock::time_point since) {
  return std::chrono::duration<double, std::milli>(Clock::now() - since).count();
}

uint8_t* touched_memory(size_t size) {
  auto* memory = static_cast<uint8_t*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) std::exit(1);
  for (size_t at = 0; at < size; at += 8) *reinterpret_cast<uint64_t*>(memory + at) = at * 2654435761u + 1;
  return memory;
}

double plain_copy(const uint8_t* memory, size_t size, const std::filesystem::path& file) {
  const UniqueFd fd(open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600));
  const auto start = Clock::now();
  for (size_t at = 0; at < size;) {
    const ssize_t written = write(fd.get(), memory + at, std::min<size_t>(size - at, 1 << 20));
    if (written <= 0) std::exit(1);
    at += static_cast<size_t>(written);
  }
  const double took = milliseconds(start);
  std::filesystem::remove(file);
  return took;
}

double store(pid_t child, const uint8_t* memory, size_t size, const std::filesystem::path& where) {
  const auto directory = image::Directory::open(where.string());
  memory::ProcessPages source(child);
  const auto begin = reinterpret_cast<uint64_t>(memory);
  const model::PageRun run{{begin, begin + size}, false};
  const auto start = Clock::now();
  const auto stats = memory::write_pages(*directory, "1", 1, {&run, 1}, source);
  const double took = milliseconds(start);
  if (!stats || stats->pages_written != size / page_size) std::exit(1);
  std::filesystem::remove(where / "pages-1.img");
  return took;
}

}  // namespace

int main(int argc, char** argv) {
  const size_t size = (argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 1024) << 20;
  std::string where = std::string(argc > 2 ? argv[2] : "/dev/shm") + "/stasis-bench-XXXXXX";
  if (mkdtemp(where.data()) == nullptr) return 1;
  auto* memory = touched_memory(size);
  int ready[2];
  if (pipe(ready) != 0) return 1;
  const pid_t child = fork();
  if (child == 0) {
    for (size_t at = 0; at < size; at += page_size) ++memory[at];  // pages of its own
    if (write(ready[1], "x", 1) != 1) _exit(1);
    while (true) pause();
  }
  char byte = 0;
  if (read(ready[0], &byte, 1) != 1) return 1;
  std::vector<double> plain, stored;
  for (int round = 0; round < 5; ++round) {
    plain.push_back(plain_copy(memory, size, std::filesystem::path(where) / "plain"));
    stored.push_back(store(child, memory, size, where));
  }
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  std::filesystem::remove_all(where);
  std::ranges::sort(plain);
  std::ranges::sort(stored);
  fmt::print("{} MiB, medians of 5: plain copy {:.0f} ms, write_pages {:.0f} ms ({:.0f}-{:.0f}), ratio {:.2f}\n",
             size >> 20, plain[2], stored[2], stored.front(), stored.back(), stored[2] / plain[2]);
}
