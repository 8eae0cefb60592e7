// How fast pages go through the filters on one core, beside the libraries alone on the same blocks, in both directions:
// at least four fifths of their speed must be left. filters [MiB] [rounds]
//
// Both take turns, and the best of all rounds counts for each: what else the machine does slows down some of them. For
// comparison, without a budget: OpenSSL's ChaCha20-Poly1305, where the filter's is libsodium's (its keys stay in memory
// that is locked and wiped; OpenSSL's contexts do not).
#include <lz4.h>
#include <openssl/evp.h>
#include <sodium.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>

#include <fmt/format.h>

#include "image/encryption.h"
#include "memory/block_file.h"
#include "memory/filter/filter.h"

namespace {

using namespace stasis;
using memory::block_size;
using Clock = std::chrono::steady_clock;

[[noreturn]] void give_up(const std::string& why) {
  fmt::print(stderr, "{}\n", why);
  std::exit(1);
}

template <typename T>
T must(Result<T> result) {
  if (!result) give_up(result.error().message());
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

/// What memory looks like: text, tables of small numbers and pointers, and noise, page by page.
Bytes sample(size_t size) {
  static constexpr std::string_view words = "the application keeps tables of names and of values that refer to names ";
  Bytes bytes(size);
  uint64_t state = 88172645463325252ul;
  const auto next = [&] { return state ^= state << 13, state ^= state >> 7, state ^= state << 17; };
  for (size_t page = 0; page < size / page_size; ++page) {
    auto* at = bytes.data() + page * page_size;
    for (size_t i = 0; i < page_size; i += 8) {
      uint64_t word = next();
      if (page % 4 < 2) word = i % 32 == 0 ? 0x7f0000000000 + (word & 0xffff8) : word & 0xff;
      if (page % 4 == 2) std::memcpy(&word, words.data() + word % (words.size() - 8), 8);
      std::memcpy(at + i, &word, sizeof word);
    }
  }
  return bytes;
}

/// A block, the number it has, and the room that it gets; how many bytes of it were used.
using Step = std::function<size_t(ByteView in, uint64_t number, std::span<uint8_t> out)>;

struct Contestant {
  Step encode, decode;
};

/// Blocks one after the other, as they are stored in memory.
struct Blocks {
  Bytes bytes;
  std::vector<size_t> lengths;
};

struct Times {
  double encode = 1e9, decode = 1e9;  ///< seconds, the best
  Blocks encoded;
};

double seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

void run(const Contestant& one, ByteView plain, Bytes& room, Times& result) {
  auto& [bytes, lengths] = result.encoded;
  const size_t blocks = plain.size() / block_size, bound = 2 * block_size;
  bytes.resize(blocks * bound);
  lengths.resize(blocks);
  auto start = Clock::now();
  for (size_t i = 0; i < blocks; ++i)
    lengths[i] = one.encode(plain.subspan(i * block_size, block_size), i, std::span(bytes).subspan(i * bound, bound));
  result.encode = std::min(result.encode, seconds(start));
  room.resize(plain.size());
  start = Clock::now();
  for (size_t i = 0; i < blocks; ++i) {
    const size_t length = one.decode(ByteView(bytes).subspan(i * bound, lengths[i]), i,
                                     std::span(room).subspan(i * block_size, block_size));
    if (length != block_size) give_up("a block does not come back");
  }
  result.decode = std::min(result.decode, seconds(start));
  if (!std::ranges::equal(room, plain)) give_up("something else comes back");
}

// ---- ours

Contestant filters(const image::Directory& directory) {
  const auto kinds = memory::filters_of(directory);
  auto pipeline = std::make_shared<memory::Pipeline>(
      must(memory::Pipeline::make(kinds, {directory, "pages-1.img", directory.compression().level}, block_size)));
  const auto place = [](uint64_t number) {
    return memory::BlockPlace{number, number * memory::block_pages, memory::block_pages};
  };
  return {[=](ByteView in, uint64_t number, std::span<uint8_t> out) {
            return must(pipeline->encode(place(number), in, out.first(pipeline->bound(in.size()))));
          },
          [=](ByteView in, uint64_t number, std::span<uint8_t> out) {
            must(pipeline->decode(place(number), in, out));
            return out.size();
          }};
}

// ---- theirs

Contestant zstd(int level) {
  std::shared_ptr<ZSTD_CCtx> into(ZSTD_createCCtx(), ZSTD_freeCCtx);
  std::shared_ptr<ZSTD_DCtx> from(ZSTD_createDCtx(), ZSTD_freeDCtx);
  ZSTD_CCtx_setParameter(into.get(), ZSTD_c_compressionLevel, level);
  return {[=](ByteView in, uint64_t, std::span<uint8_t> out) {
            return ZSTD_compress2(into.get(), out.data(), out.size(), in.data(), in.size());
          },
          [=](ByteView in, uint64_t, std::span<uint8_t> out) {
            return ZSTD_decompressDCtx(from.get(), out.data(), out.size(), in.data(), in.size());
          }};
}

Contestant lz4() {
  const auto chars = [](auto* bytes) { return reinterpret_cast<const char*>(bytes); };
  return {[=](ByteView in, uint64_t, std::span<uint8_t> out) {
            return static_cast<size_t>(LZ4_compress_default(chars(in.data()), reinterpret_cast<char*>(out.data()),
                                                            static_cast<int>(in.size()), static_cast<int>(out.size())));
          },
          [=](ByteView in, uint64_t, std::span<uint8_t> out) {
            return static_cast<size_t>(LZ4_decompress_safe(chars(in.data()), reinterpret_cast<char*>(out.data()),
                                                           static_cast<int>(in.size()), static_cast<int>(out.size())));
          }};
}

using Key = std::array<uint8_t, crypto_aead_chacha20poly1305_ietf_KEYBYTES>;
using Nonce = std::array<uint8_t, crypto_aead_chacha20poly1305_ietf_NPUBBYTES>;
constexpr size_t tag_size = crypto_aead_chacha20poly1305_ietf_ABYTES;

Nonce nonce_of(uint64_t number) {
  Nonce nonce{};
  std::memcpy(nonce.data(), &number, sizeof number);
  return nonce;
}

Contestant sodium() {
  return {[key = Key{1}](ByteView in, uint64_t number, std::span<uint8_t> out) {
            unsigned long long length = 0;
            crypto_aead_chacha20poly1305_ietf_encrypt(out.data(), &length, in.data(), in.size(), nullptr, 0, nullptr,
                                                      nonce_of(number).data(), key.data());
            return static_cast<size_t>(length);
          },
          [key = Key{1}](ByteView in, uint64_t number, std::span<uint8_t> out) {
            unsigned long long length = 0;
            const int opened = crypto_aead_chacha20poly1305_ietf_decrypt(
                out.data(), &length, nullptr, in.data(), in.size(), nullptr, 0, nonce_of(number).data(), key.data());
            return opened == 0 ? static_cast<size_t>(length) : 0;
          }};
}

Contestant openssl() {
  std::shared_ptr<EVP_CIPHER_CTX> context(EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_free);
  return {[=, key = Key{1}](ByteView in, uint64_t number, std::span<uint8_t> out) {
            int length = 0;
            EVP_EncryptInit_ex(context.get(), EVP_chacha20_poly1305(), nullptr, key.data(), nonce_of(number).data());
            EVP_EncryptUpdate(context.get(), out.data(), &length, in.data(), static_cast<int>(in.size()));
            EVP_EncryptFinal_ex(context.get(), nullptr, &length);
            EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_GET_TAG, tag_size, out.data() + in.size());
            return in.size() + tag_size;
          },
          [=, key = Key{1}](ByteView in, uint64_t number, std::span<uint8_t> out) {
            int length = 0;
            auto* tag = const_cast<uint8_t*>(in.data() + in.size() - tag_size);
            EVP_DecryptInit_ex(context.get(), EVP_chacha20_poly1305(), nullptr, key.data(), nonce_of(number).data());
            EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_SET_TAG, tag_size, tag);
            EVP_DecryptUpdate(context.get(), out.data(), &length, in.data(), static_cast<int>(in.size() - tag_size));
            const size_t size = static_cast<size_t>(length);
            return EVP_DecryptFinal_ex(context.get(), nullptr, &length) == 1 ? size : 0;
          }};
}

