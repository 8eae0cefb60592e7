// Extended attributes of files that exist no more by name, and are made again: what the program itself has given them
// (user.*, trusted.*), access control lists, and capabilities of executables (xattr(7)). Labels of security modules are
// left to those.
#pragma once

#include <map>
#include <string>

#include "base/result.h"
#include "plan/call.h"
#include "regular.pb.h"

namespace stasis::resource {

using ExtendedAttributes = std::map<std::string, Bytes>;

/// Of what the path leads to. What file systems without any have is none.
Result<ExtendedAttributes> read_extended_attributes(const std::string& path);

void encode_extended_attributes(const ExtendedAttributes&,
                                google::protobuf::RepeatedPtrField<extended_attribute_entry>&);
/// `where` is the record.
Result<ExtendedAttributes> decode_extended_attributes(
    const google::protobuf::RepeatedPtrField<extended_attribute_entry>&, const std::string& where);

/// The calls that give them to a file, once it has its owner, which would take capabilities away, and its mode.
/// `file` is the number of a descriptor.
plan::Calls set_extended_attributes(const ExtendedAttributes&, int file);
plan::Calls set_extended_attributes(const ExtendedAttributes&, const std::string& path);

}  // namespace stasis::resource
