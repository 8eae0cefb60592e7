// Files that have a path: regular files, directories, and character devices that keep no state (null, zero, random …).
//
// Where the path still leads to the file, the path is all that is needed. A file whose last link is gone is a *ghost*:
// its content goes into the images. One that lives on under another name gets a temporary link (--link-remap). At
// restore both stand under the original name while processes open them, so that /proc shows what it showed before, and
// are unlinked again when all is open.
#include "resource/regular_file.h"

#include <elf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <set>

#include "base/checked.h"
#include "resource/descriptors.h"
#include "resource/ghost_file.h"

namespace stasis::resource {
namespace {

using plan::call;

constexpr uint32_t tmpfile_bit = 020000000;  ///< what sets O_TMPFILE apart from O_DIRECTORY, which it contains
constexpr std::string_view deleted = " (deleted)";
constexpr unsigned memory_devices = 1;  ///< Documentation/admin-guide/devices.txt

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

std::string without_deleted(const std::string& link) {
  return link.ends_with(deleted) ? link.substr(0, link.size() - deleted.size()) : link;
}

bool same_file(const struct stat& a, const struct stat& b) { return a.st_dev == b.st_dev && a.st_ino == b.st_ino; }

/// The GNU build id of an ELF file as 32-bit words; empty if it is none or has none.
std::vector<uint32_t> read_build_id(const std::string& path) {
  const UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  Elf64_Ehdr header{};
  if (!file.valid() || pread(file.get(), &header, sizeof header, 0) != sizeof header) return {};
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64) return {};
  for (unsigned i = 0; i < std::min<unsigned>(header.e_phnum, 64); ++i) {
    Elf64_Phdr segment{};
    if (pread(file.get(), &segment, sizeof segment, static_cast<off_t>(header.e_phoff + i * sizeof segment)) !=
        sizeof segment)
      return {};
    if (segment.p_type != PT_NOTE || segment.p_filesz > 65536) continue;
    Bytes notes(segment.p_filesz);
    if (pread(file.get(), notes.data(), notes.size(), static_cast<off_t>(segment.p_offset)) !=
        static_cast<ssize_t>(notes.size()))
      return {};
    for (uint64_t at = 0; at + sizeof(Elf64_Nhdr) <= notes.size();) {
      Elf64_Nhdr note{};
      std::memcpy(&note, notes.data() + at, sizeof note);
      const uint64_t name = at + sizeof note, content = name + (uint64_t{note.n_namesz} + 3) / 4 * 4;
      const auto id = checked_slice(notes, content, note.n_descsz);
      const auto owner = checked_slice(notes, name, note.n_namesz);
      if (!id || !owner) return {};
      if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && std::memcmp(owner->data(), "GNU", 4) == 0) {
        std::vector<uint32_t> words((id->size() + 3) / 4);
        std::memcpy(words.data(), id->data(), id->size());
        return words;
      }
      at = content + (uint64_t{note.n_descsz} + 3) / 4 * 4;
    }
  }
  return {};
}

class RegularFileRoom final : public FileRoom {
 public:
  std::string_view kind() const override { return "regular"; }

  // ---- capture

