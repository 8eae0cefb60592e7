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
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <set>

#include "resource/descriptors.h"
#include "resource/file_identity.h"
#include "resource/ghost_file.h"
#include "resource/process_directory.h"

namespace stasis::resource {
namespace {

using plan::call;

constexpr std::string_view beside = ".stasis-ghost-";       ///< and numbers: the name of a ghost whose own is taken
constexpr std::string_view temporary_link = "link_remap.";  ///< and a number
constexpr std::string_view shared_memory = "/dev/shm/";     ///< shm_overview(7)
/// CRIU counts unlinked files apart from other objects: their ids have a bit here that no other has.
constexpr uint32_t ghost_bit = 0x20000000;
std::string ghost_key(dev_t device, ino_t inode) { return fmt::format("ghost {}:{}", device, inode); }
constexpr uint32_t remap_record_bit = 0x40000000;  ///< in the ids of file entries for temporary links

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

/// The name of a ghost whose own is taken. Other restores of the same images look for one, too.
std::string free_name_beside(const std::string& path, uint32_t ghost, const model::Application& application) {
  const auto name = fmt::format("{}{}{}.{}", path, beside, ghost, getpid());
  for (int attempt = 1; attempt <= 100; ++attempt) {
    auto tried = attempt == 1 ? name : fmt::format("{}.{}", name, attempt);
    if (is_free(tried, application)) return tried;
  }
  return name;  // cannot be looked at, and why not the restore will say
}

/// Images may name any file. It is a link that a dump has made if it is called so and is where such links are made; and
/// as it is not the only name of a regular file, nothing is lost with it.
Result<bool> remove_temporary_link(const std::string& link, const std::string& original) {
  const auto refuse = [&](const char* cause) {
    return fail(Error::conflict("remove a temporary link", cause, link).advise("remove it yourself, if it is one"));
  };
  const std::string name = std::filesystem::path(link).filename().string();
  const bool is_named_so = name.starts_with(temporary_link) && name.size() > temporary_link.size() &&
                           name.find_first_not_of("0123456789.", temporary_link.size()) == std::string::npos;
  if (!is_named_so || parent_of(link) != parent_of(original)) return refuse("it is not named as dumps name them");
  struct stat about{};
  if (lstat(link.c_str(), &about) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) return false;
    return fail_errno("look at", link);
  }
  if (!S_ISREG(about.st_mode) || about.st_nlink < 2) return refuse("it is the only name of what it leads to");
  if (unlink(link.c_str()) != 0) return fail_errno("remove", link);
  return true;
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
    if (!probe.link.starts_with('/') || probe.link == "/secretmem (deleted)") return false;
    for (const std::string_view prefix : {"/memfd:", "/dev/zero (deleted)", "/SYSV", "/anon_hugepage"}) {
      if (probe.link.starts_with(prefix) && probe.stat.st_nlink == 0) return false;
    }
    return S_ISREG(probe.stat.st_mode) || S_ISDIR(probe.stat.st_mode) ||
           is_stateless_device(probe.stat.st_mode, probe.stat.st_rdev) ||
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
    if (file.external) reg.set_ext(true);
    if (file.size) reg.set_size(*file.size);
    for (const uint32_t word : file.build_id) reg.add_build_id(word);
    if (file.checksum) reg.set_checksum(*file.checksum);
    records.files.push_back(std::move(record));
    if (file.ghost.value != 0) return encode_ghost_of(application, description.id.value, file.ghost, records);
    if (file.process_ended) return encode_ended(description.id, file.process, records);
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
    if (!is_path(reg.name()) && !reg.ext()) {
      return fail(Error::invalid("decode file", "field reg.name is not an absolute path", subject));
    }
    auto file = std::make_shared<RegularFile>();
    file->external = reg.ext();
    file->path = file->open_path = reg.name();
    file->mode = reg.mode();
    if (reg.has_size()) file->size = reg.size();
    const auto owner = file_of_process(file->path);
    if (owner && application.find(Pid{owner->pid}) != nullptr) file->process = Pid{owner->pid};
    if (reg.has_checksum()) file->checksum = reg.checksum();
    file->build_id.assign(reg.build_id().begin(), reg.build_id().end());
    for (const auto& remap : TRY(records.all<remap_file_path_entry>("remap-fpath"))) {
      if (remap.remap_type() == PROCFS) {  // CRIU writes one for all files of a process
        if (owner && remap.remap_id() == static_cast<uint32_t>(owner->pid) && file->process.value == 0)
          file->process = Pid{owner->pid}, file->process_ended = true;
      } else if (remap.orig_id() == record.id()) {
        TRY(decode_unlinked(records, remap, *file, application));
      }
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
      if (file == nullptr || description.given >= 0 ||
          !done.emplace(file->path, file->open_path, file->size, file->build_id).second)
        continue;
      validate(application, description, diagnostics);
    }
  }

