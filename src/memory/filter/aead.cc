// ChaCha20-Poly1305 (RFC 8439) with the key of the pages file (image/encryption.h): each block is bound to its number,
// to the pages it holds and to how many they are.
#include "image/encryption.h"
#include "memory/filter/filter.h"

namespace stasis::memory {
namespace {

class Aead final : public Filter {
 public:
  explicit Aead(image::FileCipher cipher) : cipher_(std::move(cipher)) {}

  size_t bound(size_t size) const override { return size + image::FileCipher::overhead; }

  Result<size_t> encode(const BlockPlace& place, ByteView in, std::span<uint8_t> out) override {
    cipher_.seal(place.number, 0, context(place), in, out.data());
    return in.size() + image::FileCipher::overhead;
  }

  Result<size_t> decode(const BlockPlace& place, ByteView in, std::span<uint8_t> out) override {
    if (in.size() < image::FileCipher::overhead || in.size() - image::FileCipher::overhead > out.size() ||
        !cipher_.open(place.number, 0, context(place), in, out.data())) {
      return not_authentic();
    }
    return in.size() - image::FileCipher::overhead;
  }

  Status check(const BlockPlace& place, ByteView in) override {
    if (cipher_.is_authentic(place.number, 0, context(place), in)) return {};
    return not_authentic();
  }

 private:
  static std::unexpected<Error> not_authentic() {
    return fail(Error::invalid("decrypt pages", "they are not what was written: changed, cut off or exchanged"));
  }

  static Bytes context(const BlockPlace& place) {
    const uint64_t words[2] = {place.first_page, place.pages};
    return bytes_of(words);
  }

  image::FileCipher cipher_;
};

Result<std::unique_ptr<Filter>> make(const FilterContext& context) {
  if (context.directory.encryption() == nullptr)
    return fail(Error::invalid("decrypt pages", "the inventory has no key for them", context.file));
  return std::make_unique<Aead>(TRY(context.directory.encryption()->cipher_of(context.file)));
}

}  // namespace

extern const FilterKind aead_filter{.name = "chacha20-poly1305", .compresses = false, .make = make};

}  // namespace stasis::memory
