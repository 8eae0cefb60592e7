// Files that have a path: regular files, directories, and character devices that keep no state (null, zero, random …).
//
// Where the path still leads to the file, the path is all that is needed. A file whose last link is gone is a *ghost*:
// its content goes into the images. One that lives on under another name gets a temporary link (--link-remap). At
// restore both stand under the original name while processes open them, so that /proc shows what it showed before, and
// are unlinked again when all is open. Where the original name is taken by another file meanwhile, a name beside it
// serves; the next dump knows it and takes it off again.
#include "resource/regular_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <set>

#include "resource/descriptors.h"
#include "resource/file_identity.h"
#include "resource/ghost_file.h"

namespace stasis::resource {
namespace {

using plan::call;

constexpr std::string_view beside = ".stasis-ghost-";  ///< and a number: the name of a ghost whose own is taken
constexpr unsigned memory_devices = 1;                 ///< Documentation/admin-guide/devices.txt
/// CRIU counts unlinked files apart from other objects: their ids have a bit here that no other has.
constexpr uint32_t ghost_bit = 0x20000000;
constexpr uint32_t record_id(ObjectId ghost) { return ghost.value & ~ghost_bit; }
constexpr uint32_t remap_record_bit = 0x40000000;  ///< in the ids of file entries for temporary links

bool is_stateless_device(const struct stat& about) {
  if (!S_ISCHR(about.st_mode) || major(about.st_rdev) != memory_devices) return false;
  switch (minor(about.st_rdev)) {
    case 3:  // null
    case 5:  // zero
    case 7:  // full
    case 8:  // random
    case 9:  // urandom
      return true;
    default:
      return false;
  }
}

std::string parent_of(const std::string& path) { return std::filesystem::path(path).parent_path().string(); }

bool is_missing(const std::string& path) {
  struct stat ignored{};
  return lstat(path.c_str(), &ignored) != 0 && errno == ENOENT;
}

/// Whether nothing has this name, neither now nor during the restore.
bool is_free(const std::string& path, const model::Application& application) {
  if (!is_missing(path)) return false;
  for (const auto& [id, object] : application.objects) {
    const auto* ghost = object.as<GhostFile>();
    if (ghost != nullptr && ghost->path == path) return false;
  }
  for (const auto& [id, description] : application.descriptions) {
    const auto* file = description.state.as<RegularFile>();
    if (file != nullptr && !file->link_remap.empty() && file->open_path == path) return false;
  }
  return true;
}

/// Directories above the path that do not exist, outermost first.
std::vector<std::string> missing_above(const std::string& path) {
  std::vector<std::string> missing;
  for (auto directory = parent_of(path); directory.size() > 1 && is_missing(directory);
       directory = parent_of(directory)) {
    missing.insert(missing.begin(), directory);
  }
  return missing;
}

/// The file is that of a process of the tree, which exists by the time it is opened.
bool is_of_the_tree(const std::string& path, const model::Application& application) {
  pid_t pid = 0;
  if (application.root_is_namespace_init || sscanf(path.c_str(), "/proc/%d/", &pid) != 1) return false;
  return application.find(Pid{pid}) != nullptr;
}

/// The temporary link's name at restore, and the record that says it to CRIU: that of the first description that needs
/// it.
ObjectId remap_owner(const model::Application& application, const std::string& link) {
  for (const auto& [id, other] : application.descriptions) {
    const auto* file = other.state.as<RegularFile>();
    if (file != nullptr && file->link_remap == link) return id;
  }
  return {};
}

class RegularFileRoom final : public FileRoom {
 public:
  std::string_view kind() const override { return "regular"; }

  // ---- capture

  bool recognises(const DescriptorProbe& probe) const override {
    if (!probe.link.starts_with('/')) return false;
    for (const std::string_view prefix : {"/memfd:", "/dev/zero (deleted)", "/SYSV", "/anon_hugepage"}) {
      if (probe.link.starts_with(prefix) && probe.stat.st_nlink == 0) return false;
    }
    return S_ISREG(probe.stat.st_mode) || S_ISDIR(probe.stat.st_mode) || is_stateless_device(probe.stat) ||
           ((probe.flags & O_PATH) != 0 && !S_ISSOCK(probe.stat.st_mode));
  }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    auto& known =
        context.known_states[fmt::format("regular {}:{}:{}", probe.stat.st_dev, probe.stat.st_ino, probe.link)];
    if (!known.value) known.value = TRY(look_at(context, probe));
    return known;
  }

