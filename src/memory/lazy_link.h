// What a restore and the daemon that serves its missing pages (stasis lazy-pages) tell each other.
//
// The daemon listens on the socket `lazy-pages.socket` in a directory, for its own user and root. A restore says who it
// is before it creates anything; then it hands over each address space as soon as pages of it are missing (from then on
// the daemon answers those who touch them), and every process; and commits when the tree is complete. Only then may the
// tree run. When it does the restore says so: one that goes away before has failed.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"

namespace stasis::memory {

/// What the restore says.
struct LazyOrder {
  enum class Kind : uint32_t { hello, address_space, runs, process, needed, commit, complete };
  Kind kind = Kind::hello;
  pid_t owner = 0;
  std::vector<AddressRange> runs;  ///< of the last address space; or what is needed of the owner's
  UniqueFd descriptor;
};

/// The restore's side.
class LazyDaemon {
 public:
  static Result<LazyDaemon> connect(const std::string& directory);

  /// `runs`: address, length. The images have the pages under the name of task `owner`.
  Status hand_over(pid_t owner, int userfaultfd, std::span<const uint64_t> runs);
  Status add_process(int pidfd);
  /// Pages of `owner` that have to be there before the tree runs, also where nobody can wait for them.
  Status need(pid_t owner, std::span<const AddressRange> ranges);
  /// An error if the daemon could not go through with it.
  Status commit();
  /// The tree runs.
  Status complete();

 private:
  Status send(LazyOrder::Kind, pid_t owner, std::span<const AddressRange>);
  Status say(LazyOrder::Kind, pid_t owner = 0, ByteView rest = {}, int descriptor = -1);
  /// Waits for its answer. ErrorCode::gone if there is none.
  Status hear();
  explicit LazyDaemon(UniqueFd connection) : connection_(std::move(connection)) {}
  UniqueFd connection_;
};

/// The daemon's side: one conversation with one restore.
class LazyListener {
 public:
  static Result<LazyListener> open(const std::string& directory);
  int fd() const { return socket_.get(); }
  /// The connection of whoever may give orders and speaks this version. Then nobody else can come.
  Result<std::optional<UniqueFd>> accept();
  /// Removes the socket.
  void close();

 private:
  LazyListener(UniqueFd directory, UniqueFd socket) : directory_(std::move(directory)), socket_(std::move(socket)) {}
  UniqueFd directory_, socket_;
};

/// ErrorCode::gone when the restore has gone.
Result<LazyOrder> receive_order(int connection);
/// Nothing: it is done.
Status answer_order(int connection, const std::optional<Error>&);

}  // namespace stasis::memory
