#include "image/encryption.h"

#include <sodium.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include <fmt/format.h>

#include "image/names.h"
#include "inventory.pb.h"

namespace stasis::image {
namespace {

constexpr uint32_t version = 1;
constexpr std::string_view manifest_file = "manifest.img";

static_assert(FileCipher::overhead == crypto_aead_chacha20poly1305_ietf_ABYTES);
static_assert(key_size == crypto_aead_chacha20poly1305_ietf_KEYBYTES);

std::array<uint8_t, crypto_aead_chacha20poly1305_ietf_NPUBBYTES> nonce(uint64_t number, uint32_t flags) {
  std::array<uint8_t, crypto_aead_chacha20poly1305_ietf_NPUBBYTES> made;
  std::memcpy(made.data(), &number, sizeof number);
  std::memcpy(made.data() + sizeof number, &flags, sizeof flags);
  return made;
}

const uint8_t* bytes_in(std::string_view text) { return reinterpret_cast<const uint8_t*>(text.data()); }

/// BLAKE2b as a function with a key: what it gives for one text says nothing about what it gives for another.
void derive(const Secret& key, std::string_view what, std::span<uint8_t> into) {
  crypto_generichash(into.data(), into.size(), bytes_in(what), what.size(), key.bytes().data(), key.bytes().size());
}

std::string digest_of(ByteView bytes) {
  std::string digest(crypto_generichash_BYTES, '\0');
  crypto_generichash(reinterpret_cast<uint8_t*>(digest.data()), digest.size(), bytes.data(), bytes.size(), nullptr, 0);
  return digest;
}

std::string bytes_text(ByteView bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

ByteView view(const std::string& text) { return {bytes_in(text), text.size()}; }

std::unexpected<Error> not_authentic(std::string where) {
  return fail(Error::invalid("read an encrypted image", "it is not what was written: changed, cut off or exchanged",
                             std::move(where)));
}

bool open_sealed_key(const KeyRing::Identity& identity, const std::string& sealed, Secret& data_key) {
  return sealed.size() == crypto_box_SEALBYTES + key_size &&
         crypto_box_seal_open(data_key.bytes().data(), bytes_in(sealed), sealed.size(), identity.public_key.data(),
                              identity.secret.bytes().data()) == 0;
}

bool open_shared_key(const Secret& shared, const std::string& sealed, Secret& data_key) {
  constexpr size_t nonce_size = crypto_secretbox_NONCEBYTES;
  return sealed.size() == nonce_size + crypto_secretbox_MACBYTES + key_size &&
         crypto_secretbox_open_easy(data_key.bytes().data(), bytes_in(sealed) + nonce_size, sealed.size() - nonce_size,
                                    bytes_in(sealed), shared.bytes().data()) == 0;
}

/// "a recipient (0123456789abcdef) or a key file (…)".
std::string holders(const encryption_entry& entry) {
  std::string text;
  for (const auto& key : entry.keys()) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", key.shared() ? "the key file" : "the identity",
                        text_of(view(key.holder())));
  }
  return text;
}

}  // namespace

void FileCipher::seal(uint64_t number, uint32_t flags, ByteView context, ByteView in, uint8_t* out) const {
  unsigned long long length = 0;
  crypto_aead_chacha20poly1305_ietf_encrypt(out, &length, in.data(), in.size(), context.data(), context.size(), nullptr,
                                            nonce(number, flags).data(), key_.bytes().data());
}

bool FileCipher::open(uint64_t number, uint32_t flags, ByteView context, ByteView in, uint8_t* out) const {
  return in.size() >= overhead &&
         crypto_aead_chacha20poly1305_ietf_decrypt_detached(
             out, nullptr, in.data(), in.size() - overhead, in.data() + in.size() - overhead, context.data(),
             context.size(), nonce(number, flags).data(), key_.bytes().data()) == 0;
}

bool FileCipher::is_authentic(uint64_t number, uint32_t flags, ByteView context, ByteView in) const {
  return open(number, flags, context, in, nullptr);
}