  bool recognises(const DescriptorProbe& probe) const override {
    if (!probe.link.starts_with('/')) return false;
    if (probe.link.starts_with("/memfd:") || probe.link.starts_with("/dev/zero (deleted)") ||
        probe.link.starts_with("/SYSV"))
      return false;
    return S_ISREG(probe.stat.st_mode) || S_ISDIR(probe.stat.st_mode) || is_stateless_device(probe.stat) ||
           ((probe.flags & O_PATH) != 0 && !S_ISSOCK(probe.stat.st_mode));
  }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    auto file = std::make_shared<RegularFile>();
    file->mode = probe.stat.st_mode;
    if (S_ISREG(file->mode)) file->size = static_cast<uint64_t>(probe.stat.st_size);
    const auto* at_path = context.at_path(probe.link);
    const bool leads_here = at_path != nullptr && same_file(*at_path, probe.stat);
    file->path = leads_here ? probe.link : without_deleted(probe.link);
    if (leads_here) {
      if (S_ISREG(file->mode) && context.policy.file_validation == "buildid") {
        const auto [known, fresh] = context.build_ids.try_emplace({probe.stat.st_dev, probe.stat.st_ino});
        if (fresh) known->second = read_build_id(probe.proc_path);
        file->build_id = known->second;
      }
    } else if (probe.stat.st_nlink == 0) {
      TRY(capture_unlinked(context, probe, *file));
    } else {
      TRY(remap(context, probe, *file));
    }
    return model::KindState{std::move(file)};
  }

  // ---- images

  Status encode(const model::Application& application, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    const auto& file = *description.state.as<RegularFile>();
    image::FileRecord record;
    record.set_type(REG);
    record.set_id(description.id.value);
    auto& reg = *record.mutable_reg();
    reg.set_id(description.id.value), reg.set_flags(description.flags), reg.set_pos(description.position);
    encode_owner(description.owner, *reg.mutable_fown());
    reg.set_name(file.path), reg.set_mode(file.mode);
    if (S_ISREG(file.mode)) reg.set_size(file.size);
    for (const uint32_t word : file.build_id) reg.add_build_id(word);
    records.files.push_back(std::move(record));
    if (file.ghost.value != 0) return encode_unlinked(application, description, file, records);
    if (!file.link_remap.empty()) return encode_remap(description, file, records);
    return {};
  }

  bool decodes(const image::FileRecords&, const image::FileRecord& record) const override {
    return record.type() == REG;
  }

  Result<model::OpenDescription> decode(const image::FileRecords& records, const image::FileRecord& record,
                                        model::Application& application) const override {
    const auto& reg = record.reg();
    const std::string subject = fmt::format("files.img, file {}", record.id());
    if (!record.has_reg())
      return fail(Error::invalid("decode file", "the entry of type REG has no reg field", subject));
    if (!reg.name().starts_with('/') || reg.name().find('\0') != std::string::npos || reg.name().size() >= 4096) {
      return fail(Error::invalid("decode file", "field reg.name is not an absolute path", subject));
    }
    auto file = std::make_shared<RegularFile>();
    file->path = file->open_path = reg.name();
    file->mode = reg.mode(), file->size = reg.size();
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

  void validate(const model::Application&, const model::OpenDescription& description,
                Diagnostics& diagnostics) const override {
    const auto& file = *description.state.as<RegularFile>();
    const auto refuse = [&](std::string problem, std::string advice) {
      diagnostics.refuse("file " + file.path, std::move(problem), std::move(advice));
    };
    if (file.ghost.value != 0) {
      const auto directory = std::filesystem::path(file.path).parent_path();
      if (access(directory.c_str(), F_OK) != 0)
        refuse("its directory does not exist, and the unlinked file must be made in it for a moment",
               "create " + directory.string());
      return;
    }
    const auto& path = file.link_remap.empty() ? file.path : file.link_remap;
    struct stat now{};
    if (lstat(path.c_str(), &now) != 0) {
      refuse(fmt::format("it cannot be found: {}", std::strerror(errno)),
             "put the file back, or restore where it exists");
      return;
    }
    if (file.mode != 0 && (now.st_mode & S_IFMT) != (file.mode & S_IFMT))
      refuse("it is of another type than at the dump", "put the file back");
    if (!S_ISREG(now.st_mode)) return;
    if (file.size != 0 && static_cast<uint64_t>(now.st_size) != file.size) {
      refuse(fmt::format("it has changed since the dump: its size is {}, it was {}", now.st_size, file.size),
             "put back the file as it was at the dump");
    } else if (!file.build_id.empty() && read_build_id(path) != file.build_id) {
      refuse("it has changed since the dump: it has another build id", "put back the program as it was at the dump");
    }
  }

  void contribute(plan::Stage stage, const model::Application& application, plan::Sink& sink) const override {
    for (const auto& [id, object] : application.objects) {
      const auto* ghost = object.as<GhostFile>();
      if (ghost == nullptr) continue;
      if (stage == plan::Stage::prepare) make_ghost(*ghost, sink);
      if (stage == plan::Stage::settle) remove_ghost(*ghost, sink);
    }
    std::set<std::string> done;
    for (const auto& [id, description] : application.descriptions) {
      const auto* file = description.state.as<RegularFile>();
      if (file == nullptr || file->link_remap.empty() || !done.insert(file->link_remap).second) continue;
      const auto link = plan::text(file->link_remap), name = plan::text(file->open_path);
      if (stage == plan::Stage::prepare && file->open_path != file->link_remap) {
        sink.perform("link " + file->open_path, "", {call(SYS_linkat, AT_FDCWD, link, AT_FDCWD, name, 0)});
      }
      if (stage == plan::Stage::settle) {
        if (file->open_path != file->link_remap)
          sink.perform("unlink " + file->open_path, "", {call(SYS_unlinkat, AT_FDCWD, name, 0)});
        // Only a restore that succeeds has used the link up.
        sink.perform("unlink " + file->link_remap, std::string(plan::only_on_success),
                     {call(SYS_unlinkat, AT_FDCWD, link, 0)});
      }
    }
  }

  // ---- restore

  bool seekable() const override { return true; }
  bool reopenable() const override { return true; }

  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      const auto& description = *placement.description;
      const uint32_t flags = reopen_flags(description.flags);
      sink.add(plan::Open{path_of(description), flags, 0, placement.fd, description.id});
      // open(2) ignores O_ASYNC: it works by fcntl only.
      if ((description.flags & O_ASYNC) != 0) {
        sink.perform("status flags", "",
                     {call(SYS_fcntl, placement.fd, F_SETFL,
                           description.flags & (O_APPEND | O_NONBLOCK | O_ASYNC | O_DIRECT | O_NOATIME))});
      }
    }
    return {};
  }

 private:
  Status capture_unlinked(CaptureContext& context, const DescriptorProbe& probe, RegularFile& file) const {
    if (!S_ISREG(file.mode) && !S_ISDIR(file.mode)) {
      context.diagnostics.refuse(probe.subject, "it is unlinked, and neither a regular file nor a directory",
                                 "nothing can be done: its content cannot be saved");
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
    bool fresh = false;
    file.ghost = context.object(fmt::format("ghost {}:{}", probe.stat.st_dev, probe.stat.st_ino), fresh);
    if (fresh) {
      auto ghost = std::make_shared<GhostFile>(TRY(capture_ghost(probe)));
      ghost->path = file.path;
      context.application.objects[file.ghost] = {std::move(ghost)};
    }
    return {};
  }

  /// The file has a name somewhere, but not this one: it gets one beside it.
  Status remap(CaptureContext& context, const DescriptorProbe& probe, RegularFile& file) const {
    if (!probe.link.ends_with(deleted)) {
      context.diagnostics.refuse(probe.subject,
                                 "its path leads to another file: something is mounted over it, or it was replaced",
                                 "files hidden by mounts cannot be restored");
      return {};
    }
    if (!context.policy.link_remap) {
      context.diagnostics.refuse(probe.subject, "its name is gone, but it lives on under another one",
                                 "pass --link-remap, which gives it a temporary name");
      return {};
    }
    bool fresh = false;
    const ObjectId id = context.object(fmt::format("remap {}:{}", probe.stat.st_dev, probe.stat.st_ino), fresh);
    file.link_remap = (std::filesystem::path(file.path).parent_path() / fmt::format("link_remap.{}", id)).string();
    if (!fresh) return {};
    if (linkat(AT_FDCWD, probe.proc_path.c_str(), AT_FDCWD, file.link_remap.c_str(), AT_SYMLINK_FOLLOW) != 0) {
      return fail_errno("link", probe.subject + " as " + file.link_remap);
    }
    context.on_rollback([link = file.link_remap] { unlink(link.c_str()); });
    return {};
  }

  static Status encode_unlinked(const model::Application& application, const model::OpenDescription& description,
                                const RegularFile& file, image::FileRecords& records) {
    remap_file_path_entry entry;
    entry.set_orig_id(description.id.value), entry.set_remap_id(file.ghost.value), entry.set_remap_type(GHOST);
    TRY(TRY(records.side("remap-fpath"))->append(entry));
    // Several descriptions may share a ghost: the first of them writes its image.
    for (const auto& [id, other] : application.descriptions) {
      const auto* sharing = other.state.as<RegularFile>();
      if (sharing == nullptr || sharing->ghost != file.ghost) continue;
      if (id != description.id) return {};
      break;
    }
    const auto& ghost = *application.objects.at(file.ghost).as<GhostFile>();
    return encode_ghost(ghost, *TRY(records.side("ghost-file-{}", file.ghost.value)));
  }

  /// CRIU wants the remap to be another regular file entry.
  static Status encode_remap(const model::OpenDescription& description, const RegularFile& file,
                             image::FileRecords& records) {
    remap_file_path_entry entry;
    const uint32_t remap_id = description.id.value | 0x40000000;
    entry.set_orig_id(description.id.value), entry.set_remap_id(remap_id), entry.set_remap_type(LINKED);
    TRY(TRY(records.side("remap-fpath"))->append(entry));
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
      for (const auto& other : records.files) {
        if (other.id() == remap.remap_id() && other.has_reg()) file.link_remap = other.reg().name();
      }
      if (!file.link_remap.starts_with('/'))
        return fail(Error::invalid("decode file", "the link it is remapped to is not in files.img", subject));
      file.open_path = free_name(file.path) ? file.path : file.link_remap;
      return {};
    }
    if (remap.remap_type() != GHOST)
      return fail(Error::unsupported("decode file", "it is a file of /proc of a dead task", subject));
    file.ghost = ObjectId{remap.remap_id()};
    auto& object = application.objects[file.ghost];
    if (!object.value) {
      auto ghost = std::make_shared<GhostFile>(TRY(decode_ghost(records.directory(), remap.remap_id())));
      ghost->path = free_name(file.path) ? file.path : fmt::format("{}.stasis-ghost-{}", file.path, remap.remap_id());
      object = {std::move(ghost)};
    }
    const auto* ghost = object.as<GhostFile>();
    if (ghost == nullptr)
      return fail(Error::invalid("decode file", fmt::format("object {} is no ghost file", remap.remap_id()), subject));
    file.open_path = ghost->path;
    return {};
  }

  static bool free_name(const std::string& path) {
    struct stat ignored{};
    return lstat(path.c_str(), &ignored) != 0 && errno == ENOENT;
  }
};

}  // namespace

bool RegularFile::equals(const model::KindValue& other) const {
  const auto* file = dynamic_cast<const RegularFile*>(&other);
  return file != nullptr && path == file->path && mode == file->mode && size == file->size &&
         build_id == file->build_id && (ghost.value != 0) == (file->ghost.value != 0) &&
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

uint32_t reopen_flags(uint32_t flags) {
  flags &= ~static_cast<uint32_t>(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_CLOEXEC | O_ASYNC);
  if ((flags & tmpfile_bit) != 0) flags &= ~static_cast<uint32_t>(O_TMPFILE);
  return flags | O_NOCTTY;
}

const FileRoom& regular_file_room() {
  static const RegularFileRoom room;
  return room;
}

}  // namespace stasis::resource