  // ---- images

  Status encode(const model::Application& application, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    const auto& file = *description.state.as<RegularFile>();
    image::FileRecord record;
    record.set_type(REG), record.set_id(description.id.value);
    auto& reg = *record.mutable_reg();
    reg.set_id(description.id.value), reg.set_flags(description.flags), reg.set_pos(description.position);
    encode_owner(description.owner, *reg.mutable_fown());
    reg.set_name(file.path), reg.set_mode(file.mode);
    if (file.size) reg.set_size(*file.size);
    for (const uint32_t word : file.build_id) reg.add_build_id(word);
    if (file.checksum) reg.set_checksum(*file.checksum);
    records.files.push_back(std::move(record));
    if (file.ghost.value != 0) return encode_ghost_of(application, description.id.value, file.ghost, records);
    if (!file.link_remap.empty()) return encode_remap(application, description, file, records);
    return {};
  }

  bool decodes(const image::FileRecords&, const image::FileRecord& record) const override {
    return record.type() == REG;
  }

  std::vector<uint32_t> parts(const image::FileRecords& records, const image::FileRecord& record) const override {
    const auto remaps = records.all<remap_file_path_entry>("remap-fpath");
    std::vector<uint32_t> parts;
    for (const auto& remap : remaps ? *remaps : std::span<const remap_file_path_entry>{}) {
      if (remap.orig_id() == record.id() && remap.remap_type() == LINKED) parts.push_back(remap.remap_id());
    }
    return parts;
  }

  Result<model::OpenDescription> decode(const image::FileRecords& records, const image::FileRecord& record,
                                        model::Application& application) const override {
    const auto& reg = record.reg();
    const std::string subject = fmt::format("files.img, file {}", record.id());
    if (!record.has_reg()) {
      return fail(Error::invalid("decode file", "the entry of type REG has no reg field", subject));
    }
    if (!is_path(reg.name())) {
      return fail(Error::invalid("decode file", "field reg.name is not an absolute path", subject));
    }
    if (reg.ext()) {
      return fail(Error::unsupported("decode file", "it is an external file (--inherit-fd), which cannot be given yet",
                                     subject));
    }
    auto file = std::make_shared<RegularFile>();
    file->path = file->open_path = reg.name();
    file->mode = reg.mode();
    if (reg.has_size()) file->size = reg.size();
    if (reg.has_checksum()) file->checksum = reg.checksum();
    file->build_id.assign(reg.build_id().begin(), reg.build_id().end());
    for (const auto& remap : TRY(records.all<remap_file_path_entry>("remap-fpath"))) {
      if (remap.orig_id() == record.id()) TRY(decode_unlinked(records, remap, *file, application));
    }
    model::OpenDescription description;
    description.id = ObjectId{record.id()};
    description.flags = reg.flags(), description.position = reg.pos();
    description.owner = decode_owner(reg.fown());
    description.state = {std::move(file)};
    return description;
  }

  // ---- before a restore

  /// Many descriptions may be of the same file: each is looked at once.
  void validate_all(const model::Application& application, Diagnostics& diagnostics) const override {
    std::set<std::tuple<std::string_view, std::string_view, std::optional<uint64_t>, std::vector<uint32_t>>> done;
    for (const auto& [id, description] : application.descriptions) {
      const auto* file = description.state.as<RegularFile>();
      if (file == nullptr || !done.emplace(file->path, file->open_path, file->size, file->build_id).second) continue;
      validate(application, description, diagnostics);
    }
  }

  void validate(const model::Application& application, const model::OpenDescription& description,
                Diagnostics& diagnostics) const override {
    const auto& file = *description.state.as<RegularFile>();
    if (file.ghost.value != 0 || is_of_the_tree(file.path, application)) return;
    const auto& path = file.link_remap.empty() ? file.path : file.link_remap;
    const auto refuse = [&](std::string problem, std::string advice) {
      diagnostics.refuse("file " + path, std::move(problem), std::move(advice));
    };
    const std::string put_back = "put back the file as it was at the dump";
    struct stat now{};
    if (lstat(path.c_str(), &now) != 0) {
      return refuse(fmt::format("it cannot be found: {}", std::strerror(errno)),
                    "put the file back, or restore where it exists");
    }
    if (file.mode != 0 && (now.st_mode & S_IFMT) != (file.mode & S_IFMT)) {
      return refuse("it is of another type than at the dump", put_back);
    }
    if (!S_ISREG(now.st_mode)) return;
    if (file.size && static_cast<uint64_t>(now.st_size) != *file.size) {
      refuse(fmt::format("it has changed since the dump: its size is {}, it was {}", now.st_size, *file.size),
             put_back);
    } else if (application.compare_build_ids && !file.build_id.empty() && read_build_id(path) != file.build_id) {
      refuse("it has changed since the dump: it has another build id", put_back);
    } else if (application.compare_build_ids && file.checksum && read_checksum(path) != file.checksum) {
      refuse("it has changed since the dump: its checksum is another", put_back);
    }
  }

