#include <cstring>

#include <fmt/format.h>

#include "memory/filter/filter.h"

namespace stasis::memory {

Result<Pipeline> Pipeline::make(std::span<const FilterKind* const> kinds, const FilterContext& context,
                                size_t block_size) {
  Pipeline pipeline;
  for (const FilterKind* kind : kinds) {
    auto& place = kind->compresses ? pipeline.compressor_ : pipeline.sealer_;
    if (place || (kind->compresses && pipeline.sealer_)) {
      return fail(Error::unsupported("prepare the page filters", fmt::format("'{}' is out of order", kind->name),
                                     context.file));
    }
    place = TRY(kind->make(context));
  }
  if (pipeline.compressor_) pipeline.between_.resize(pipeline.compressor_->bound(block_size));
  return pipeline;
}

size_t Pipeline::bound(size_t size) const {
  if (compressor_) size = compressor_->bound(size);
  return sealer_ ? sealer_->bound(size) : size;
}

Result<size_t> Pipeline::encode(const BlockPlace& place, ByteView block, std::span<uint8_t> out) {
  ByteView bytes = block;
  if (compressor_) {
    const std::span<uint8_t> room = sealer_ ? std::span(between_) : out;
    const size_t length = TRY(compressor_->encode(place, block, room));
    if (length < block.size()) bytes = room.first(length);
  }
  if (sealer_) return sealer_->encode(place, bytes, out);
  if (bytes.data() != out.data()) std::memcpy(out.data(), bytes.data(), bytes.size());
  return bytes.size();
}

Status Pipeline::decode(const BlockPlace& place, ByteView stored, std::span<uint8_t> block) {
  ByteView bytes = stored;
  if (sealer_) {
    const bool is_plain = stored.size() == sealer_->bound(block.size());
    const std::span<uint8_t> room = is_plain ? block : std::span(between_);
    bytes = room.first(TRY(sealer_->decode(place, stored, room)));
  }
  if (bytes.size() == block.size()) {
    if (bytes.data() != block.data()) std::memcpy(block.data(), bytes.data(), bytes.size());
    return {};
  }
  const size_t length = compressor_ ? TRY(compressor_->decode(place, bytes, block)) : bytes.size();
  if (length == block.size()) return {};
  return fail(
      Error::invalid("decode pages", fmt::format("{} bytes came out of it instead of {}", length, block.size())));
}

}  // namespace stasis::memory
