// Which descriptors cannot have locks: asking for each descriptor, by its fdinfo, costs more than all other questions.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "resource/capture_context.h"

namespace stasis::resource {

class LockedFiles {
 public:
  /// So many descriptors are to be asked about. Where that pays, /proc/locks is read in the meantime.
  explicit LockedFiles(size_t descriptors);

  /// Waits for the reading to end. The tasks must have been stopped before it began.
  void wait();

  /// false: there is neither a lock nor a lease on the file, whoever may hold it.
  bool may_be_locked(const DescriptorProbe&) const;

 private:
  struct Known {
    std::set<std::pair<dev_t, ino_t>> locked;
    std::map<int64_t, dev_t> devices;  ///< by mount, where inodes are numbered in /proc/locks as in stat(2)
  };
  static std::optional<Known> read();

  std::optional<Known> known_;
  std::jthread reading_;  // last: it uses the above
};

}  // namespace stasis::resource
