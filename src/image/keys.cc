#include "image/keys.h"

#include <fcntl.h>
#include <sodium.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include <fmt/format.h>

#include "base/unique_fd.h"

namespace stasis::image {
namespace {

constexpr std::string_view identity_prefix = "stasis-identity:", shared_prefix = "stasis-key:",
                           recipient_prefix = "stasis-recipient:";
constexpr size_t longest_key_file = 4096;

static_assert(key_size == crypto_box_SECRETKEYBYTES);
static_assert(key_size == crypto_box_PUBLICKEYBYTES);
static_assert(key_size == crypto_secretbox_KEYBYTES);

Status start_sodium() {
  if (sodium_init() < 0) return fail(Error::internal("encrypt or decrypt", "libsodium cannot be used here"));
  return {};
}

Fingerprint digest(std::string_view what, ByteView key) {
  Fingerprint made;
  std::array<uint8_t, crypto_generichash_BYTES> whole;
  crypto_generichash(whole.data(), whole.size(), reinterpret_cast<const uint8_t*>(what.data()), what.size(), key.data(),
                     key.size());
  std::copy_n(whole.begin(), made.size(), made.begin());
  return made;
}

int value_of(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

/// The key behind the prefix, on a line of its own; lines of other kinds (comments) are passed over.
bool find_key(std::string_view text, std::string_view prefix, std::span<uint8_t, key_size> into) {
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    at = end + 1;
    if (!line.starts_with(prefix)) continue;
    line.remove_prefix(prefix.size());
    while (!line.empty() && (line.back() == ' ' || line.back() == '\r')) line.remove_suffix(1);
    if (line.size() != 2 * key_size) return false;
    for (size_t i = 0; i < key_size; ++i) {
      const int high = value_of(line[2 * i]), low = value_of(line[2 * i + 1]);
      if (high < 0 || low < 0) return false;
      into[i] = static_cast<uint8_t>(high << 4 | low);
    }
    return true;
  }
  return false;
}

/// A buffer for text that may have a secret in it.
class WipedText {
 public:
  ~WipedText() { sodium_memzero(bytes_.data(), bytes_.size()); }
  std::array<char, longest_key_file>& bytes() { return bytes_; }

 private:
  std::array<char, longest_key_file> bytes_{};
};

Result<std::string_view> read_file(const std::string& path, WipedText& text, bool is_secret) {
  const UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY));
  if (!file.valid()) return fail_errno("read the key", path);
  struct stat status{};
  if (fstat(file.get(), &status) < 0) return fail_errno("fstat", path);
  if (is_secret && S_ISREG(status.st_mode) && (status.st_mode & 077) != 0) {
    return fail(
        Error::conflict("read the key", fmt::format("others may read it (mode {:o})", status.st_mode & 07777), path)
            .advise("take their right away with `chmod 600`, or make a new key: this one may be known"));
  }
  size_t size = 0;
  while (size < longest_key_file) {
    const ssize_t got = read(file.get(), text.bytes().data() + size, longest_key_file - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("read the key", path);
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  return std::string_view(text.bytes().data(), size);
}

Result<Secret> read_secret(const std::string& path, std::string_view prefix, std::string_view kind) {
  TRY(start_sodium());
  WipedText text;
  const auto content = TRY(read_file(path, text, true));
  auto secret = TRY(Secret::make());
  if (find_key(content, prefix, secret.bytes())) return secret;
  return fail(Error::invalid("read the key", fmt::format("there is no {} in it", kind), path)
                  .advise("`stasis keygen` makes keys"));
}

Status write_key_file(const std::string& path, std::string_view comment, std::string_view prefix,
                      const Secret& secret) {
  const UniqueFd file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.valid()) return fail_errno("create the key file", path);
  WipedText text;
  char* at = text.bytes().data();
  const auto put = [&](std::string_view part) { at = std::copy(part.begin(), part.end(), at); };
  put(comment), put(prefix);
  sodium_bin2hex(at, 2 * key_size + 1, secret.bytes().data(), key_size);
  at += 2 * key_size;
  put("\n");
  const auto size = static_cast<size_t>(at - text.bytes().data());
  if (fchmod(file.get(), 0600) < 0 || write(file.get(), text.bytes().data(), size) != static_cast<ssize_t>(size))
    return fail_errno("write the key file", path);
  return {};
}

}  // namespace

Result<Secret> Secret::make() {
  TRY(start_sodium());
  // Guarded, locked, and not in core dumps. Without the right to lock that much it is still all the rest.
  auto* bytes = static_cast<uint8_t*>(sodium_malloc(key_size));
  if (bytes == nullptr) return fail(Error::system("keep a key", ENOMEM));
  Secret secret(bytes);
  // sodium_malloc gives pages of its own; a restored tree is forked from us, and has no business with them.
  const auto page = reinterpret_cast<uintptr_t>(bytes) / page_size * page_size;
  if (madvise(reinterpret_cast<void*>(page), page_size, MADV_DONTFORK) < 0) return fail_errno("madvise", "a key");
  std::memset(bytes, 0, key_size);
  return secret;
}

Result<Secret> Secret::random() {
  auto secret = TRY(make());
  randombytes_buf(secret.bytes().data(), key_size);
  return secret;
}

void Secret::Free::operator()(uint8_t* bytes) const { sodium_free(bytes); }

Fingerprint fingerprint_of(const PublicKey& key) { return digest("stasis recipient", key); }
Fingerprint fingerprint_of(const Secret& shared_key) { return digest("stasis shared key", shared_key.bytes()); }

std::string text_of(ByteView bytes) {
  std::string text;
  for (const uint8_t byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

Status KeyRing::add_identity(const std::string& path) {
  Identity identity{TRY(read_secret(path, identity_prefix, "identity")), {}};
  crypto_scalarmult_base(identity.public_key.data(), identity.secret.bytes().data());
  identities.push_back(std::move(identity));
  return {};
}

Status KeyRing::add_shared_key(const std::string& path) {
  shared_keys.push_back(TRY(read_secret(path, shared_prefix, "shared key")));
  return {};
}

Status KeyRing::add_recipient(const std::string& key_or_path) {
  TRY(start_sodium());
  WipedText text;
  const bool is_key = key_or_path.starts_with(recipient_prefix);
  const std::string_view content = is_key ? std::string_view(key_or_path) : TRY(read_file(key_or_path, text, false));
  PublicKey key;
  if (!find_key(content, recipient_prefix, key)) {
    return fail(
        Error::invalid("read the public key", fmt::format("there is no '{}…' in it", recipient_prefix), key_or_path)
            .advise("`stasis keygen` makes keys, and prints the public one"));
  }
  // A point of small order would seal for everybody (RFC 7748, section 6.1).
  std::array<uint8_t, key_size> shared, one{1};
  if (crypto_scalarmult(shared.data(), one.data(), key.data()) != 0)
    return fail(Error::invalid("read the public key", "it is no key of anybody", key_or_path));
  recipients.push_back(key);
  return {};
}

Result<std::string> make_identity_file(const std::string& path) {
  const auto secret = TRY(Secret::random());
  PublicKey key;
  crypto_scalarmult_base(key.data(), secret.bytes().data());
  const std::string recipient = std::string(recipient_prefix) + text_of(key);
  TRY(write_key_file(path, "# the public key:\n" + recipient + "\n", identity_prefix, secret));
  return recipient;
}

Status make_shared_key_file(const std::string& path) {
  return write_key_file(path, "", shared_prefix, TRY(Secret::random()));
}

}  // namespace stasis::image
