// What the threads of a process refer to, without a look at each through /proc: a read of a thread's link or a kcmp(2)
// costs more than an iterator takes for all of them.
#pragma once

#include <sys/types.h>

#include <vector>

#include "base/result.h"
#include "kernel/bpf_iterator.h"

namespace stasis::kernel {

/// Addresses in the kernel: equal ones are the same object, and nothing else may be made of them.
struct ThreadObjects {
  uint64_t descriptors = 0, fs = 0, namespace_of_children = 0;
  friend bool operator==(const ThreadObjects&, const ThreadObjects&) = default;
};

class ThreadIterator {
 public:
  /// Takes a millisecond or two. An error where the kernel does not let us.
  static Result<ThreadIterator> open();
  /// Of each thread of a process that does not run.
  Result<std::vector<ThreadObjects>> objects(pid_t process) const;

 private:
  BpfIterator iterator_;
};

}  // namespace stasis::kernel
