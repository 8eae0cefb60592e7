// Images for people and scripts: JSON in the shape and with the conventions of CRIU's crit, or a tree of tasks.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "image/directory.h"
#include "image/names.h"

namespace stasis::image {

/// One record as crit prints it: enums, flags, devices and addresses by name, bytes in base64. Only present fields.
nlohmann::ordered_json to_json(const google::protobuf::Message&);

/// {"magic": "CORE", "entries": [...]}; raw bytes after a record are its "extra", in base64. Any image of CRIU's, known
/// by its name or, if it was renamed, by its magic. Raw files: {"magic": "RAW_IMAGE", "size": n}.
/// `indented`: with four blanks a level, as crit does; otherwise on one line.
Result<std::string> show_file(const Directory&, std::string_view file, bool indented = true);
/// {"core-7.img": {"magic": …}, …} for every image of the directory.
Result<std::string> show_directory(const Directory&, bool indented = true);
/// The process tree with files and memory per task, as text.
Result<std::string> show_tree(const Directory&);

/// A new record of the message of this name ("core_entry"); null if there is none.
std::unique_ptr<google::protobuf::Message> new_record(std::string_view message);
/// Bytes as crit has them: lines of 76 characters, each with its newline.
std::string base64(ByteView);

}  // namespace stasis::image