Result<std::shared_ptr<const Encryption>> Encryption::create(const KeyRing& ring) {
  if (ring.recipients.empty() && ring.shared_keys.empty()) {
    return fail(Error::invalid("encrypt the images", "nobody could read them: there is neither recipient nor key file")
                    .advise("name one with --recipient or --key-file"));
  }
  std::shared_ptr<Encryption> made(new Encryption(TRY(Secret::random())));
  made->set_id();
  made->entry_.set_version(version);
  made->entry_.set_checkpoint_id(bytes_text(made->id_));
  for (const PublicKey& recipient : ring.recipients) {
    std::string sealed(crypto_box_SEALBYTES + key_size, '\0');
    if (crypto_box_seal(reinterpret_cast<uint8_t*>(sealed.data()), made->data_key_.bytes().data(), key_size,
                        recipient.data()) != 0)
      return fail(Error::invalid("encrypt the images", "a recipient's key is no key of anybody"));
    auto& key = *made->entry_.add_keys();
    key.set_holder(bytes_text(fingerprint_of(recipient)));
    key.set_sealed_data_key(std::move(sealed));
  }
  for (const Secret& shared : ring.shared_keys) {
    constexpr size_t nonce_size = crypto_secretbox_NONCEBYTES;
    std::string sealed(nonce_size + crypto_secretbox_MACBYTES + key_size, '\0');
    auto* bytes = reinterpret_cast<uint8_t*>(sealed.data());
    randombytes_buf(bytes, nonce_size);
    crypto_secretbox_easy(bytes + nonce_size, made->data_key_.bytes().data(), key_size, bytes, shared.bytes().data());
    auto& key = *made->entry_.add_keys();
    key.set_holder(bytes_text(fingerprint_of(shared)));
    key.set_sealed_data_key(std::move(sealed));
    key.set_shared(true);
  }
  return made;
}

Result<std::shared_ptr<Encryption>> Encryption::open(const encryption_entry& entry, const KeyRing& ring,
                                                     const std::string& where) {
  if (entry.version() != version)
    return fail(Error::unsupported(
        "read encrypted images",
        fmt::format("they are encrypted in version {}, but only {} can be read", entry.version(), version), where));
  const auto advice = [] { return "name the file with --identity or --key-file"; };
  if (ring.identities.empty() && ring.shared_keys.empty())
    return fail(Error::unsupported("read encrypted images", "they can only be read with " + holders(entry), where)
                    .advise(advice()));
  std::shared_ptr<Encryption> opened(new Encryption(TRY(Secret::make())));
  const bool fits = std::ranges::any_of(entry.keys(), [&](const encryption_key_entry& key) {
    const auto& sealed = key.sealed_data_key();
    if (key.shared())
      return std::ranges::any_of(
          ring.shared_keys, [&](const Secret& shared) { return open_shared_key(shared, sealed, opened->data_key_); });
    return std::ranges::any_of(ring.identities, [&](const KeyRing::Identity& identity) {
      return open_sealed_key(identity, sealed, opened->data_key_);
    });
  });
  if (!fits)
    return fail(Error::conflict("read encrypted images",
                                "no key that was given fits: they can only be read with " + holders(entry), where)
                    .advise(advice()));
  opened->set_id();
  if (entry.checkpoint_id() != bytes_text(opened->id_))
    return not_authentic(where + ", field encryption.checkpoint_id");
  opened->entry_ = entry;
  return opened;
}

bool Encryption::is_parent_of(const Encryption& child) const { return child.parent_id() == bytes_text(id_); }

void Encryption::set_id() { derive(data_key_, "stasis checkpoint", id_); }

Result<FileCipher> Encryption::cipher_of(std::string_view file) const {
  auto key = TRY(Secret::make());
  derive(data_key_, "stasis file " + std::string(file), key.bytes());
  return FileCipher(std::move(key));
}

Status Encryption::begin_file(const std::string& file) const {
  const std::lock_guard lock(mutex_);
  if (begun_.insert(file).second) return {};
  return fail(Error::internal("encrypt " + file, "it would be written twice with one key"));
}

std::vector<std::string> Encryption::files_begun() const {
  const std::lock_guard lock(mutex_);
  return {begun_.begin(), begun_.end()};
}

Status Encryption::load_manifest(const Directory& directory, ByteView inventory_record) {
  auto reader = TRY(directory.read(manifest_file));
  TRY(reader.single(manifest_));
  if (manifest_.inventory_digest() != digest_of(inventory_record)) return not_authentic("inventory.img");
  for (const std::string& file : manifest_.files()) {
    if (!parse_name(file))
      return fail(
          Error::invalid("read encrypted images", "field files: no name of an image", std::string(manifest_file)));
    if (!directory.has(file))
      return fail(Error::invalid("read encrypted images", "it is a part of the checkpoint, but missing", file));
  }
  return {};
}

namespace {

/// The id of the checkpoint that "parent" leads to; nothing: there is none.
Result<std::optional<std::string>> id_of_parent(const Directory& directory) {
  if (!directory.has("parent")) return std::nullopt;
  const auto parent = TRY(Directory::open(directory.path() + "/parent"));
  auto reader = TRY(parent.read("inventory.img"));
  inventory_entry inventory;
  TRY(reader.single(inventory));
  if (inventory.has_encryption()) return inventory.encryption().checkpoint_id();
  return fail(Error::conflict("encrypt the images",
                              "the parent images are not encrypted: nobody could tell whether they were changed",
                              directory.path() + "/parent")
                  .advise("encrypt all images of a chain"));
}

}  // namespace

