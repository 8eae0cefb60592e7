#include "base/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

namespace stasis {
namespace {

constexpr unsigned most_threads = 8;

class Loop {
 public:
  /// `batch` steps are taken at a time: neighbours often share cache lines.
  Loop(size_t count, const std::function<Status(size_t)>& step, size_t batch)
      : count_(count), batch_(batch), step_(step) {}

  void work() {
    while (!failed_.load(std::memory_order_relaxed)) {
      const size_t begin = next_.fetch_add(batch_, std::memory_order_relaxed);
      if (begin >= count_) return;
      for (size_t index = begin; index < std::min(begin + batch_, count_); ++index) {
        if (auto status = step_(index); !status) return note(index, std::move(status).error());
      }
    }
  }
  Status outcome() {
    if (!failed_) return {};
    return fail(std::move(*error_));
  }

 private:
  void note(size_t index, Error error) {
    const std::lock_guard lock(mutex_);
    if (!failed_ || index < failed_index_) {
      error_ = std::move(error);
      failed_index_ = index;
    }
    failed_ = true;
  }

  size_t count_, batch_;
  const std::function<Status(size_t)>& step_;
  std::atomic<size_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  size_t failed_index_ = 0;
  std::optional<Error> error_;
};

/// Without our processor among those it may run on it is moved at once; then it may run on all again. That this works
/// is nobody's condition.
void move_elsewhere(pthread_t thread) {
  cpu_set_t allowed;
  const int here = sched_getcpu();
  if (here < 0 || pthread_getaffinity_np(thread, sizeof allowed, &allowed) != 0) return;
  cpu_set_t elsewhere = allowed;
  CPU_CLR(static_cast<size_t>(here), &elsewhere);
  if (CPU_COUNT(&elsewhere) == 0) return;
  pthread_setaffinity_np(thread, sizeof elsewhere, &elsewhere);
  pthread_setaffinity_np(thread, sizeof allowed, &allowed);
}

/// glibc lets the heaps of further threads grow by what is asked for, with mprotect(2) each time, whatever M_TOP_PAD
/// says (malloc/arena.c, grow_heap): hundreds of calls, each of which stops the page faults of all threads. What has
/// been given back stays with the heap (M_TRIM_THRESHOLD, main.cc), and no page of it is touched.
void grow_heap() {
  constexpr size_t some = 16 << 20;
  void* volatile block = std::malloc(some);
  std::free(block);
}

}  // namespace

std::jthread start_beside(std::function<void()> work) {
  std::jthread started([work = std::move(work)] {
    grow_heap();
    work();
  });
  move_elsewhere(started.native_handle());
  return started;
}

unsigned processor_count() {
  static const unsigned count = std::max(1u, std::thread::hardware_concurrency());
  return count;
}

Status parallel_for(size_t count, const std::function<Status(size_t)>& step, size_t worth_a_thread) {
  Loop loop(count, step, std::clamp<size_t>(count / 64, 1, 8));
  std::vector<std::jthread> helpers;
  if (count >= worth_a_thread) {
    const size_t wanted = std::min<size_t>({processor_count(), most_threads, count});
    // None may be to be had (RLIMIT_NPROC, a limit of the cgroup): who is there does it all.
    const auto start = [&] {
      try {
        helpers.push_back(start_beside([&loop] { loop.work(); }));
      } catch (const std::system_error&) {
        return false;
      }
      return true;
    };
    while (helpers.size() + 1 < wanted && start()) continue;
  }
  loop.work();
  helpers.clear();  // joins
  return loop.outcome();
}

}  // namespace stasis
