// LZ4: one block of the LZ4 block format for each block of pages. A level above 1 takes longer and finds more (LZ4 HC);
// what comes out is read in the same way.
#include <lz4.h>
#include <lz4hc.h>

#include "memory/filter/filter.h"

namespace stasis::memory {
namespace {

class Lz4 final : public Filter {
 public:
  explicit Lz4(int level) : level_(level) {
    const int size = level_ > 1 ? LZ4_sizeofStateHC() : LZ4_sizeofState();
    state_ = std::make_unique_for_overwrite<uint64_t[]>((static_cast<size_t>(size) + 7) / 8);
  }

  size_t bound(size_t size) const override { return static_cast<size_t>(LZ4_compressBound(static_cast<int>(size))); }

  Result<size_t> encode(const BlockPlace&, ByteView in, std::span<uint8_t> out) override {
    const auto* from = reinterpret_cast<const char*>(in.data());
    auto* to = reinterpret_cast<char*>(out.data());
    const int size = static_cast<int>(in.size()), room = static_cast<int>(out.size());
    const int length = level_ > 1 ? LZ4_compress_HC_extStateHC(state_.get(), from, to, size, room, level_)
                                  : LZ4_compress_fast_extState(state_.get(), from, to, size, room, 1);
    if (length > 0) return static_cast<size_t>(length);
    return fail(Error::internal("compress pages", "lz4 finds no room in its own bound"));
  }

  Result<size_t> decode(const BlockPlace&, ByteView in, std::span<uint8_t> out) override {
    const int length =
        LZ4_decompress_safe(reinterpret_cast<const char*>(in.data()), reinterpret_cast<char*>(out.data()),
                            static_cast<int>(in.size()), static_cast<int>(out.size()));
    if (length >= 0) return static_cast<size_t>(length);
    return fail(Error::invalid("decompress pages", "it is no LZ4 block of that size"));
  }

 private:
  int level_;
  std::unique_ptr<uint64_t[]> state_;  // for its alignment
};

Result<std::unique_ptr<Filter>> make(const FilterContext& context) { return std::make_unique<Lz4>(context.level); }

}  // namespace

extern const FilterKind lz4_filter{
    .name = "lz4", .lowest_level = 1, .highest_level = LZ4HC_CLEVEL_MAX, .usual_level = 1, .make = make};

}  // namespace stasis::memory