/// What goes through a compressor first: the cipher sees less.
Contestant after(Contestant first, Contestant second) {
  auto between = std::make_shared<Bytes>(2 * block_size);
  return {[=](ByteView in, uint64_t number, std::span<uint8_t> out) {
            return second.encode(ByteView(*between).first(first.encode(in, number, *between)), number, out);
          },
          [=](ByteView in, uint64_t number, std::span<uint8_t> out) {
            return first.decode(ByteView(*between).first(second.decode(in, number, *between)), number, out);
          }};
}

struct Match {
  std::string compression;
  bool encrypted;
  Contestant library;
  std::string name;
  bool has_budget = true;
};

void print(const Match& match, const std::string& direction, double ours, double theirs, size_t size) {
  constexpr double budget = 0.8;
  const double mib = static_cast<double>(size) / (1 << 20), ratio = theirs / ours;
  const std::string filters =
      fmt::format("{}{}{}", match.compression, match.compression.empty() || !match.encrypted ? "" : " + ",
                  match.encrypted ? "chacha20-poly1305" : "");
  const std::string verdict =
      !match.has_budget ? "" : fmt::format("{:7.2f} {}", budget, ratio >= budget ? "met" : "MISSED");
  fmt::print("{:26} {:7} {:9.0f} {:9.0f} {:7.2f} {:15} {}\n", filters, direction, mib / ours, mib / theirs, ratio,
             verdict, match.name);
}

}  // namespace

