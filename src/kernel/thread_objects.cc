#include "kernel/thread_objects.h"

#include <fmt/format.h>

namespace stasis::kernel {
namespace {

constexpr size_t words_of_one = 3;

}  // namespace

Result<ThreadIterator> ThreadIterator::open() {
  ThreadIterator threads;
  threads.iterator_ = TRY(BpfIterator::load("threads", "task", "task",
                                            {{{"task_struct", "files"}},
                                             {{"task_struct", "fs"}},
                                             {{"task_struct", "nsproxy"}, {"nsproxy", "pid_ns_for_children"}}}));
  return threads;
}

Result<std::vector<ThreadObjects>> ThreadIterator::objects(pid_t process) const {
  bpf_iter_link_info whose{};
  whose.task.pid = static_cast<uint32_t>(process);
  const auto words = TRY(iterator_.run(whose, fmt::format("process {}", process)));
  std::vector<ThreadObjects> objects(words.size() / words_of_one);
  for (size_t i = 0; i < objects.size(); ++i) {
    const uint64_t* const one = &words[i * words_of_one];
    objects[i] = {one[0], one[1], one[2]};
  }
  return objects;
}

}  // namespace stasis::kernel
