// Encrypted directories: every image but the inventory and the statistics is sealed with a key of its own, which
// follows from the checkpoint's data key and the file's name. The data key is new for each dump, and lies in the
// inventory, sealed for those who may read. docs/image-format.md has the formats.
//
// So nothing can be exchanged between files or checkpoints, blocks have numbers, and the last block of a file knows
// that it is the last. Which files there must be is in manifest.img.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "encryption.pb.h"
#include "image/directory.h"
#include "image/keys.h"

namespace stasis::image {

/// ChaCha20-Poly1305 (RFC 8439) with one key for one file. `number` and `flags` must never occur twice together.
class FileCipher {
 public:
  static constexpr size_t overhead = 16;
  explicit FileCipher(Secret key) : key_(std::move(key)) {}
  /// `out` gets overhead bytes more than `in` has.
  void seal(uint64_t number, uint32_t flags, ByteView context, ByteView in, uint8_t* out) const;
  /// `out` gets overhead bytes less. False: it is not what was sealed with that key, number, flags and context.
  bool open(uint64_t number, uint32_t flags, ByteView context, ByteView in, uint8_t* out) const;
  /// The same without deciphering.
  bool is_authentic(uint64_t number, uint32_t flags, ByteView context, ByteView in) const;

 private:
  Secret key_;
};

using CheckpointId = std::array<uint8_t, 16>;

class Encryption {
 public:
  /// A new data key, for all public and shared keys of the ring.
  static Result<std::shared_ptr<const Encryption>> create(const KeyRing&);
  /// With the first key of the ring that fits.
  static Result<std::shared_ptr<Encryption>> open(const encryption_entry&, const KeyRing&, const std::string& where);

  Result<FileCipher> cipher_of(std::string_view file) const;
  const encryption_entry& entry() const { return entry_; }

  /// A file is being written: once, for its key must not seal two contents.
  Status begin_file(const std::string& file) const;
  std::vector<std::string> files_begun() const;

  // -- what the manifest says
  Status load_manifest(const Directory&, ByteView inventory_record);
  const google::protobuf::RepeatedPtrField<std::string>& files() const { return manifest_.files(); }
  bool is_parent_of(const Encryption& child) const;
  /// A parent's id; empty: there is none.
  const std::string& parent_id() const { return manifest_.parent_checkpoint_id(); }

 private:
  explicit Encryption(Secret data_key) : data_key_(std::move(data_key)) {}
  void set_id();

  Secret data_key_;
  CheckpointId id_{};
  encryption_entry entry_;
  manifest_entry manifest_;
  mutable std::mutex mutex_;
  mutable std::set<std::string> begun_;
};

/// manifest.img: what has been written so far, bound to the record that inventory.img will have.
Status write_manifest(const Directory&, ByteView inventory_record);

/// A sealed file being written: a header, then blocks.
class SealedOutput {
 public:
  static constexpr size_t block_size = 64 << 10;
  explicit SealedOutput(FileCipher cipher) : cipher_(std::move(cipher)) {}
  static Bytes header();
  /// The stored form of the next block: of block_size bytes, but for the last one, which may be empty.
  Bytes block(ByteView plain, bool is_last);

 private:
  FileCipher cipher_;
  uint64_t number_ = 0;
};

/// A file as it is, open for reading.
std::unique_ptr<FileBytes> plain_bytes(UniqueFd fd, uint64_t size, std::string name);
/// Opens a sealed file: its last block is deciphered, so that a file that was cut off is noticed at once.
Result<std::unique_ptr<FileBytes>> open_sealed(UniqueFd fd, uint64_t size, FileCipher cipher, const std::string& name);

}  // namespace stasis::image