int main(int argc, char** argv) {
  const size_t size = (argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 8) << 20;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 9;
  if (size == 0 || rounds <= 0 || sodium_init() < 0) return 2;
  std::string where = std::filesystem::temp_directory_path() / "stasis-bench-XXXXXX";
  if (mkdtemp(where.data()) == nullptr) give_up("no directory can be made");
  image::KeyRing ring;
  must(image::make_shared_key_file(where + "/key"));
  must(ring.add_shared_key(where + "/key"));

  const Bytes plain = sample(size);
  const std::vector<Match> matches{
      {"zstd:1", false, zstd(1), "libzstd"},
      {"zstd:3", false, zstd(3), "libzstd"},
      {"lz4", false, lz4(), "liblz4"},
      {"", true, sodium(), "libsodium"},
      {"", true, openssl(), "OpenSSL", false},
      {"zstd:1", true, after(zstd(1), sodium()), "libzstd, libsodium"},
      {"lz4", true, after(lz4(), sodium()), "liblz4, libsodium"},
  };
  fmt::print("{:26} {:7} {:>9} {:>9} {:>7} {:>7}   MiB/s of one core, best of {}\n", "filters", "", "ours", "library",
             "ratio", "budget", rounds);
  for (const Match& match : matches) {
    auto directory = must(image::Directory::open(where));
    if (!match.compression.empty()) directory.compress(must(memory::parse_compression(match.compression)));
    if (match.encrypted) must(directory.encrypt(ring));
    const Contestant us = filters(directory);
    Times ours, theirs;
    Bytes room;
    for (int round = 0; round < rounds; ++round) {
      run(us, plain, room, ours);
      run(match.library, plain, room, theirs);
    }
    print(match, "encode", ours.encode, theirs.encode, size);
    print(match, "decode", ours.decode, theirs.decode, size);
  }
  std::filesystem::remove_all(where);
}
