#include "model/files.h"

#include <fmt/format.h>

namespace stasis::model {

std::string_view name_of(FileLock::Kind kind) {
  switch (kind) {
    case FileLock::Kind::posix:
      return "posix";
    case FileLock::Kind::flock:
      return "flock";
    case FileLock::Kind::ofd:
      return "ofd";
    case FileLock::Kind::lease:
      break;
  }
  return "lease";
}

std::string_view name_of(FileLock::Type type) {
  switch (type) {
    case FileLock::Type::read:
      return "read";
    case FileLock::Type::write:
      return "write";
    case FileLock::Type::none:
      break;
  }
  return "none";
}

std::string describe(const FileLock& lock) {
  std::string text = fmt::format("{} {}", name_of(lock.kind), name_of(lock.type));
  if (lock.breaking) text += ", being broken";
  if (lock.kind == FileLock::Kind::flock || lock.kind == FileLock::Kind::lease) return text;
  return text + (lock.length == 0 ? fmt::format(", from byte {} on", lock.start)
                                  : fmt::format(", bytes {} to {}", lock.start, lock.start + lock.length - 1));
}

}  // namespace stasis::model
