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
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <google/protobuf/arena.h>
#include <google/protobuf/message.h>

#include "base/parallel.h"
#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"

namespace stasis::image {

struct FileKind;   // image/names.h
class Encryption;  // image/encryption.h
class KeyRing;
class PageStore;  // image/page_sink.h
class Writer;     ///< one open image file being written
class Reader;     ///< one open image file being read

/// How pages are compressed when they are written: by which filter of src/memory/filter. Empty: not at all.
struct Compression {
  std::string filter;
  int level = 0;
};

/// The bytes of an image file as they were written: deciphered, where it is encrypted. Reads may come from several
/// threads at once.
class FileBytes {
 public:
  virtual ~FileBytes() = default;
  virtual uint64_t size() const = 0;
  /// Fills the buffer, which lies inside of size(). False: the file became shorter meanwhile.
  virtual Result<bool> read(uint64_t offset, std::span<uint8_t> buffer) const = 0;
};

class Directory {
 public:
  /// Opens an existing directory. `parent` images are reached through its "parent" link.
  static Result<Directory> open(const std::string& path);
  /// The same for reading a checkpoint that may be encrypted: with the key that fits, its manifest is read and compared
  /// with the files that are there. An error says which keys are needed, or that one was given in vain.
  static Result<Directory> unlock(const std::string& path, std::shared_ptr<const KeyRing> keys);
  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }

  /// Of pages that are written from now on.
  void compress(Compression how) { compression_ = std::move(how); }
  const Compression& compression() const { return compression_; }

  /// Pages that are read from now on are given back to the file system once everybody who needs them has them
  /// (memory/consumed_pages.h).
  void consume_pages() { consumes_pages_ = true; }
  bool consumes_pages() const { return consumes_pages_; }

  /// Where pages that are written from now on go. Null: into the directory.
  void store_pages_in(std::shared_ptr<PageStore> store) { page_store_ = std::move(store); }
  const std::shared_ptr<PageStore>& page_store() const { return page_store_; }

  /// Of files that are written from now on, all but the inventory and statistics.
  Status encrypt(const KeyRing& recipients);
  /// Null: nothing is encrypted.
  const std::shared_ptr<const Encryption>& encryption() const { return encryption_; }

  /// Its parents are read with these keys: those that it is opened with by unlock(), or given here for one that is
  /// written.
  void read_parents_with(std::shared_ptr<const KeyRing> keys) { keys_ = std::move(keys); }
  /// Images that belong to these, opened with the same keys.
  Result<Directory> open_related(const std::string& path) const { return unlock(path, keys_); }

  /// The directory that holds `file`, a path relative to this one: "parent/parent/pages-1.img".
  Result<Directory> holding(std::string_view file) const;

  bool has(std::string_view file) const;
  /// Creates or truncates `file` and writes the magic of its kind (known from the name: image/names.h).
  Result<Writer> create(std::string_view file) const;
  Result<Reader> read(std::string_view file) const;
  /// Nothing where there is no such file.
  Result<std::optional<Reader>> find(std::string_view file) const;
  /// The same for a file whose name need not say what it is: then its magic does.
  Result<std::pair<const FileKind*, Reader>> identify(std::string_view file) const;
  /// The bytes of one, magic and all.
  Result<std::unique_ptr<FileBytes>> bytes_of(std::string_view file) const;
  /// All *.img files, sorted.
  Result<std::vector<std::string>> list() const;
  /// Start of a dump into this directory: removes inventory.img of an earlier one, so that a dump that dies half-way
  /// cannot be taken for a checkpoint, and then its other images, so that none can be mistaken for a part of this one:
  /// all of them, or those that are `concerned`.
  Status begin(const std::function<bool(std::string_view file)>& concerned = {}) const;
  /// Writes inventory.img under a temporary name, syncs nothing more than needed, renames.
  Status commit(const google::protobuf::Message& inventory) const;

