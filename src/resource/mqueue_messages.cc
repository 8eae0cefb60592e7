#include "resource/mqueue_messages.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

namespace stasis::resource {
namespace {

/// Shared by stasis and the process that empties and fills the queue.
struct Header {
  uint64_t received, sent;
};
struct Slot {
  int64_t length;
  uint32_t priority;
};

class Exchange {
 public:
  static Result<Exchange> create(uint64_t count, uint64_t message_size) {
    const uint64_t stride = (sizeof(Slot) + message_size + 7) / 8 * 8, size = sizeof(Header) + count * stride;
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) return fail_errno("mmap", "messages of a queue");
    return Exchange(static_cast<uint8_t*>(memory), size, count, stride, message_size);
  }
  Exchange(Exchange&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)),
        size_(other.size_),
        count_(other.count_),
        stride_(other.stride_),
        message_size_(other.message_size_) {}
  Exchange& operator=(Exchange&&) = delete;
  ~Exchange() {
    if (memory_ != nullptr) munmap(memory_, size_);
  }

  Header& header() const { return *reinterpret_cast<Header*>(memory_); }
  Slot& slot(uint64_t index) const { return *reinterpret_cast<Slot*>(memory_ + sizeof(Header) + index * stride_); }
  uint8_t* data(uint64_t index) const { return reinterpret_cast<uint8_t*>(&slot(index) + 1); }

  /// System calls alone: it runs in a child of a process with several threads.
  void run(int fd) const {
    auto& [received, sent] = header();
    for (; received < count_; ++received) {
      auto& [length, priority] = slot(received);
      length = syscall(SYS_mq_timedreceive, fd, data(received), message_size_, &priority, nullptr);
      if (length < 0) break;
    }
    for (; sent < received; ++sent) {
      const auto& [length, priority] = slot(sent);
      if (syscall(SYS_mq_timedsend, fd, data(sent), length, priority, nullptr) != 0) break;
    }
  }

  std::vector<QueueMessage> messages() const {
    std::vector<QueueMessage> messages;
    for (uint64_t index = 0; index < header().received; ++index) {
      const auto& [length, priority] = slot(index);
      messages.push_back({priority, Bytes(data(index), data(index) + length)});
    }
    return messages;
  }

 private:
  Exchange(uint8_t* memory, uint64_t size, uint64_t count, uint64_t stride, uint64_t message_size)
      : memory_(memory), size_(size), count_(count), stride_(stride), message_size_(message_size) {}
  uint8_t* memory_;
  uint64_t size_, count_, stride_, message_size_;
};

}  // namespace

Result<std::vector<QueueMessage>> read_messages(int fd, uint64_t count, uint64_t message_size) {
  const auto exchange = TRY(Exchange::create(count, message_size));
  sigset_t all, before;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, &before);  // a signal that is sent to a group of processes must not end it halfway
  const pid_t child = fork();
  if (child == 0) {
    exchange.run(fd);
    _exit(0);
  }
  const int error = errno;
  sigprocmask(SIG_SETMASK, &before, nullptr);
  if (child < 0) return fail(Error::system("fork", error, "a process that reads a message queue"));
  while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  const auto& [received, sent] = exchange.header();
  if (received == count && sent == count) return exchange.messages();
  return fail(Error::conflict(
      "read a message queue",
      fmt::format("{} of {} messages were received, and {} sent again: somebody else uses it", received, count, sent)));
}

}  // namespace stasis::resource
