// Pages whose content is known, and the ways in which they are stored.
#pragma once

#include "../../unit/memory/scratch.h"

#include <rapidcheck/gtest.h>

#include "memory/filter/filter.h"

namespace stasis::memory {

/// One page: of one byte throughout, of text, or of noise.
inline Bytes page_of(uint8_t kind, uint64_t seed) {
  Bytes page(page_size, kind % 3 == 0 ? static_cast<uint8_t>(seed) : uint8_t{0});
  uint64_t state = seed * 0x9e3779b97f4a7c15 + 1;
  for (size_t i = 0; i < page.size() && kind % 3 != 0; ++i) {
    state = state * 6364136223846793005 + 1442695040888963407;
    page[i] = static_cast<uint8_t>(kind % 3 == 1 ? 'a' + (state >> 62) : state >> 56);
  }
  return page;
}

class KnownPages : public PageSource {
 public:
  std::map<uint64_t, Bytes> pages;  ///< by number; others are zeros
  Status read(uint64_t address, std::span<uint8_t> buffer) override {
    for (size_t at = 0; at < buffer.size(); at += page_size) {
      const auto known = pages.find((address + at) / page_size);
      if (known == pages.end())
        std::fill_n(buffer.begin() + static_cast<ptrdiff_t>(at), page_size, uint8_t{0});
      else
        std::copy(known->second.begin(), known->second.end(), buffer.begin() + static_cast<ptrdiff_t>(at));
    }
    return {};
  }
};

/// How a directory stores its pages.
struct Storage {
  std::string compression;
  bool encrypted = false;
};

inline rc::Gen<Storage> any_storage() {
  return rc::gen::build<Storage>(
      rc::gen::set(&Storage::compression, rc::gen::element<std::string>("", "zstd", "zstd:4", "lz4", "lz4:6")),
      rc::gen::set(&Storage::encrypted, rc::gen::arbitrary<bool>()));
}

}  // namespace stasis::memory
