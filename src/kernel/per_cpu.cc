#include "kernel/per_cpu.h"

#include <array>

namespace stasis::kernel {
namespace {

using namespace bpf;

Result<UniqueFd> make_array() {
  bpf_attr attributes{};
  attributes.map_type = BPF_MAP_TYPE_PERCPU_ARRAY;
  attributes.key_size = sizeof(uint32_t), attributes.value_size = sizeof(uint64_t), attributes.max_entries = 1;
  UniqueFd array(static_cast<int>(bpf::call(BPF_MAP_CREATE, attributes)));
  if (!array.valid()) return fail_errno("make a BPF array with a copy for each processor");
  return array;
}

/// The address of a processor's copy of the array's element; 0: there is no such processor.
Result<Question> finder(int array) {
  const std::array finding{
      move(6, 1),
      load(3, 6, 0),
      set(1, 0),
      store(frame, -8, 1),
      address_of_map(1, array),
      second_half(),
      move(2, frame),
      add(2, -8),
      helper(BPF_FUNC_map_lookup_percpu_elem),
      store(6, Question::answer_at, 0),
      set(0, 0),
      leave(),
  };
  return Question::load(finding, "find a processor's memory");
}

}  // namespace

Result<PerCpu> PerCpu::learn(const KernelMemory& memory) {
  const auto array = TRY(make_array());
  const auto found = TRY(finder(array.get()));
  const uint64_t map = TRY(memory.private_data(array.get()));
  const uint64_t pointer = TRY(memory.word(TRY(memory.address(map, "bpf_array", "pptrs"))));
  PerCpu known;
  constexpr uint64_t most = 8192;  // NR_CPUS
  for (uint64_t processor = 0; processor < most; ++processor) {
    const uint64_t copy = TRY(found.ask(processor));
    if (copy == 0) break;
    known.distances_.push_back(copy - pointer);
  }
  return known;
}

std::vector<uint64_t> PerCpu::copies(uint64_t pointer) const {
  std::vector<uint64_t> found;
  for (const uint64_t distance : distances_) found.push_back(pointer + distance);
  return found;
}

}  // namespace stasis::kernel
