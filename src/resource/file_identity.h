// Which file it is: what tells whether it is still the one that was there at the dump, beyond its size; its other
// names.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace stasis::resource {

/// The GNU build id of an ELF file as 32-bit words, the last one filled up with zeros; empty if it is none or has none.
std::vector<uint32_t> read_build_id(const std::string& path);

/// CRC32C (RFC 3720, appendix B.4) of the whole file; nothing if it cannot be read.
std::optional<uint32_t> read_checksum(const std::string& path);

/// Another name that the file has in the directory of `path`, the first in their order; nothing if it has none there.
std::optional<std::string> name_beside(const std::string& path, const struct stat& file);

}  // namespace stasis::resource
