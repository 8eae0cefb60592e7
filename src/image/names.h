// Names of image files and their magic numbers, in one place, with the inverse.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/types.h"

namespace stasis::image {

/// In front of a file's own magic since image version 2; only the inventory goes without.
constexpr uint32_t common_magic = 0x54564319;
/// The same for files that are no part of the checkpoint (statistics, caches).
constexpr uint32_t service_magic = 0x55105940;

/// What follows a record inside its file.
enum class Payload : uint8_t {
  none,
  pipe_data,          ///< pipe_data_entry.bytes
  ghost,              ///< one ghost_file_entry, then its content or ghost_chunk_entry records with theirs
  socket_packet,      ///< sk_packet_entry.length
  tcp_queues,         ///< tcp_stream_entry.inq_len and .outq_len
  bpf_map,            ///< bpfmap_data_entry.keys_bytes and .values_bytes
  ipc_shared_memory,  ///< ipc_shm_entry.size, padded to 4
  ipc_semaphores,     ///< ipc_sem_entry.nsems 16-bit values, padded to 8
  ipc_messages,       ///< ipc_msg_entry.qnum times ipc_msg with .msize bytes padded to 8
};

/// A kind of image file. `pattern` has at most one "{}" for an id: "core-{}", "files", "pagemap-shmem-{}".
struct FileKind {
  std::string_view pattern;
  std::string_view magic_name;  ///< as crit names it: "CORE", "FILES", "INVENTORY" …
  uint32_t magic = 0;
  std::string_view message;      ///< protobuf message of each record ("core_entry"); empty: raw
  bool has_common_magic = true;  ///< IMG_COMMON_MAGIC (or IMG_SERVICE_MAGIC) stands before it
  bool service = false;          ///< IMG_SERVICE_MAGIC instead, and no ".img" after the name
  bool hex_id = false;           ///< the id is written in hexadecimal: ghost-file-1f.img
  std::string_view head;         ///< message of the first record where it is another one (pagemap_head)
  Payload payload = Payload::none;

  bool raw() const { return message.empty(); }
};

std::span<const FileKind> file_kinds();

/// "core-{}", 7 → "core-7.img"; "ghost-file-{}", 31 → "ghost-file-1f.img".
std::string file_name(std::string_view pattern, uint64_t id);
/// "files" → "files.img"; "stats-dump" → "stats-dump".
std::string file_name(std::string_view pattern);

/// The kind of a file by its name, with its id.
struct ParsedName {
  const FileKind* kind = nullptr;
  std::optional<uint64_t> id;
};
std::optional<ParsedName> parse_name(std::string_view file);
/// The kind of a file by its magic, for files that somebody renamed; nullptr if there is none.
const FileKind* find_kind(uint32_t magic);

}  // namespace stasis::image
