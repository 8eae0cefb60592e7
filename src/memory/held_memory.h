// An address space without a process: what a fork has copied stays there, and can be read, after the child has ended.
//
// A read of /proc/PID/mem holds the memory's user count for as long as it lasts (fs/proc/base.c, mem_rw), and it lasts
// as long as its target cannot be written: here that is a page whose first fault nobody answers (userfaultfd(2)). So
// the process can be ended and reaped at once. No task is left that anybody could see, wait for or be held up by, and
// if we are killed the kernel ends the read and frees the memory.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <thread>

#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"

namespace stasis::memory {

class HeldMemory {
 public:
  /// Whether we may have what it takes.
  static Status is_possible();
  /// Of a process that does not run; `readable` is an address of its memory. From here on the process is not needed.
  /// Needs CAP_SYS_PTRACE (vm.unprivileged_userfaultfd) for a userfaultfd that catches the kernel's own accesses.
  static Result<std::shared_ptr<HeldMemory>> hold(pid_t pid, RemoteAddress readable);
  /// Frees what nobody else has: a matter of milliseconds for each 100 MiB.
  ~HeldMemory();
  HeldMemory(const HeldMemory&) = delete;
  HeldMemory& operator=(const HeldMemory&) = delete;

  /// May be called from several threads at once. Protections do not matter, unless the kernel was told otherwise
  /// (proc_mem.force_override).
  Status read(uint64_t address, std::span<uint8_t> buffer) const;
  /// From here on it cannot be read any more: whoever does gets this reason as an error.
  void abandon(std::string reason);
  /// /proc/PID/pagemap
  int pagemap() const { return pagemap_.get(); }

 private:
  HeldMemory() = default;
  Status catch_fault(RemoteAddress readable);
  Status wait_for_fault();

  UniqueFd mem_, pagemap_, fault_;
  uint8_t* page_ = nullptr;  ///< the target that cannot be written
  std::atomic<bool> read_ended_{false}, abandoned_{false};
  std::string reason_;  ///< not changed once abandoned_ is true
  std::thread reader_;
};

}  // namespace stasis::memory
