// Keys of encrypted images: how they are made, kept in files and in memory.
//
// Secrets lie in memory of their own that is locked, left out of core dumps and of children, and wiped in the end. They
// come from files only, never from arguments.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/types.h"

namespace stasis::image {

inline constexpr size_t key_size = 32;

class Secret {
 public:
  /// All zeros.
  static Result<Secret> make();
  static Result<Secret> random();
  std::span<uint8_t, key_size> bytes() { return std::span<uint8_t, key_size>(bytes_.get(), key_size); }
  std::span<const uint8_t, key_size> bytes() const {
    return std::span<const uint8_t, key_size>(bytes_.get(), key_size);
  }

 private:
  struct Free {
    void operator()(uint8_t*) const;
  };
  explicit Secret(uint8_t* bytes) : bytes_(bytes) {}
  std::unique_ptr<uint8_t, Free> bytes_;
};

using PublicKey = std::array<uint8_t, key_size>;
/// What a key is called in images and messages.
using Fingerprint = std::array<uint8_t, 8>;
Fingerprint fingerprint_of(const PublicKey&);
/// A shared key is known by a digest of it.
Fingerprint fingerprint_of(const Secret& shared_key);
std::string text_of(ByteView);  ///< in hexadecimal

/// The keys that were given on the command line.
class KeyRing {
 public:
  struct Identity {
    Secret secret;
    PublicKey public_key;
  };
  /// Each is refused if others than its owner may read the file.
  Status add_identity(const std::string& path);
  Status add_shared_key(const std::string& path);
  /// The text of a public key, or the path of a file that has it.
  Status add_recipient(const std::string& key_or_path);

  bool empty() const { return identities.empty() && shared_keys.empty() && recipients.empty(); }

  std::vector<Identity> identities;
  std::vector<Secret> shared_keys;
  std::vector<PublicKey> recipients;
};

/// Writes a new identity, or a new shared key, to a file of mode 0600 that must not exist yet. The text of the
/// identity's public key comes back.
Result<std::string> make_identity_file(const std::string& path);
Status make_shared_key_file(const std::string& path);

}  // namespace stasis::image
