// Program → processes: lowers a verified Program to agent programs, runs them, and takes over for the last step.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/patience.h"
#include "base/result.h"
#include "image/directory.h"
#include "kernel/missing_pages.h"
#include "memory/consumed_pages.h"
#include "model/application.h"
#include "plan/program.h"

namespace stasis::execute {

/// Private memory of one address space whose pages come when they are used, or later.
struct OwedPages {
  Pid owner;                        ///< as the images name the memory
  kernel::MissingPages descriptor;  ///< watches it: who touches it waits
  std::span<const uint64_t> runs;   ///< address, length: the pages that are missing
};

struct ExecuteOptions {
  bool sibling = false;        ///< --restore-sibling: the root becomes our sibling
  bool leave_stopped = false;  ///< --leave-stopped
  int fail_at_command = -1;    ///< fault injection: this command's first system call fails with EIO
  std::chrono::milliseconds patience = stasis::patience;  ///< with a tree in which nothing moves any more
  bool only_build = false;  ///< nobody is made ready to be resumed: the tree is looked at and taken down again
  /// Verifies the Program, beside getting ready to run it: nobody is created unless it says that it may be run.
  std::function<Status()> verify;
  /// Told of pages that have been read, where they are released (Directory::consume_pages).
  memory::ConsumedPages* consumed = nullptr;
  /// Called once for each address space of which pages are owed (OWE_PAGES), by a thread of its own.
  std::function<Status(OwedPages)> hand_over;
  /// Called when all tasks are complete, none runs, with the root's pid as we see it. An error undoes the restore.
  std::function<Status(pid_t)> before_resume;
  /// Called when all tasks are as they will be, and stopped, just before connections leave repair mode (END_REPAIR) and
  /// all are let go: what others would notice begins here. An error undoes the restore.
  std::function<Status()> at_last;
  /// Takes back what at_last has done: something failed after it.
  std::function<void()> undo_last;
};

/// All processes of a restore under one guard: destroyed without resume(), everything is killed and reaped.
class BuiltTree {
 public:
  static Result<std::unique_ptr<BuiltTree>> build(const plan::Program&, const model::Application&,
                                                  const image::Directory&, const ExecuteOptions&);
  virtual ~BuiltTree() = default;
  virtual pid_t host_root() const = 0;
  /// The Out arguments of a PERFORM's calls, as the kernel has filled them.
  virtual std::vector<Bytes> answers_of(size_t command) const = 0;
  /// Sets final registers, removes the agent, lets every task go. From here on there is no way back.
  virtual Status resume() = 0;
};

/// Addresses in use by ourselves, which the agent area must avoid.
Result<std::vector<AddressRange>> own_mappings();
/// The highest descriptor number that is open in ourselves: the image directory is placed above it.
Result<int> own_highest_fd();

}  // namespace stasis::execute
