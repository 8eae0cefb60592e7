// Unlinked files, symbolic links, FIFOs and devices: their content is kept in ghost-file-<id>.img, and they are made
// again for the time of a restore.
#pragma once

#include <string>
#include <vector>

#include "resource/extended_attributes.h"
#include "resource/file_room.h"

namespace stasis::resource {

/// The content of an unlinked file or directory; several descriptions and mappings may refer to it.
struct GhostFile final : model::KindValue {
  /// A stretch of data; between them there are holes.
  struct Extent {
    uint64_t offset = 0, length = 0;
    uint64_t content_at = 0;  ///< how much data is before it
    uint64_t stored_at = 0;   ///< its place in the image
  };
  uint32_t uid = 0, gid = 0, mode = 0;
  uint64_t size = 0;
  uint64_t accessed_ns = 0, modified_ns = 0;
  std::string target;  ///< of a symbolic link
  ExtendedAttributes attributes;
  uint32_t device = 0;          ///< of a character device: its number
  std::vector<Extent> extents;  ///< ascending
  /// All extents' bytes, if they are few. Otherwise they are read from `source` when they are needed: from the task's
  /// own descriptor ("/proc/7/fd/3") or from the image.
  Bytes content;
  std::string source;
  std::string image;                               ///< "ghost-file-7.img"; empty: not from an image
  std::shared_ptr<const image::FileBytes> stored;  ///< that image
  bool is_encrypted = false;                       ///< it is
  std::string path;                                ///< where it is made; not compared

  std::string_view kind() const override { return "ghost"; }
  bool equals(const model::KindValue& other) const override;
  std::string describe() const override;
};

/// Looks at what has data, through a descriptor or map_files link that opens the file.
Result<GhostFile> capture_ghost(const DescriptorProbe&);
Status encode_ghost(const GhostFile&, image::Writer&);
/// Whether such a file can be made again: not devices that keep a state, nor sockets.
bool can_be_ghost(uint32_t mode, dev_t device);
/// /dev/null and its like (Documentation/admin-guide/devices.txt).
bool is_stateless_device(uint32_t mode, dev_t device);
Result<GhostFile> decode_ghost(const image::Directory&, uint32_t id);

/// For as long as the restore takes, the directories above `path` are there (contribute_ghosts).
void make_missing_directories(model::Application&, const std::string& path);

/// The supervisor's commands for all unlinked files and missing directories together: made in stage prepare,
/// directories first; removed in stage settle.
void contribute_ghosts(plan::Stage, const model::Application&, plan::Sink&);

}  // namespace stasis::resource
