// What newer images have is released in their parents.
#pragma once

#include "cli/session.h"
#include "image/directory.h"

namespace stasis::cli {

/// memory::release_superseded, and says how much that was.
Status release_superseded(const image::Directory&, const Session&);
/// The same for images that have just been written: they are complete, whatever becomes of their parents.
void release_superseded_of(const image::Directory& written, const Session&);

}  // namespace stasis::cli
