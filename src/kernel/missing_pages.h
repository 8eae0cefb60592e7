// Serving pages that are missing: userfaultfd(2) in its oldest mode (Documentation/admin-guide/mm/userfaultfd.rst).
//
// Whoever touches a page that is not there waits, in user mode or in a system call, until somebody with the descriptor
// has put it there. What the application does to its memory meanwhile is told as well, and is done (or, of discarding,
// begun) only when it has been read. Descriptors end the watching when the last of them is closed: what was missing
// would be zeros from then on.
#pragma once

#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"

namespace stasis::kernel {

class MissingPages {
 public:
  explicit MissingPages(UniqueFd fd) : fd_(std::move(fd)) {}
  int fd() const { return fd_.get(); }

  /// Whether the kernel lets us do all of this. Nothing else is needed of the machine.
  static Status probe();
  /// Once, before everything else. The descriptor was made with O_NONBLOCK. Needs CAP_SYS_PTRACE.
  Status begin() const;
  /// A whole mapping of private anonymous memory.
  Status watch(AddressRange) const;

  struct Fault {
    uint64_t page = 0;
  };
  struct Fork {
    UniqueFd child;  ///< watches the child's memory, which is a copy of this one
  };
  struct Moved {
    AddressRange from;
    uint64_t to = 0;
  };
  struct Gone {  ///< unmapped, or discarded: zeros, if it is still mapped
    AddressRange range;
  };
  using Event = std::variant<Fault, Fork, Moved, Gone>;
  /// Whatever has happened, in the order in which it has; faults may have come later. Does not wait.
  Result<std::vector<Event>> events() const;

  enum class Outcome : uint8_t {
    done,      ///< all of it
    changed,   ///< something has happened that has to be read first
    present,   ///< the first page that was not filled is there already
    unmapped,  ///< nothing that is watched is mapped there
    gone,      ///< nobody uses the address space any more
  };
  struct Filled {
    uint64_t bytes = 0;
    Outcome outcome = Outcome::done;
  };
  /// Puts pages there and wakes who waits for them.
  Result<Filled> copy(uint64_t to, ByteView bytes) const;
  Result<Filled> zero(AddressRange) const;
  /// Who touches them gets SIGBUS (Linux 6.6).
  Result<Filled> poison(AddressRange) const;
  void wake(AddressRange) const;
  /// Nobody uses the address space any more.
  bool is_gone() const;

 private:
  UniqueFd fd_;
};

}  // namespace stasis::kernel
