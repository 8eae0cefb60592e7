// Open files: descriptor tables, open file descriptions, and what stands behind them.
//
// Kernel shape: a descriptor is a slot in a table (files_struct, shared by CLONE_FILES); it points to an open file
// description (struct file, shared by dup, fork and SCM_RIGHTS), which carries offset, status flags and owner; the
// description points to an object of some kind. What the kind needs is known to its room in src/resource only, so it
// is held here as an opaque, comparable value.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <typeinfo>
#include <vector>

#include "base/types.h"

namespace stasis::model {

/// State that only one room understands.
class KindValue {
 public:
  virtual ~KindValue() = default;
  /// The room's name: "regular", "pipe", …
  virtual std::string_view kind() const = 0;
  /// Exact equality; `other` may be of another kind (then: false).
  virtual bool equals(const KindValue& other) const = 0;
  /// One line for people: used in diffs, `show` and error subjects.
  virtual std::string describe() const = 0;
};

/// A KindValue by value semantics: shared because it never changes.
struct KindState {
  std::shared_ptr<const KindValue> value;

  /// Asked of thousands of files again and again. In a program that is linked at once a type has one type_info, so that
  /// addresses tell types apart, where typeid's own comparison reads names and dynamic_cast walks bases.
  template <typename T>
  const T* as() const {
    static_assert(std::is_final_v<T>);
    return value && &typeid(*value) == &typeid(T) ? static_cast<const T*>(value.get()) : nullptr;
  }
  friend bool operator==(const KindState& a, const KindState& b) {
    if (!a.value || !b.value) return a.value == b.value;
    return a.value->equals(*b.value);
  }
};

/// F_SETOWN_EX and F_SETSIG: who gets SIGIO.
struct FileOwner {
  enum class Kind : uint8_t { none, thread, process, group };
  Kind kind = Kind::none;
  pid_t id = 0;
  uint32_t uid = 0;  ///< real uid of the setter (checked by the kernel when it signals)
  uint32_t euid = 0;
  int signal = 0;  ///< 0 means SIGIO
  friend bool operator==(const FileOwner&, const FileOwner&) = default;
};

/// One thing that an epoll waits for. The kernel tells them apart by description and number (fs/eventpoll.c,
/// epoll_filefd).
struct Watch {
  ObjectId target;      ///< a description: it may be open under other numbers, and in other processes, than at first
  int fd = -1;          ///< the number under which it was added, and under which it is changed and removed
  uint32_t events = 0;  ///< EPOLL*; of a one-shot that has fired only what epoll_ctl(2) does not clear
  uint64_t data = 0;
  friend auto operator<=>(const Watch&, const Watch&) = default;
};

/// A lock or lease of a file (fs/locks.c). Those of flock(2), F_OFD_SETLK and F_SETLEASE belong to the open file
/// description, those of F_SETLK to a descriptor table: any of its descriptors of that file that is closed releases
/// them.
struct FileLock {
  enum class Kind : uint8_t { posix, flock, ofd, lease };
  enum class Type : uint8_t { read, write, none };
  Kind kind = Kind::posix;
  Type type = Type::read;
  bool breaking = false;           ///< a lease: somebody waits until it is no more than `type`
  uint64_t start = 0, length = 0;  ///< length 0: up to the end of the file, wherever that is
  ObjectId description;            ///< the open file that it was taken through
  Pid holder;                      ///< posix: the process that F_GETLK names; 0: none of the tree
  friend auto operator<=>(const FileLock&, const FileLock&) = default;
};
std::string_view name_of(FileLock::Kind);
std::string_view name_of(FileLock::Type);
/// "posix write, bytes 0 to 9"
std::string describe(const FileLock&);

/// An open file description.
struct OpenDescription {
  ObjectId id;
  uint32_t flags = 0;  ///< access mode and status flags as in /proc/PID/fdinfo, without O_CLOEXEC
  uint64_t position = 0;
  FileOwner owner;
  KindState state;                ///< what it refers to
  std::vector<ObjectId> carries;  ///< descriptions that it keeps open itself: in flight in a socket's queue; ascending
  bool starts_last = false;       ///< what goes on in it (a timer runs, files are watched) begins when all are complete
  bool in_repair = false;         ///< a TCP connection: stays in repair mode (TCP_REPAIR) until all tasks are READY
  std::vector<Watch> watches;     ///< of an epoll; ascending
  std::vector<FileLock> locks;    ///< its own; ascending
  int given = -1;                 ///< at a restore: the descriptor of stasis that takes its place; -1: it is made anew
  friend bool operator==(const OpenDescription&, const OpenDescription&) = default;
};

struct Descriptor {
  ObjectId description;
  bool close_on_exec = false;
  friend bool operator==(const Descriptor&, const Descriptor&) = default;
};

/// A descriptor table.
struct DescriptorTable {
  ObjectId id;
  std::map<int, Descriptor> slots;
  std::vector<FileLock> locks;  ///< POSIX locks; ascending
  friend bool operator==(const DescriptorTable&, const DescriptorTable&) = default;
};

/// fs_struct, shared by CLONE_FS.
struct FsContext {
  ObjectId id;
  ObjectId working_directory;  ///< an OpenDescription of a directory
  ObjectId root_directory;     ///< likewise
  uint32_t umask = 022;
  friend bool operator==(const FsContext&, const FsContext&) = default;
};

}  // namespace stasis::model