  void validate(const model::Application& application, const model::OpenDescription& description,
                Diagnostics& diagnostics) const override {
    const auto& file = *description.state.as<RegularFile>();
    if (file.external) {
      return diagnostics.refuse(file.describe(), "it was not saved (dump --external), and nothing is given for it",
                                fmt::format("open a file and pass --inherit-fd 'fd[NUMBER]:{}'", file.path));
    }
    if (file.ghost.value != 0 || file.process.value != 0) return;
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

  std::vector<std::string> names(const model::Application&, const model::OpenDescription& description) const override {
    const auto& path = description.state.as<RegularFile>()->path;
    if (!path.starts_with('/')) return {path};
    return {path, path.substr(1)};
  }

  // ---- after a dump

  void leftovers(const model::Application& application, std::vector<Leftover>& found) const override {
    std::set<std::string> named;
    for (const auto& [id, description] : application.descriptions) {
      const auto* file = description.state.as<RegularFile>();
      if (file == nullptr || file->external || file->ghost.value != 0) continue;
      const auto& link = file->link_remap;
      if (!link.empty() && named.insert(link).second) {
        found.push_back({fmt::format("temporary link {} to {}", link, file->path),
                         "restore uses it up; if there will be none: stasis cleanup",
                         [link, path = file->path] { return remove_temporary_link(link, path); }});
      } else if (link.empty() && file->path.starts_with(shared_memory) && named.insert(file->path).second) {
        found.push_back({"POSIX shared memory " + file->path, fmt::format("rm '{}'; a restore needs it", file->path)});
      }
    }
  }

  // ---- restore

  bool seekable() const override { return true; }
  bool reopenable() const override { return true; }
  /// Files of procfs may be those of processes that are still to be created.
  bool can_be_inherited(const model::OpenDescription& description) const override {
    return !description.state.as<RegularFile>()->path.starts_with("/proc/");
  }

  Pid process(const model::OpenDescription& description) const override {
    const auto& file = *description.state.as<RegularFile>();
    return file.process_ended ? Pid{} : file.process;
  }
  std::optional<int> ended_process(const model::OpenDescription& description) const override {
    return description.state.as<RegularFile>()->process_ended ? std::optional(0) : std::nullopt;
  }
  /// Files of the same process that has ended are those of one that ends in its place.
  ObjectId made_together(const model::OpenDescription& description) const override {
    const auto& file = *description.state.as<RegularFile>();
    return file.process_ended ? ObjectId{static_cast<uint32_t>(file.process.value)} : ObjectId{};
  }

  Status make(const model::Application& application, std::span<const plan::Placement> placements,
              plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      const auto& description = *placement.description;
      const auto& file = *description.state.as<RegularFile>();
      auto path = path_of(description);
      if (file.process.value != 0) path = TRY(path_of_process_file(application, file, placement, sink.pid()));
      sink.add(plan::Open{path, reopen_flags(description.flags), 0, placement.fd, description.id});
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
    if (const auto name = external_name(context, probe); !name.empty()) {
      file->path = name;
      file->external = true;
      return file;
    }
    if (capture_process_file(context, probe, *file)) return file;
    if (find_other_path(context, probe, *file)) return file;
    if (S_ISREG(file->mode)) file->size = static_cast<uint64_t>(probe.stat.st_size);
    const bool leads_here = is_reached_by_name(probe);
    file->path = leads_here ? probe.link : original_path(probe.link);
    // A named semaphore, for one: sem_open(3) makes it under another name than its own.
    const bool is_linked_elsewhere = !leads_here && probe.stat.st_nlink != 0 && probe.link.ends_with(deleted_mark);
    const auto other =
        is_linked_elsewhere && !context.policy.link_remap ? name_beside(file->path, probe.stat) : std::nullopt;
    if (other) file->path = *other;
    if (leads_here || other) {
      identify(context, probe, *file);
    } else if (probe.stat.st_nlink == 0 || (S_ISDIR(file->mode) && probe.link.ends_with(deleted_mark))) {
      TRY(capture_unlinked(context, probe, *file));
    } else {
      TRY(remap(context, probe, *file));
    }
    return file;
  }

  /// --evasive-devices: any path that leads to the same device will do.
  static bool find_other_path(const CaptureContext& context, const DescriptorProbe& probe, RegularFile& file) {
    if (!context.policy.evasive_devices || !S_ISCHR(probe.stat.st_mode) || is_reached_by_name(probe)) return false;
    std::error_code unreadable;
    for (const auto& entry : std::filesystem::directory_iterator("/dev", unreadable)) {
      struct stat about{};
      if (lstat(entry.path().c_str(), &about) != 0 || !S_ISCHR(about.st_mode) || about.st_rdev != probe.stat.st_rdev)
        continue;
      file.path = entry.path().string(), file.mode = about.st_mode;
      return true;
    }
    return false;
  }

  /// As criu names files: by mount and inode, in hexadecimal digits.
  static std::string external_name(const CaptureContext& context, const DescriptorProbe& probe) {
    if (context.policy.external.empty()) return {};
    auto name = fmt::format("file[{:x}:{:x}]", probe.mount_id, probe.stat.st_ino);
    return is_external(context.policy, name) ? name : std::string();
  }

  static void identify(CaptureContext& context, const DescriptorProbe& probe, RegularFile& file) {
    const bool readable = S_ISREG(file.mode) && !probe.leased;  // to open it would break the lease
    if (readable && context.policy.file_validation == "buildid") file.build_id = read_build_id(probe.proc_path);
    if (readable && context.policy.file_validation == "checksum") file.checksum = read_checksum(probe.proc_path);
  }

  static Status capture_unlinked(CaptureContext& context, const DescriptorProbe& probe, RegularFile& file) {
    if (!can_be_ghost(file.mode, probe.stat.st_rdev)) {
      context.diagnostics.refuse(probe.subject, "it is unlinked, and a socket or a device",
                                 "close it before the dump: such files are not made again");
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
    if ((probe.flags & O_TMPFILE) == O_TMPFILE)
      context.diagnostics.warn(probe.subject, "it was made without a name (O_TMPFILE), which it may be given later",
                               "a restored one cannot (linkat fails with ENOENT)");
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
      auto link = fmt::format("{}/{}{}", directory == "/" ? "" : directory, temporary_link, id);
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

  static Status encode_ended(ObjectId id, Pid process, image::FileRecords& records) {
    remap_file_path_entry entry;
    entry.set_orig_id(id.value), entry.set_remap_id(static_cast<uint32_t>(process.value));
    entry.set_remap_type(PROCFS);
    return TRY(records.side("remap-fpath"))->append(entry);
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
      if (renamed)
        sink.undo("unlink " + file->open_path, "", {call(SYS_unlinkat, AT_FDCWD, name, 0)}, "link " + file->open_path);
      // Only a restore that succeeds has used the link up.
      sink.perform("unlink " + file->link_remap, std::string(plan::only_on_success),
                   {call(SYS_unlinkat, AT_FDCWD, link, 0)});
    }
  }
};

}  // namespace

bool RegularFile::equals(const model::KindValue& other) const {
  const auto* file = dynamic_cast<const RegularFile*>(&other);
  if (file == nullptr) return false;
  // In the place of a process that has ended another ends, with another number.
  const auto compared = [](const RegularFile& one) {
    return one.process_ended ? file_of_process(one.path).value_or(ProcessFile{}).rest : one.path;
  };
  return compared(*this) == compared(*file) && process_ended == file->process_ended && external == file->external &&
         mode == file->mode && size == file->size && build_id == file->build_id && checksum == file->checksum &&
         (ghost.value != 0) == (file->ghost.value != 0) && link_remap.empty() == file->link_remap.empty();
}

std::string RegularFile::describe() const {
  if (external) return "external file " + path;
  return fmt::format("{}{}{}", path, ghost.value != 0 ? " (unlinked)" : "", link_remap.empty() ? "" : " (remapped)");
}

std::string path_of(const model::OpenDescription& description) {
  const auto* file = description.state.as<RegularFile>();
  if (file == nullptr || file->external) return {};
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
                    path.find_first_not_of("0123456789.", at + beside.size()) == std::string::npos;
  return ours ? path.substr(0, at) : path;
}

uint32_t ghost_number(ObjectId ghost) { return ghost.value & ~ghost_bit; }

ObjectId ghost_numbered(uint32_t number) { return ObjectId{number | ghost_bit}; }

ObjectId ghost_of(const CaptureContext& context, dev_t device, ino_t inode) {
  const auto known = context.known_object(ghost_key(device, inode));
  return known ? ghost_numbered(known->value) : ObjectId{};
}

Result<ObjectId> capture_ghost_of(CaptureContext& context, const DescriptorProbe& probe, const std::string& path) {
  bool fresh = false;
  const auto object = ghost_numbered(context.object(ghost_key(probe.stat.st_dev, probe.stat.st_ino), fresh).value);
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
  entry.set_orig_id(record), entry.set_remap_id(ghost_number(object)), entry.set_remap_type(GHOST);
  TRY(TRY(records.side("remap-fpath"))->append(entry));
  if (!records.first_time("ghost", object.value)) return {};
  const auto& ghost = *application.objects.at(object).as<GhostFile>();
  return encode_ghost(ghost, *TRY(records.side("ghost-file-{}", ghost_number(object))));
}

Result<ObjectId> decode_ghost_of(const image::FileRecords& records, const remap_file_path_entry& remap,
                                 const std::string& path, model::Application& application) {
  const std::string subject = fmt::format("remap-fpath.img, file {}", remap.orig_id());
  if (remap.remap_type() != GHOST)
    return fail(Error::unsupported("decode file", "it is a file of /proc of a dead task", subject));
  const ObjectId object = ghost_numbered(remap.remap_id());
  if (!application.objects.contains(object)) {
    auto ghost = std::make_shared<GhostFile>(TRY(decode_ghost(records.directory(), remap.remap_id())));
    make_missing_directories(application, path);
    ghost->path = is_free(path, application) ? path : free_name_beside(path, remap.remap_id(), application);
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
