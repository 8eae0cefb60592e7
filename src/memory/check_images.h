// Whether encrypted images are what was written, all of them, before anything is done with them.
#pragma once

#include "base/result.h"
#include "image/directory.h"

namespace stasis::memory {

/// Reads every image of an encrypted directory, and of its parents, and checks the authenticity of each block that is
/// needed, on all processors: pages of the parents that newer images have anew may be gone (memory/dedup.h). Pages are
/// not deciphered for it. Directories that are not encrypted have nothing to be checked.
Status check_images(const image::Directory&);

}  // namespace stasis::memory
