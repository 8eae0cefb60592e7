// Zstandard (RFC 8878): one frame for each block, without checksum and content size.
#include <zstd.h>

#include "memory/filter/filter.h"

namespace stasis::memory {
namespace {

class Zstd final : public Filter {
 public:
  explicit Zstd(int level) : level_(level) {}

  size_t bound(size_t size) const override { return ZSTD_compressBound(size); }

  Result<size_t> encode(const BlockPlace&, ByteView in, std::span<uint8_t> out) override {
    if (!compressing_) {
      compressing_.reset(ZSTD_createCCtx());
      TRY(checked(ZSTD_CCtx_setParameter(compressing_.get(), ZSTD_c_compressionLevel, level_), "compress pages"));
      TRY(checked(ZSTD_CCtx_setParameter(compressing_.get(), ZSTD_c_contentSizeFlag, 0), "compress pages"));
    }
    return checked(ZSTD_compress2(compressing_.get(), out.data(), out.size(), in.data(), in.size()), "compress pages");
  }

  Result<size_t> decode(const BlockPlace&, ByteView in, std::span<uint8_t> out) override {
    if (!decompressing_) decompressing_.reset(ZSTD_createDCtx());
    return checked(ZSTD_decompressDCtx(decompressing_.get(), out.data(), out.size(), in.data(), in.size()),
                   "decompress pages");
  }

 private:
  static Result<size_t> checked(size_t result, const char* operation) {
    if (ZSTD_isError(result)) return fail(Error::invalid(operation, ZSTD_getErrorName(result)));
    return result;
  }

  int level_;
  std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> compressing_{nullptr, ZSTD_freeCCtx};
  std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> decompressing_{nullptr, ZSTD_freeDCtx};
};

Result<std::unique_ptr<Filter>> make(const FilterContext& context) { return std::make_unique<Zstd>(context.level); }

}  // namespace

extern const FilterKind zstd_filter{
    .name = "zstd", .lowest_level = 1, .highest_level = 19, .usual_level = 1, .make = make};

}  // namespace stasis::memory
