// What tells whether a file is still the one that was there at the dump, beyond its size.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace stasis::resource {

/// The GNU build id of an ELF file as 32-bit words, the last one filled up with zeros; empty if it is none or has none.
std::vector<uint32_t> read_build_id(const std::string& path);

/// CRC32C (RFC 3720, appendix B.4) of the whole file; nothing if it cannot be read.
std::optional<uint32_t> read_checksum(const std::string& path);

}  // namespace stasis::resource