  void contribute(plan::Stage stage, const model::Application& application, plan::Sink& sink) const override {
    if (stage == plan::Stage::prepare) {
      contribute_ghosts(stage, application, sink);
      contribute_links(stage, application, sink);
    } else if (stage == plan::Stage::settle) {
      contribute_links(stage, application, sink);
      contribute_ghosts(stage, application, sink);
    }
  }

  // ---- restore

  bool seekable() const override { return true; }
  bool reopenable() const override { return true; }

  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      const auto& description = *placement.description;
      sink.add(plan::Open{path_of(description), reopen_flags(description.flags), 0, placement.fd, description.id});
      set_status_flags(description, placement.fd, sink);
    }
    return {};
  }

 private:
  static bool is_path(const std::string& name) {
    constexpr size_t longest = 4096;
    return name.starts_with('/') && name.find('\0') == std::string::npos && name.size() < longest;
  }

  static Result<std::shared_ptr<const RegularFile>> look_at(CaptureContext& context, const DescriptorProbe& probe) {
    auto file = std::make_shared<RegularFile>();
    file->mode = probe.stat.st_mode;
    if (S_ISREG(file->mode)) file->size = static_cast<uint64_t>(probe.stat.st_size);
    const bool leads_here = is_reached_by_name(probe);
    file->path = leads_here ? probe.link : original_path(probe.link);
    if (leads_here) {
      TRY(identify(context, probe, *file));
    } else if (probe.stat.st_nlink == 0 || (S_ISDIR(file->mode) && probe.link.ends_with(deleted_mark))) {
      TRY(capture_unlinked(context, probe, *file));
    } else {
      TRY(remap(context, probe, *file));
    }
    return file;
  }

  static Status identify(CaptureContext& context, const DescriptorProbe& probe, RegularFile& file) {
    const bool readable = S_ISREG(file.mode) && !probe.leased;  // to open it would break the lease
    if (readable && context.policy.file_validation == "buildid") file.build_id = read_build_id(probe.proc_path);
    if (readable && context.policy.file_validation == "checksum") file.checksum = read_checksum(probe.proc_path);
    pid_t host_pid = 0;
    if (sscanf(file.path.c_str(), "/proc/%d/", &host_pid) != 1) return {};
    const auto known = context.host_to_tree.find(host_pid);
    if (known != context.host_to_tree.end() && known->second != host_pid) {
      context.diagnostics.refuse(probe.subject,
                                 "it is a file of procfs, which names a task of the tree by an outer pid",
                                 "close it before the dump: after a restore that pid is another");
    }
    return {};
  }

  static Status capture_unlinked(CaptureContext& context, const DescriptorProbe& probe, RegularFile& file) {
    if (!S_ISREG(file.mode) && !S_ISDIR(file.mode)) {
      context.diagnostics.refuse(probe.subject, "it is unlinked, and neither a regular file nor a directory",
                                 "close it before the dump: only files and directories are made again");
      return {};
    }
    const uint64_t stored = S_ISREG(file.mode) ? static_cast<uint64_t>(probe.stat.st_blocks) * 512 : 0;
    if (stored > context.policy.ghost_limit) {
      context.diagnostics.refuse(probe.subject,
                                 fmt::format("it is unlinked and holds {} bytes, more than --ghost-limit allows ({})",
                                             stored, context.policy.ghost_limit),
                                 fmt::format("pass --ghost-limit {}M", (stored >> 20) + 1));
      return {};
    }
    if (probe.leased) {
      context.diagnostics.refuse(probe.subject, "it is unlinked, and cannot be read without breaking its lease",
                                 "let go of the lease before the dump");
      return {};
    }
    file.ghost = TRY(capture_ghost_of(context, probe, file.path));
    return {};
  }

  /// The file has a name somewhere, but not this one: it gets one beside it.
  static Status remap(CaptureContext& context, const DescriptorProbe& probe, RegularFile& file) {
    if (!probe.link.ends_with(deleted_mark)) {
      context.diagnostics.refuse(
          probe.subject,
          "its path leads to another file: something is mounted over it, or it is of another mount namespace",
          "files that cannot be reached by their path cannot be restored by this version");
      return {};
    }
    if (!context.policy.link_remap) {
      context.diagnostics.refuse(probe.subject, "its name is gone, but it lives on under another one",
                                 "pass --link-remap, which gives it a temporary name");
      return {};
    }
    bool fresh = false;
    const ObjectId id = context.object(fmt::format("remap {}:{}", probe.stat.st_dev, probe.stat.st_ino), fresh);
    auto& link = context.known_states[fmt::format("link remap {}", id)];
    if (fresh) {
      auto made = std::make_shared<RegularFile>();
      made->link_remap = TRY(make_link(context, probe, parent_of(file.path), id));
      link.value = std::move(made);
    }
    file.link_remap = link.as<RegularFile>()->link_remap;
    return {};
  }

  /// A name that is free: an earlier dump may have left one behind that waits for its own restore.
  static Result<std::string> make_link(CaptureContext& context, const DescriptorProbe& probe,
                                       const std::string& directory, ObjectId id) {
    for (int attempt = 0; attempt < 1000; ++attempt) {
      auto link = fmt::format("{}/link_remap.{}", directory == "/" ? "" : directory, id);
      if (attempt > 0) link += fmt::format(".{}", attempt);
      if (linkat(AT_FDCWD, probe.proc_path.c_str(), AT_FDCWD, link.c_str(), AT_SYMLINK_FOLLOW) == 0) {
        context.on_rollback([link] { unlink(link.c_str()); });
        return link;
      }
      if (errno == EEXIST) continue;
      const int error = errno;
      context.diagnostics.refuse(
          probe.subject, fmt::format("it cannot be given the temporary name {}: {}", link, std::strerror(error)),
          "its directory must exist and be writable");
      return std::string("?");
    }
    return fail(Error::conflict("make a temporary link", "all names are taken", directory + "/link_remap.*")
                    .advise("remove links that earlier dumps have left"));
  }

  /// CRIU wants the remap to be another regular file entry.
  static Status encode_remap(const model::Application& application, const model::OpenDescription& description,
                             const RegularFile& file, image::FileRecords& records) {
    remap_file_path_entry entry;
    const uint32_t remap_id = remap_owner(application, file.link_remap).value | remap_record_bit;
    entry.set_orig_id(description.id.value), entry.set_remap_id(remap_id), entry.set_remap_type(LINKED);
    TRY(TRY(records.side("remap-fpath"))->append(entry));
    if (!records.first_time("link remap", remap_id)) return {};
    image::FileRecord record;
    record.set_type(REG), record.set_id(remap_id);
    auto& reg = *record.mutable_reg();
    reg.set_id(remap_id), reg.set_flags(0), reg.set_pos(0), reg.set_name(file.link_remap), reg.set_mode(file.mode);
    encode_owner({}, *reg.mutable_fown());
    records.files.push_back(std::move(record));
    return {};
  }

  static Status decode_unlinked(const image::FileRecords& records, const remap_file_path_entry& remap,
                                RegularFile& file, model::Application& application) {
    const std::string subject = fmt::format("remap-fpath.img, file {}", remap.orig_id());
    if (remap.remap_type() == LINKED) {
      const auto* link = records.find(remap.remap_id());
      if (link == nullptr || !link->has_reg() || !is_path(link->reg().name())) {
        return fail(Error::invalid("decode file", "the link it is remapped to is not in files.img", subject));
      }
      file.link_remap = link->reg().name();
      const auto known = remap_owner(application, file.link_remap);
      if (known.value != 0)
        file.open_path = application.descriptions.at(known).state.as<RegularFile>()->open_path;
      else
        file.open_path = is_free(file.path, application) ? file.path : file.link_remap;
      return {};
    }
    file.ghost = TRY(decode_ghost_of(records, remap, file.path, application));
    file.open_path = application.objects.at(file.ghost).as<GhostFile>()->path;
    return {};
  }

  static void contribute_links(plan::Stage stage, const model::Application& application, plan::Sink& sink) {
    std::set<std::string> done;
    for (const auto& [id, description] : application.descriptions) {
      const auto* file = description.state.as<RegularFile>();
      if (file == nullptr || file->link_remap.empty() || !done.insert(file->link_remap).second) continue;
      const auto link = plan::text(file->link_remap), name = plan::text(file->open_path);
      const bool renamed = file->open_path != file->link_remap;
      if (stage == plan::Stage::prepare && renamed) {
        sink.perform("link " + file->open_path, "", {call(SYS_linkat, AT_FDCWD, link, AT_FDCWD, name, 0)});
      }
      if (stage != plan::Stage::settle) continue;
      if (renamed) sink.perform("unlink " + file->open_path, "", {call(SYS_unlinkat, AT_FDCWD, name, 0)});
      // Only a restore that succeeds has used the link up.
      sink.perform("unlink " + file->link_remap, std::string(plan::only_on_success),
                   {call(SYS_unlinkat, AT_FDCWD, link, 0)});
    }
  }
};

}  // namespace

