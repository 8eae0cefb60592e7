// The vDSO of a checkpoint and the vDSO of this kernel: programs keep addresses of its functions.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "base/diagnostics.h"
#include "base/result.h"
#include "image/directory.h"
#include "model/application.h"

namespace stasis::resource {

/// Compares the stored vDSO of the tree with our own. Refuses when a function lies at another address; warns when only
/// its code differs: then nobody may have been stopped inside of it.
Status check_vdso(const model::Application&, const image::Directory&, Diagnostics&);

/// Names and offsets of what an ELF image exports; nothing if it is none. Bytes from images are hostile: pure and
/// bounded.
std::optional<std::map<std::string, uint64_t>> exported_functions(ByteView elf);

}  // namespace stasis::resource