 private:
  UniqueFd fd_;
  std::string path_;
  Compression compression_;
  bool consumes_pages_ = false;
  std::shared_ptr<PageStore> page_store_;
  std::shared_ptr<const Encryption> encryption_;
  std::shared_ptr<const KeyRing> keys_;  ///< for the parents
};

class Writer {
 public:
  Writer(UniqueFd fd, std::string name, const Encryption* encryption = nullptr);
  ~Writer();
  Writer(Writer&&) noexcept;
  Writer& operator=(Writer&&) noexcept;
  /// Appends one length-prefixed record. Buffered; finish() reports what the disk said.
  Status append(const google::protobuf::Message& record);
  /// Raw bytes after a record (a pipe's data, a ghost file's content).
  Status append_raw(ByteView bytes);
  /// Flushes. A Writer destroyed without it leaves a file that must not be used.
  Status finish();
  const std::string& name() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The longest record that is accepted: an address space of a million mappings fits.
constexpr uint64_t record_limit = 64 << 20;

class Reader {
 public:
  Reader(UniqueFd fd, std::string name, uint64_t size, uint64_t position);
  Reader(std::unique_ptr<FileBytes> bytes, std::string name, uint64_t position);
  /// The next record, or false at the end of the file. Errors name file, record, offset and, where the bytes are at
  /// fault, the field.
  Result<bool> next(google::protobuf::Message& record);
  /// All records that are left, parsed on all processors. The same errors.
  template <typename Message>
  Result<std::vector<const Message*>> rest(google::protobuf::Arena& arena) {
    std::vector<const Message*> messages;
    for (;;) {
      const auto piece = TRY(next_piece());
      if (piece.empty()) return messages;
      const size_t before = messages.size();
      messages.resize(before + piece.size());
      const auto parse = [&](size_t index) {
        auto* message = google::protobuf::Arena::CreateMessage<Message>(&arena);
        messages[before + index] = message;
        return parse_piece(piece[index], *message);
      };
      TRY(parallel_for(piece.size(), parse, records_worth_a_thread));
    }
  }
  /// Exactly `length` raw bytes.
  Result<Bytes> raw(uint64_t length);
  Status raw(std::span<uint8_t> buffer);
  /// Leaves out `length` raw bytes.
  Status skip(uint64_t length);
  /// A file that has exactly one record.
  Status single(google::protobuf::Message& record);
  const std::string& name() const { return name_; }
  uint64_t position() const { return position_; }
  uint64_t remaining() const { return size_ - position_; }
  /// "core-7.img, record 2 at offset 1234": the record read last, for errors about its content.
  std::string where() const;

 private:
  static constexpr size_t records_worth_a_thread = 512;
  struct Place {
    uint64_t index, offset;  ///< of the record in the file
    size_t begin, length;    ///< of its bytes in piece_
  };
  /// Reads records that follow into piece_, about as much as is worth threads; none: the end of the file.
  Result<std::vector<Place>> next_piece();
  Status parse_piece(const Place& place, google::protobuf::Message& record) const;
  Result<uint32_t> next_length();
  std::string where(uint64_t index, uint64_t offset) const;
  Status fetch(std::span<uint8_t> buffer);  ///< at position_, through the buffer
  std::unexpected<Error> reject(std::string cause) const;

  std::unique_ptr<FileBytes> bytes_;
  std::string name_;
  uint64_t size_ = 0;
  uint64_t position_ = 0;
  uint64_t record_offset_ = 0;
  uint64_t index_ = 0;  ///< records read
  Bytes buffer_;        ///< file content from buffer_offset_
  uint64_t buffer_offset_ = 0;
  Bytes piece_;
};

/// Parses one record. On failure the error's cause names the field (dotted path) that cannot be read or is missing.
/// Nothing is printed; nesting is limited.
Status parse_record(ByteView bytes, google::protobuf::Message& record, const std::string& where);

}  // namespace stasis::image
