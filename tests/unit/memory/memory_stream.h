// A stream whose other side has said everything in advance.
#pragma once

#include <algorithm>

#include "memory/page_protocol.h"
#include "memory/transfer_stream.h"

namespace stasis::memory {

class MemoryStream final : public Stream {
 public:
  /// Hands out at most `piece` bytes at once.
  explicit MemoryStream(Bytes input, size_t piece = SIZE_MAX)
      : Stream("the other side"), input_(std::move(input)), piece_(piece) {}

  using Stream::write;
  Status write(std::span<const iovec> parts) override {
    for (const iovec& part : parts) {
      const auto* bytes = static_cast<const uint8_t*>(part.iov_base);
      answers.insert(answers.end(), bytes, bytes + part.iov_len);
    }
    return {};
  }
  Bytes answers;

 protected:
  Result<size_t> read_some(std::span<uint8_t> buffer) override {
    const size_t got = std::min({buffer.size(), input_.size() - next_, piece_});
    std::copy_n(input_.begin() + static_cast<ptrdiff_t>(next_), got, buffer.begin());
    next_ += got;
    return got;
  }
  Status say_end() override { return {}; }

 private:
  Bytes input_;
  size_t piece_, next_ = 0;
};

/// What a client says.
class Script {
 public:
  Script& say(uint32_t command, uint64_t count = 0, uint64_t address = 0, uint64_t target = 0) {
    return say(bytes_of(wire::Header{.command = command, .count = count, .address = address, .target = target}));
  }
  Script& say(const Bytes& bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  const Bytes& bytes() const { return bytes_; }

 private:
  Bytes bytes_;
};

}  // namespace stasis::memory
