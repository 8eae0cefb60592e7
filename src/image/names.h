// Names of image files and their magic numbers, in one place, with the inverse.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/types.h"

namespace stasis::image {

/// A kind of image file. `pattern` has at most one "{}" for an id: "core-{}", "files", "pagemap-shmem-{}".
struct FileKind {
  std::string_view pattern;
  std::string_view magic_name;      ///< as crit names it: "CORE", "FILES", "INVENTORY" …
  uint32_t magic = 0;
  bool common_magic = true;         ///< IMG_COMMON_MAGIC (or IMG_SERVICE_MAGIC) stands before it
  bool service = false;             ///< IMG_SERVICE_MAGIC instead
  std::string_view message;         ///< protobuf message of each record ("core_entry"); empty: raw
};

std::string file_name(std::string_view pattern, uint64_t id);   ///< "core-{}", 7 → "core-7.img"
inline std::string file_name(std::string_view pattern) { return std::string(pattern) + ".img"; }
/// The kind of a file by its name, with its id.
struct ParsedName {
  const FileKind* kind = nullptr;
  std::optional<uint64_t> id;
};
std::optional<ParsedName> parse_name(std::string_view file);

}  // namespace stasis::image
