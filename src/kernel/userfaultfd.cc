#include "kernel/userfaultfd.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <cerrno>

#include <fmt/format.h>

namespace stasis::kernel {
namespace {

// include/uapi/linux/userfaultfd.h; older headers lack them.
constexpr uint64_t wp_hugetlbfs_shmem = 1 << 12, wp_unpopulated = 1 << 13, wp_async = 1 << 15;
constexpr uint64_t user_mode_only = 1;  ///< UFFD_USER_MODE_ONLY: makes the call free for everybody

std::string text(AddressRange range) { return fmt::format("{:#x}-{:#x}", range.begin, range.end); }

}  // namespace

const long userfaultfd_call = SYS_userfaultfd;
// Faults in system calls matter to handlers of faults only: asynchronous protection has none.
const uint64_t userfaultfd_flags = O_CLOEXEC | O_NONBLOCK | user_mode_only;

Status Userfaultfd::begin_tracking() const {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = wp_async | wp_unpopulated | wp_hugetlbfs_shmem;
  if (ioctl(fd_.get(), UFFDIO_API, &api) == 0) return {};
  if (errno != EINVAL) return fail_errno("UFFDIO_API");
  return fail(Error::unsupported("track writes", "this kernel's userfaultfd has no asynchronous write protection")
                  .advise("it needs Linux 6.7 or later: `stasis check` tells"));
}

Result<Userfaultfd::Registration> Userfaultfd::register_range(AddressRange range) const {
  uffdio_register request{};
  request.range.start = range.begin, request.range.len = range.size();
  request.mode = UFFDIO_REGISTER_MODE_WP;
  for (;;) {
    if (ioctl(fd_.get(), UFFDIO_REGISTER, &request) == 0) return Registration::registered;
    switch (errno) {
      case EINTR:
      case EAGAIN:
        continue;
      case EBUSY:
        return Registration::foreign;
      case EINVAL:  // devices, MAP_DROPPABLE; or nothing is there
      case EPERM:   // shared, and never to be written
        return Registration::unsuitable;
      case ESRCH:
      case ENOMEM:  // also where nobody uses the address space any more (fs/userfaultfd.c, mmget_not_zero)
        return fail(Error::gone("UFFDIO_REGISTER", "the task of a userfaultfd"));
      default:
        return fail_errno("UFFDIO_REGISTER", text(range));
    }
  }
}

Status Userfaultfd::protect(AddressRange range, bool on) const {
  uffdio_writeprotect request{};
  request.range.start = range.begin, request.range.len = range.size();
  request.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
  while (ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &request) != 0) {
    if (errno != EINTR && errno != EAGAIN) return fail_errno("UFFDIO_WRITEPROTECT", text(range));
  }
  return {};
}

}  // namespace stasis::kernel
