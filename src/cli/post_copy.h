// dump --lazy-pages: the memory that the images lack goes to whoever restores them, from the tree itself, which stands
// still until then (docs/lazy-pages.md).
#pragma once

#include "base/result.h"
#include "capture/capture.h"
#include "cli/session.h"
#include "cli/transfer_options.h"
#include "plan/lazy_memory.h"

namespace stasis::cli {

class PostCopy {
 public:
  /// Before the tree is stopped: what is wrong with address and keys is said now.
  static Result<PostCopy> prepare(const TransferOptions&, int status_fd, const Session&);

  /// What the images need not have of the tree.
  const plan::RangesOfSpaces& choose(const model::Application&);
  /// When the images are complete: until the other side says that it needs no more. After an error they are no
  /// checkpoint any more, because they lack memory that cannot be had.
  Status serve(capture::SeizedTree&, const image::Directory&, const Session&);
  /// Whether the tree may run elsewhere by now. It must not go on here then, whatever happens.
  bool is_taken_over() const { return is_taken_over_; }

 private:
  PostCopy(const TransferOptions& options, int status_fd, Host host)
      : options_(options), status_fd_(status_fd), host_(std::move(host)) {}
  Status give(capture::SeizedTree&, const Session&);
  Status take_over(capture::SeizedTree&, const Session&);

  TransferOptions options_;
  int status_fd_;
  Host host_;
  plan::RangesOfSpaces left_out_;
  bool is_taken_over_ = false;
};

}  // namespace stasis::cli
