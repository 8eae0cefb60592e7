// Drives a fuzz target without libFuzzer: every seed as it is, then seeds with random damage, for a number of seconds.
// Not guided by coverage, but it runs with any compiler, sanitised or not, in every `make test`.
//   <target> SECONDS SEED-FILE…
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "mutate.h"

using stasis::fuzz::Input;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int count, char** arguments) {
  if (count < 3) {
    std::fprintf(stderr, "usage: %s SECONDS SEED-FILE...\n", arguments[0]);
    return 2;
  }
  std::vector<Input> seeds;
  for (int i = 2; i < count; ++i) {
    std::ifstream stream(arguments[i], std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    LLVMFuzzerTestOneInput(seeds.back().data(), seeds.back().size());
  }
  const char* wanted = std::getenv("FUZZ_SEED");
  const uint64_t seed = wanted ? std::strtoull(wanted, nullptr, 0) : std::random_device{}();
  std::printf("FUZZ_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  std::mt19937_64 random(seed);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(arguments[1]));
  uint64_t runs = 0;
  for (; std::chrono::steady_clock::now() < end; ++runs) {
    Input input = seeds[random() % seeds.size()];
    for (size_t times = 1 + random() % 3; times > 0; --times) {
      if (random() % 8 == 0 || !stasis::fuzz::mutate_bundle(input, random)) stasis::fuzz::damage(input, random);
    }
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%llu inputs\n", static_cast<unsigned long long>(runs));
  return 0;
}
