#include "kernel/thread_objects.h"

#include <fmt/format.h>

namespace stasis::kernel {

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
  return iterator_.run<ThreadObjects>(whose, fmt::format("process {}", process));
}

}  // namespace stasis::kernel
