// Files of the directory that a process has in procfs (proc(5)).
#pragma once

#include <optional>
#include <string>

#include "resource/regular_file.h"

namespace stasis::resource {

struct ProcessFile {
  pid_t pid = 0;
  std::string rest;  ///< "/maps"; empty: the directory itself
};
/// "/proc/7/maps"; nothing if the path is not of that form.
std::optional<ProcessFile> file_of_process(const std::string& path);

/// If the file is in the directory of a process of the tree, or of one that has ended: sets path and process, and says
/// what of it cannot be found again.
bool capture_process_file(CaptureContext&, const DescriptorProbe&, RegularFile&);

/// Where `runner` finds such a file at the restore.
Result<std::string> path_of_process_file(const model::Application&, const RegularFile&, const plan::Placement&,
                                         Pid runner);

}  // namespace stasis::resource