bool RegularFile::equals(const model::KindValue& other) const {
  const auto* file = dynamic_cast<const RegularFile*>(&other);
  return file != nullptr && path == file->path && mode == file->mode && size == file->size &&
         build_id == file->build_id && checksum == file->checksum && (ghost.value != 0) == (file->ghost.value != 0) &&
         link_remap.empty() == file->link_remap.empty();
}

std::string RegularFile::describe() const {
  return fmt::format("{}{}{}", path, ghost.value != 0 ? " (unlinked)" : "", link_remap.empty() ? "" : " (remapped)");
}

std::string path_of(const model::OpenDescription& description) {
  const auto* file = description.state.as<RegularFile>();
  if (file == nullptr) return {};
  return file->open_path.empty() ? file->path : file->open_path;
}

bool is_reached_by_name(const DescriptorProbe& probe) {
  struct stat found{};
  return lstat(probe.link.c_str(), &found) == 0 && found.st_dev == probe.stat.st_dev &&
         found.st_ino == probe.stat.st_ino;
}

std::string original_path(const std::string& link) {
  std::string path = link.ends_with(deleted_mark) ? link.substr(0, link.size() - deleted_mark.size()) : link;
  const size_t at = path.rfind(beside);
  const bool ours = at != std::string::npos && at > 0 && path.size() > at + beside.size() &&
                    path.find_first_not_of("0123456789", at + beside.size()) == std::string::npos;
  return ours ? path.substr(0, at) : path;
}

