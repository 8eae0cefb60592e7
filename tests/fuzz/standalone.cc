// Drives a fuzz target without libFuzzer: every seed as it is, then seeds with random damage, for a number of seconds.
// Not guided by coverage, but it runs with any compiler, sanitised or not, in every `make test`.
//   <target> SECONDS SEED-FILE…
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<uint8_t>;

void damage(Input& input, std::mt19937_64& random) {
  const auto below = [&](size_t limit) { return static_cast<size_t>(random() % std::max<size_t>(limit, 1)); };
  const size_t times = 1 + below(8);
  for (size_t i = 0; i < times && !input.empty(); ++i) {
    const size_t at = below(input.size());
    const size_t length = std::min<size_t>(1 + below(16), input.size() - at);
    const auto begin = input.begin() + static_cast<std::ptrdiff_t>(at);
    switch (below(7)) {
      case 0:
        input[at] ^= static_cast<uint8_t>(1U << below(8));
        break;
      case 1:
        input[at] = static_cast<uint8_t>(random());
        break;
      case 2:
        input.erase(begin, begin + static_cast<std::ptrdiff_t>(length));
        break;
      case 3:
        input.insert(begin, length, static_cast<uint8_t>(random()));
        break;
      case 4:
        std::fill(begin, begin + static_cast<std::ptrdiff_t>(length), below(2) ? 0xff : 0);
        break;
      case 5:
        input.insert(begin, length, input[below(input.size())]);
        break;
      default:
        if (below(20) == 0) input.resize(at);
    }
  }
}

}  // namespace

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
    damage(input, random);
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%llu inputs\n", static_cast<unsigned long long>(runs));
  return 0;
}
