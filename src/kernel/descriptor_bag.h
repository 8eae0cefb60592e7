// Descriptors beyond the limit of open files (RLIMIT_NOFILE): those in flight in a unix socket's queue count for
// nothing, and keep what they refer to open.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace stasis::kernel {

class DescriptorBag {
 public:
  static Result<DescriptorBag> create();
  Status put(UniqueFd);
  /// Takes all out in the order in which they came in, a few hundred at a time: `first` is the index of the first of
  /// them. Then they go back, or are closed.
  enum class Then { keep, close };
  Status each_batch(const std::function<Status(size_t first, std::span<const UniqueFd>)>&, Then);

 private:
  DescriptorBag(UniqueFd in, UniqueFd out) : in_(std::move(in)), out_(std::move(out)) {}
  Status send();
  Result<std::vector<UniqueFd>> receive();

  UniqueFd in_, out_;
  std::vector<UniqueFd> waiting_;  ///< not sent yet
  size_t batches_ = 0;             ///< in flight
};

}  // namespace stasis::kernel