Result<ObjectId> capture_ghost_of(CaptureContext& context, const DescriptorProbe& probe, const std::string& path) {
  bool fresh = false;
  const auto id = context.object(fmt::format("ghost {}:{}", probe.stat.st_dev, probe.stat.st_ino), fresh);
  const ObjectId object{id.value | ghost_bit};
  if (fresh) {
    auto ghost = std::make_shared<GhostFile>(TRY(capture_ghost(probe)));
    ghost->path = path;
    context.application.objects[object] = {std::move(ghost)};
  }
  return object;
}

Status encode_ghost_of(const model::Application& application, uint32_t record, ObjectId object,
                       image::FileRecords& records) {
  remap_file_path_entry entry;
  entry.set_orig_id(record), entry.set_remap_id(record_id(object)), entry.set_remap_type(GHOST);
  TRY(TRY(records.side("remap-fpath"))->append(entry));
  if (!records.first_time("ghost", object.value)) return {};
  const auto& ghost = *application.objects.at(object).as<GhostFile>();
  return encode_ghost(ghost, *TRY(records.side("ghost-file-{}", record_id(object))));
}

Result<ObjectId> decode_ghost_of(const image::FileRecords& records, const remap_file_path_entry& remap,
                                 const std::string& path, model::Application& application) {
  const std::string subject = fmt::format("remap-fpath.img, file {}", remap.orig_id());
  if (remap.remap_type() != GHOST)
    return fail(Error::unsupported("decode file", "it is a file of /proc of a dead task", subject));
  const ObjectId object{remap.remap_id() | ghost_bit};
  if (!application.objects.contains(object)) {
    auto ghost = std::make_shared<GhostFile>(TRY(decode_ghost(records.directory(), remap.remap_id())));
    ghost->missing_directories = missing_above(path);
    ghost->path = is_free(path, application) ? path : fmt::format("{}{}{}", path, beside, remap.remap_id());
    application.objects[object] = {std::move(ghost)};
  }
  if (application.objects.at(object).as<GhostFile>() == nullptr)
    return fail(Error::invalid("decode file", fmt::format("object {} is no ghost file", object), subject));
  return object;
}

const FileRoom& regular_file_room() {
  static const RegularFileRoom room;
  return room;
}

}  // namespace stasis::resource
