// getsockopt(2) for options of a fixed size.
#pragma once

#include <sys/socket.h>

#include "base/result.h"

namespace stasis::kernel {

/// `name`: for the error.
template <typename T>
Result<T> socket_option(int fd, int level, int option, const char* name) {
  T value{};
  socklen_t size = sizeof value;
  if (getsockopt(fd, level, option, &value, &size) != 0) return fail_errno(name);
  return value;
}

}  // namespace stasis::kernel
