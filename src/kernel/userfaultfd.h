// Tracking writes by write protection: userfaultfd(2) in asynchronous mode and PAGEMAP_SCAN (Linux 6.7;
// Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst).
//
// A page that is write-protected carries a bit in its page table entry. The first write clears it, in the kernel, and
// nobody is woken: the application loses a microsecond, and goes on even when the descriptor's owner has died. The bit
// goes with whatever ends the entry: unmapping, discarding, moving (mremap drops the registration), exec. A child of
// fork has neither bits nor registration.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"
#include "kernel/process.h"

namespace stasis::kernel {

/// The call by which a task makes one for its own address space, and its flags.
extern const long userfaultfd_call;
extern const uint64_t userfaultfd_flags;

/// A userfaultfd of somebody's address space. Closing the last descriptor of it ends all registrations.
class Userfaultfd {
 public:
  explicit Userfaultfd(UniqueFd fd) : fd_(std::move(fd)) {}
  int fd() const { return fd_.get(); }

  /// Once, before everything else: asynchronous write protection, of all kinds of memory.
  Status begin_tracking() const;

  enum class Registration : uint8_t {
    registered,  ///< now or before
    foreign,     ///< another userfaultfd watches part of it
    unsuitable,  ///< memory of a kind that cannot be watched, or nothing is mapped there (any more)
  };
  /// Whole mappings. ErrorCode::gone when the address space is.
  Result<Registration> register_range(AddressRange) const;
  /// Protects pages that are registered, or takes the protection away: then they count as written.
  Status protect(AddressRange, bool on) const;

 private:
  UniqueFd fd_;
};

/// As scan_pages of registered memory, and what is found is protected in the same step: what is written afterwards is
/// found by the next scan. Memory that is not registered is passed over.
Result<std::vector<PageScan>> scan_and_protect(int pagemap_fd, AddressRange where, uint64_t required, uint64_t any_of,
                                               uint64_t inverted, uint64_t report);

}  // namespace stasis::kernel
