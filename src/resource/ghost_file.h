// Content of unlinked files: captured through a descriptor, kept in ghost-file-<id>.img, made again for the time of a
// restore.
#pragma once

#include "resource/regular_file.h"

namespace stasis::resource {

/// Reads what has data, through a descriptor or map_files link that opens the file.
Result<GhostFile> capture_ghost(const DescriptorProbe&);
Status encode_ghost(const GhostFile&, image::Writer&, const DescriptorProbe* = nullptr);
Result<GhostFile> decode_ghost(const image::Directory&, uint32_t id);
/// The supervisor's commands: make it at ghost.path, and remove it again.
void make_ghost(const GhostFile&, plan::Sink&);
void remove_ghost(const GhostFile&, plan::Sink&);

}  // namespace stasis::resource
