// What stasis does for processes being built that wait for bytes of compressed or encrypted images: DECODE_PAGES and
// DECODE_FILE. Only stasis has the keys, and the agent is no place for decompression.
//
// Workers take pieces of about a MiB from all who wait at the moment, decode them and write them straight into the
// waiting process (process_vm_writev) or file. Each holds one piece: that is all the memory there is.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "execute/lower.h"
#include "execute/requests.h"
#include "image/directory.h"
#include "memory/block_file.h"
#include "memory/consumed_pages.h"
#include "plan/program.h"

namespace stasis::execute {

class Decoding {
 public:
  /// Nothing is started where the program decodes nothing. All arguments must outlive it. `consumed` is told of what
  /// has been read; null: nobody is.
  Decoding(const plan::Program&, const Lowered&, const image::Directory&, RequestScene,
           memory::ConsumedPages* consumed);
  ~Decoding();
  Decoding(const Decoding&) = delete;
  Decoding& operator=(const Decoding&) = delete;

  /// Why it has cancelled the restore.
  std::optional<Error> error() const;

 private:
  struct Job;
  /// A file in blocks, or an encrypted image of another kind: one of the two is there.
  struct Source {
    std::unique_ptr<memory::BlockFile> blocks;
    std::unique_ptr<image::FileBytes> bytes;
    uint64_t size() const { return blocks ? blocks->size() : bytes->size(); }
  };
  struct Piece {
    Job* job = nullptr;
    uint64_t offset = 0, length = 0;  ///< of the file
  };
  struct Worker;

  void work();
  /// Waits for one; nothing when all is done or the restore has failed.
  std::optional<Piece> take();
  Job* next_request();
  Piece next_piece(Job&);
  Status begin(Job&);
  Result<const Source*> source_of(const std::string& name);
  Status fill(Worker&, const Piece&);
  void finish(const Piece&);
  void give_up(Error, const Job&);
  void wake_all();

  const plan::Program& program_;
  const Lowered& lowered_;
  const image::Directory& images_;
  const RequestScene scene_;
  memory::ConsumedPages* const consumed_;

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Job>> jobs_;
  std::deque<Job*> unasked_, open_;
  std::mutex files_mutex_;
  std::map<std::string, Source> files_;
  size_t unfinished_ = 0;
  bool stopping_ = false;
  std::optional<Error> error_;
  std::vector<std::thread> threads_;  // last: they use all of the above
};

}  // namespace stasis::execute