Status write_manifest(const Directory& directory, ByteView inventory_record) {
  manifest_entry manifest;
  manifest.set_inventory_digest(digest_of(inventory_record));
  for (const std::string& file : directory.encryption()->files_begun()) manifest.add_files(file);
  if (const auto parent = TRY(id_of_parent(directory))) manifest.set_parent_checkpoint_id(*parent);
  auto writer = TRY(directory.create(manifest_file));
  TRY(writer.append(manifest));
  return writer.finish();
}

// ---- sealed files

namespace {

constexpr uint32_t sealed_magic = 0x45535453;  // "STSE"
constexpr uint32_t is_last = 1;                ///< flag of the last block of a file
constexpr size_t stored_block = SealedOutput::block_size + FileCipher::overhead;

class SealedBytes final : public FileBytes {
 public:
  SealedBytes(std::unique_ptr<FileBytes> sealed, FileCipher cipher, std::string name, uint64_t blocks, uint64_t size)
      : sealed_(std::move(sealed)), cipher_(std::move(cipher)), name_(std::move(name)), blocks_(blocks), size_(size) {}

  uint64_t size() const override { return size_; }

  Result<bool> read(uint64_t offset, std::span<uint8_t> buffer) const override {
    const std::lock_guard lock(mutex_);
    while (!buffer.empty()) {
      if (!TRY(decipher(offset / SealedOutput::block_size))) return false;
      const size_t skip = offset % SealedOutput::block_size;
      const size_t count = std::min(buffer.size(), block_.size() - skip);
      std::memcpy(buffer.data(), block_.data() + skip, count);
      buffer = buffer.subspan(count);
      offset += count;
    }
    return true;
  }

  Result<bool> decipher_last() const { return decipher(blocks_ - 1); }

 private:
  /// Into block_.
  Result<bool> decipher(uint64_t number) const {
    if (known_ == number) return true;
    known_ = UINT64_MAX;
    const bool last = number + 1 == blocks_;
    block_.resize(last ? size_ - number * SealedOutput::block_size : SealedOutput::block_size);
    stored_.resize(block_.size() + FileCipher::overhead);
    const Bytes header = SealedOutput::header();
    if (!TRY(sealed_->read(header.size() + number * stored_block, stored_))) return false;
    // An empty vector has no address, and a cipher without one does not decipher: that is the same for no bytes.
    if (!cipher_.open(number, last ? is_last : 0, header, stored_, block_.data()))
      return not_authentic(fmt::format("{}, block {}", name_, number));
    known_ = number;
    return true;
  }

  std::unique_ptr<FileBytes> sealed_;
  FileCipher cipher_;
  std::string name_;
  uint64_t blocks_, size_;
  mutable std::mutex mutex_;
  mutable Bytes stored_, block_;
  mutable uint64_t known_ = UINT64_MAX;  ///< the block in block_
};

}  // namespace

Bytes SealedOutput::header() {
  const uint32_t words[4] = {sealed_magic, version, block_size, 0};
  return bytes_of(words);
}

Bytes SealedOutput::block(ByteView plain, bool last) {
  Bytes sealed(plain.size() + FileCipher::overhead);
  cipher_.seal(number_++, last ? is_last : 0, header(), plain, sealed.data());
  return sealed;
}

Result<std::unique_ptr<FileBytes>> open_sealed(UniqueFd fd, uint64_t size, FileCipher cipher, const std::string& name) {
  const Bytes expected = SealedOutput::header();
  Bytes found(expected.size());
  auto sealed = plain_bytes(std::move(fd), size, name);
  if (size < found.size() || !TRY(sealed->read(0, found)) || found != expected)
    return fail(Error::invalid("read an encrypted image", "it has not the header of one", name));
  const uint64_t body = size - expected.size();
  const uint64_t blocks = std::max<uint64_t>(1, (body + stored_block - 1) / stored_block);
  if (body < blocks * FileCipher::overhead || (body - 1) % stored_block + 1 < FileCipher::overhead)
    return not_authentic(name);
  auto bytes = std::make_unique<SealedBytes>(std::move(sealed), std::move(cipher), name, blocks,
                                             body - blocks * FileCipher::overhead);
  if (!TRY(bytes->decipher_last())) return not_authentic(name);
  return bytes;
}

}  // namespace stasis::image
