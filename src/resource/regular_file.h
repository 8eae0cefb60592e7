// Files that have a path: regular files, directories, and devices without state.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "resource/file_room.h"

namespace stasis::resource {

/// What is known of such a file, on both ends.
struct RegularFile final : model::KindValue {
  std::string path;   ///< absolute, as stasis sees it, without " (deleted)"
  uint32_t mode = 0;  ///< type and permissions
  uint64_t size = 0;
  std::vector<uint32_t> build_id;  ///< of an ELF file, as words; empty: none
  ObjectId ghost;                  ///< unlinked: the GhostFile that has its content
  std::string link_remap;          ///< unlinked, but linked elsewhere: the temporary link
  std::string open_path;           ///< where it is opened at restore (a ghost's or remap's place); not compared

  std::string_view kind() const override { return "regular"; }
  bool equals(const model::KindValue& other) const override;
  std::string describe() const override;
};

/// The content of an unlinked file; several descriptions and mappings may refer to it.
struct GhostFile final : model::KindValue {
  struct Chunk {
    uint64_t offset = 0;
    Bytes bytes;
    friend bool operator==(const Chunk&, const Chunk&) = default;
  };
  uint32_t uid = 0, gid = 0, mode = 0;
  uint64_t size = 0;
  uint64_t accessed_ns = 0, modified_ns = 0;
  std::vector<Chunk> chunks;  ///< ascending; holes between them
  std::string path;           ///< where it is made; not compared

  std::string_view kind() const override { return "ghost"; }
  bool equals(const model::KindValue& other) const override;
  std::string describe() const override;
};

const FileRoom& regular_file_room();

/// The path at which a description's file is to be found while a restore runs; empty if it has none.
std::string path_of(const model::OpenDescription&);

/// Flags for opening it anew: what open(2) acts on only once is left out.
uint32_t reopen_flags(uint32_t flags);

}  // namespace stasis::resource
