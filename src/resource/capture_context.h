// What rooms see while an Application is captured. Tasks are stopped all the while.
#pragma once

#include <sys/stat.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <typeindex>
#include <vector>

#include "base/diagnostics.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "kernel/mapping_flags.h"
#include "kernel/proc.h"
#include "model/application.h"
#include "plan/call.h"

namespace stasis::resource {

/// How the user asked for it; a copy of the dump options that matter to rooms.
struct CapturePolicy {
  bool shell_job = false;
  bool link_remap = false;
  bool external_unix = false;  ///< --ext-unix-sk
  bool file_locks = false;
  uint64_t ghost_limit = 1 << 20;
  std::string file_validation = "buildid";  ///< "buildid", "filesize" or "checksum"
  std::vector<std::string> external;        ///< --external values
  bool evasive_devices = false;             ///< a device that has lost its path is looked for by its number
  bool force_irmap = false;                 ///< watched files are looked for by their inodes
  std::vector<std::string> irmap_scan;      ///< --irmap-scan-path: directories to look in, before the usual ones
  bool leave_running = false;
};

/// --external NAME: this is not dumped, and given again at the restore.
bool is_external(const CapturePolicy&, std::string_view name);

class CaptureContext {
 public:
  CapturePolicy policy;
  model::Application application;  ///< being assembled
  Diagnostics diagnostics;

  ObjectId new_id() { return ObjectId{++last_id_}; }
  /// The object that was first seen under this key ("pipe:[4711]"), or a new id; `fresh` says which.
  ObjectId object(const std::string& key, bool& fresh);
  /// The one that has been seen under this key, if there is any.
  std::optional<ObjectId> known_object(const std::string& key) const;
  /// State that several descriptions have in common, under a key that names it completely.
  std::map<std::string, model::KindState> known_states;
  /// What a room keeps for the time of a capture: one value of each type.
  template <typename T>
  T& kept() {
    auto& value = kept_[typeid(T)];
    if (!value) value = std::make_shared<T>();
    return *std::static_pointer_cast<T>(value);
  }
  /// While descriptors are captured: the description behind a descriptor of ours that came out of something that the
  /// tree holds (the queue of a socket). It is one that is known anyway, or is captured as one of its own.
  std::function<Result<ObjectId>(UniqueFd, const std::string& subject)> captured_in_flight;
  /// Such descriptors: until all contents are saved, their files can be reached through them alone.
  std::vector<UniqueFd> in_flight;
  /// What descriptions refer to, as stat(2) tells.
  struct Identity {
    dev_t device = 0;
    ino_t inode = 0;
    mode_t type = 0;  ///< S_IF…; 0: anonymous
  };
  std::map<ObjectId, Identity> identities;
  /// Undone when the dump fails or the application is left running (link remaps, temporary files).
  void on_rollback(std::function<void()> undo) { rollback_.push_back(std::move(undo)); }
  void roll_back();
  /// The host's pid for a pid of the tree and back (they differ under a pid namespace). 0: not of the tree.
  std::map<pid_t, pid_t> host_to_tree;
  /// The host's id of the thread through which the kernel shows what a task has (ProcessView::witness).
  pid_t witness(const model::Task&) const;

 private:
  uint32_t last_id_ = 0;
  std::map<std::string, ObjectId> objects_;
  std::map<std::type_index, std::shared_ptr<void>> kept_;
  std::vector<std::function<void()>> rollback_;
};

/// A link of /proc that stands for an open or mapped file: what it says and what it leads to.
struct FileLink {
  std::string target;
  struct stat stat{};
};
Result<FileLink> read_file_link(const std::string& proc_path);
/// "/proc/4711/map_files/7f00-7f10"
std::string map_files_path(pid_t host_pid, AddressRange range);

/// What /proc says of a stopped process as a whole.
struct ProcessFacts {
  kernel::StatInfo stat;
  std::vector<uint64_t> auxv;
  std::vector<kernel::MapsEntry> mappings;  ///< from smaps
  std::vector<kernel::LimitInfo> limits;
  std::vector<kernel::ProcTimer> timers;
  std::optional<uint32_t> coredump_filter;  ///< missing: the kernel writes no core dumps (CONFIG_ELF_CORE)
  int32_t oom_score_adj = 0;
  FileLink executable, working_directory, root_directory;
};

/// `witness`: as in ProcessView.
Result<std::shared_ptr<const ProcessFacts>> read_facts(pid_t witness, const kernel::MappingFlags* flags = nullptr);

/// A stopped process as rooms see it.
struct ProcessView {
  pid_t host_pid = 0;
  bool leader_ended = false;     ///< while other threads go on
  std::vector<pid_t> host_tids;  ///< leader first, same order as model::Task::threads
  /// The thread whose entries in /proc show memory, files and namespaces: the leader, unless it has ended.
  pid_t witness() const { return leader_ended ? host_tids.at(1) : host_pid; }
  /// Read on first use, once for all rooms. Capture has mostly read them beforehand (capture/early_facts.h).
  Result<const ProcessFacts*> facts() const;
  /// /proc/PID/task/TID/status of a thread, likewise.
  Result<const kernel::StatusInfo*> status(size_t thread) const;
  Result<const kernel::StatusInfo*> witness_status() const { return status(leader_ended ? 1 : 0); }
  mutable std::vector<std::optional<kernel::StatusInfo>> statuses;
  mutable std::shared_ptr<const ProcessFacts> known_facts;
};

/// Questions only the task can answer: system calls that the agent makes inside it, answered later in one go.
class Inquiry {
 public:
  struct Answer {
    int64_t result = 0;      ///< raw: -errno on failure
    std::vector<Bytes> out;  ///< the Out and InOut arguments, in order
  };
  using Handler = std::function<Status(const Answer&)>;
  /// The call's expectation is checked before the handler runs (default: success).
  void ask(plan::Call call, Handler handler) { questions_.push_back({std::move(call), std::move(handler)}); }

  struct Question {
    plan::Call call;
    Handler handler;
  };
  const std::vector<Question>& questions() const { return questions_; }

 private:
  std::vector<Question> questions_;
};

/// One descriptor of a stopped task, looked at from outside.
struct DescriptorProbe {
  pid_t witness = 0;      ///< ProcessView::witness of the task
  int fd = -1;            ///< -1: not a descriptor (exe, cwd, root, a mapped file)
  std::string proc_path;  ///< "/proc/4711/fd/7", "/proc/4711/exe", "/proc/4711/map_files/…": opens the same object
  std::string link;       ///< what readlink says: "/etc/passwd", "pipe:[123]", "anon_inode:[eventfd]"
  struct stat stat{};
  uint32_t flags = 0;  ///< F_GETFL: access mode and status
  uint64_t position = 0;
  int64_t mount_id = -1;
  std::string info;     ///< fdinfo of an anonymous inode (eventfd, epoll …); nothing of other kinds
  bool leased = false;  ///< a lease is held on it: whoever opens it anew may break that
  std::string subject;  ///< "task 4711 'nginx', descriptor 7 → pipe:[123]" for diagnostics
  /// A duplicate of the descriptor in stasis (pidfd_getfd), made on first use; valid while the probe lives.
  Result<int> duplicate() const;
  mutable UniqueFd cached_duplicate;
};

}  // namespace stasis::resource
