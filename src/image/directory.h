// A directory of images: CRIU 4.2's layout on disk, byte for byte, and nothing else.
//
// A file is magic(s) then records (uint32 length, protobuf message); pages-N.img is raw. Files with the common magic
// IMG_COMMON_MAGIC carry it first, then their own. Everything read here is hostile: lengths are bounded by the file's
// size, allocation by what is really there.
//
// Writing is safe against being killed: `inventory.img` comes last, under a temporary name, renamed by commit(). A
// directory without inventory.img is not a checkpoint.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <google/protobuf/message.h>

#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"

namespace stasis::image {

class Writer;   ///< one open image file being written
class Reader;   ///< one open image file being read

class Directory {
 public:
  /// Opens an existing directory. `parent` images are reached through its "parent" link.
  static Result<Directory> open(const std::string& path);
  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }

  bool has(std::string_view file) const;
  /// Creates or truncates `file` and writes the magic of its kind (known from the name: image/names.h).
  Result<Writer> create(std::string_view file) const;
  Result<Reader> read(std::string_view file) const;
  /// All *.img files, sorted.
  Result<std::vector<std::string>> list() const;
  /// Writes inventory.img under a temporary name, syncs nothing more than needed, renames.
  Status commit(const google::protobuf::Message& inventory) const;

 private:
  UniqueFd fd_;
  std::string path_;
};

class Writer {
 public:
  Writer(UniqueFd fd, std::string name);
  ~Writer();
  Writer(Writer&&) noexcept;
  Writer& operator=(Writer&&) noexcept;
  /// Appends one length-prefixed record. Buffered; finish() reports what the disk said.
  Status append(const google::protobuf::Message& record);
  /// Raw bytes after a record (a pipe's data, a ghost file's content).
  Status append_raw(ByteView bytes);
  /// Flushes. A Writer destroyed without it leaves a file that must not be used.
  Status finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class Reader {
 public:
  Reader(UniqueFd fd, std::string name, uint64_t size, uint64_t position);
  /// The next record, or false at the end of the file. Errors name file, record index and offset.
  Result<bool> next(google::protobuf::Message& record);
  /// Exactly `length` raw bytes.
  Result<Bytes> raw(uint64_t length);
  /// A file that has exactly one record.
  Status single(google::protobuf::Message& record);
  const std::string& name() const { return name_; }

 private:
  UniqueFd fd_;
  std::string name_;
  uint64_t size_ = 0;
  uint64_t position_ = 0;
  uint64_t index_ = 0;
};

}  // namespace stasis::image
