// Files that have a path: regular files, directories, and devices without state.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "resource/file_room.h"

namespace stasis::resource {

/// What is known of such a file, on both ends.
struct RegularFile final : model::KindValue {
  std::string path;                  ///< absolute, as stasis sees it, without " (deleted)"
  uint32_t mode = 0;                 ///< type and permissions
  std::optional<uint64_t> size;      ///< of a regular file
  std::vector<uint32_t> build_id;    ///< of an ELF file, as words; empty: none
  std::optional<uint32_t> checksum;  ///< CRC32C of all of it
  Pid process;                       ///< it is in the directory that this one has in /proc; 0: it is not
  bool process_ended = false;        ///< that one is no more, and the directory has no name
  ObjectId ghost;                    ///< unlinked: the GhostFile that has its content
  bool external = false;             ///< not saved: its path is the name under which it is given (--inherit-fd)
  std::string link_remap;            ///< unlinked, but linked elsewhere: the temporary link
  std::string open_path;             ///< where it is opened at restore (a ghost's or remap's place); not compared

  std::string_view kind() const override { return "regular"; }
  bool equals(const model::KindValue& other) const override;
  std::string describe() const override;
};

const FileRoom& regular_file_room();

/// What procfs writes behind the name of a file that has lost it.
inline constexpr std::string_view deleted_mark = " (deleted)";
/// Whether the name still leads to the file.
bool is_reached_by_name(const DescriptorProbe&);

// -- unlinked files of any kind that is opened by a path

/// The name that a file had which its link in procfs calls deleted, also if it has been a ghost before.
std::string original_path(const std::string& link);
/// Its number in the images, and back.
uint32_t ghost_number(ObjectId ghost);
ObjectId ghost_numbered(uint32_t number);
/// The ghost of this file, if it has been captured; 0: it has not.
ObjectId ghost_of(const CaptureContext&, dev_t, ino_t);
/// The ghost of the file behind the probe, captured once for all that refer to it.
Result<ObjectId> capture_ghost_of(CaptureContext&, const DescriptorProbe&, const std::string& path);
/// Says that the file of this record of files.img is the ghost, and saves that once.
Status encode_ghost_of(const model::Application&, uint32_t record, ObjectId ghost, image::FileRecords&);
/// The ghost that the entry names; it is made at `path` for the time of the restore, or beside it if that is taken.
Result<ObjectId> decode_ghost_of(const image::FileRecords&, const remap_file_path_entry&, const std::string& path,
                                 model::Application&);

/// The path at which a description's file is to be found while a restore runs; empty if it has none.
std::string path_of(const model::OpenDescription&);

}  // namespace stasis::resource
