#include "kernel/thread_objects.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "../eventually.h"

namespace stasis::kernel {
namespace {

/// Threads of ours, each with what it has unshared.
class Threads {
 public:
  explicit Threads(std::initializer_list<int> flags) {
    for (const int flag : flags) {
      threads_.emplace_back([this, flag] {
        if (flag == 0 || unshare(flag) == 0) ++ready_;
        done_.wait(false);
      });
    }
  }
  ~Threads() {
    done_ = true;
    done_.notify_all();
  }
  bool are_ready() {
    return eventually([this] { return ready_ == static_cast<int>(threads_.size()); });
  }

 private:
  std::atomic<int> ready_ = 0;
  std::atomic<bool> done_ = false;
  std::vector<std::jthread> threads_;
};

TEST(ThreadIterator, TellsWhichThreadHasSomethingOfItsOwn) {
  const auto iterator = ThreadIterator::open();
  if (!iterator) GTEST_SKIP() << iterator.error().message();
  Threads threads({0, CLONE_FS, 0, CLONE_FILES});
  ASSERT_TRUE(threads.are_ready());
  const auto objects = iterator->objects(getpid());
  ASSERT_TRUE(objects) << objects.error().message();
  ASSERT_EQ(objects->size(), 5u);
  const auto& usual = objects->front();
  EXPECT_NE(usual.descriptors, 0u);
  EXPECT_NE(usual.fs, 0u);
  EXPECT_NE(usual.namespace_of_children, 0u);
  const auto count = [&](auto member) {
    return std::ranges::count_if(*objects, [&](const ThreadObjects& one) { return one.*member != usual.*member; });
  };
  EXPECT_EQ(count(&ThreadObjects::descriptors), 1);
  EXPECT_EQ(count(&ThreadObjects::fs), 1);
  EXPECT_EQ(count(&ThreadObjects::namespace_of_children), 0);
}

TEST(ThreadIterator, AnEndedProcessHasNone) {
  const auto iterator = ThreadIterator::open();
  if (!iterator) GTEST_SKIP() << iterator.error().message();
  constexpr pid_t nobody = 0x3fffffff;
  const auto objects = iterator->objects(nobody);
  EXPECT_TRUE(!objects || objects->empty());
}

}  // namespace
}  // namespace stasis::kernel
