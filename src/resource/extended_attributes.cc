#include "resource/extended_attributes.h"

#include <fmt/format.h>
#include <linux/limits.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include <algorithm>

namespace stasis::resource {
namespace {

bool is_kept(std::string_view name) {
  return name.starts_with("user.") || name.starts_with("trusted.") || name == "security.capability" ||
         name == "system.posix_acl_access" || name == "system.posix_acl_default";
}

/// Both calls tell a size first, and then fill in as much; it may have grown in between.
template <typename Ask>
Result<Bytes> read_whole(const std::string& what, const std::string& path, const Ask& ask) {
  for (;;) {
    const ssize_t size = ask(nullptr, 0);
    if (size < 0 && (errno == ENOTSUP || errno == ENODATA)) return Bytes{};
    if (size < 0) return fail_errno(what, path);
    Bytes bytes(static_cast<size_t>(size));
    const ssize_t read = size == 0 ? 0 : ask(bytes.data(), bytes.size());
    if (read < 0 && errno == ERANGE) continue;
    if (read < 0) return fail_errno(what, path);
    bytes.resize(static_cast<size_t>(read));
    return bytes;
  }
}

}  // namespace

Result<ExtendedAttributes> read_extended_attributes(const std::string& path) {
  const auto names = TRY(read_whole("listxattr", path, [&](uint8_t* into, size_t size) {
    return listxattr(path.c_str(), reinterpret_cast<char*>(into), size);
  }));
  ExtendedAttributes attributes;
  for (auto begin = names.begin(); begin != names.end();) {
    const auto end = std::find(begin, names.end(), 0);
    const std::string name(begin, end);
    begin = end == names.end() ? end : end + 1;
    if (!is_kept(name)) continue;
    attributes[name] = TRY(read_whole("getxattr " + name, path, [&](uint8_t* into, size_t size) {
      return getxattr(path.c_str(), name.c_str(), into, size);
    }));
  }
  return attributes;
}

void encode_extended_attributes(const ExtendedAttributes& attributes,
                                google::protobuf::RepeatedPtrField<extended_attribute_entry>& entries) {
  for (const auto& [name, value] : attributes) {
    auto& entry = *entries.Add();
    entry.set_name(name), entry.set_value(value.data(), value.size());
  }
}

Result<ExtendedAttributes> decode_extended_attributes(
    const google::protobuf::RepeatedPtrField<extended_attribute_entry>& entries, const std::string& where) {
  ExtendedAttributes attributes;
  for (const auto& entry : entries) {
    const bool is_name =
        is_kept(entry.name()) && entry.name().size() <= XATTR_NAME_MAX && entry.name().find('\0') == std::string::npos;
    if (!is_name || entry.value().size() > XATTR_SIZE_MAX)
      return fail(Error::invalid("decode extended attributes", "one has a name or a length that is not kept",
                                 where + ", field attributes"));
    attributes[entry.name()].assign(entry.value().begin(), entry.value().end());
  }
  return attributes;
}

plan::Calls set_extended_attributes(const ExtendedAttributes& attributes, int file) {
  plan::Calls calls;
  for (const auto& [name, value] : attributes)
    calls.push_back(plan::call(SYS_fsetxattr, file, plan::text(name), plan::In{value}, value.size(), 0));
  return calls;
}

plan::Calls set_extended_attributes(const ExtendedAttributes& attributes, const std::string& path) {
  plan::Calls calls;
  for (const auto& [name, value] : attributes)
    calls.push_back(plan::call(SYS_setxattr, plan::text(path), plan::text(name), plan::In{value}, value.size(), 0));
  return calls;
}

}  // namespace stasis::resource
