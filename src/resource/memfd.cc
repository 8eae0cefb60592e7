// Files of memfd_create(2), and shared memory that somebody has opened through /proc/PID/map_files: the same kind of
// file under another name, which is restored as one of memfd_create, as CRIU does. All that shows is its link.
//
// The file itself (memfd.img, its pages as pagemap-shmem-<id>.img, as CRIU has it) stands apart from the descriptions
// that refer to it. One process makes it, fills it, seals it, and opens every description through /proc/self/fd.
#include "resource/memfd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel/huge_pages.h"
#include "memory/increments.h"
#include "resource/descriptors.h"
#include "resource/extended_attributes.h"
#include "resource/regular_file.h"
#include "resource/stored_file.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::ResultOf;

constexpr std::string_view prefix = "/memfd:", suffix = " (deleted)", shared_memory = "/dev/zero (deleted)",
                           huge_shared_memory = "/anon_hugepage (deleted)";
constexpr size_t longest_name = 249;  ///< NAME_MAX less the prefix (memfd_create(2))

/// CRIU counts memfds apart from other objects: their ids have a bit here that no other has.
constexpr uint32_t memfd_bit = 0x40000000;
constexpr uint32_t record_id(ObjectId inode) { return inode.value & ~memfd_bit; }

/// The file.
struct MemfdInode final : model::KindValue {
  std::string name;
  uint32_t uid = 0, gid = 0, mode = 0, seals = 0;
  uint64_t size = 0;
  uint32_t huge_page_order = 0;  ///< of hugetlbfs: log2 of the size of its pages
  ExtendedAttributes attributes;
  std::shared_ptr<UniqueFd> file;         ///< capture: open for reading
  std::vector<memory::StoredRun> stored;  ///< restore: where its pages lie

  std::string_view kind() const override { return "memfd inode"; }
  bool equals(const model::KindValue& other) const override {
    const auto* inode = dynamic_cast<const MemfdInode*>(&other);
    return inode != nullptr && name == inode->name && uid == inode->uid && gid == inode->gid && mode == inode->mode &&
           seals == inode->seals && size == inode->size && huge_page_order == inode->huge_page_order &&
           attributes == inode->attributes;
  }
  std::string describe() const override {
    return fmt::format("memfd '{}' of {} bytes{}, seals {:#x}", name, size,
                       huge_page_order == 0 ? "" : fmt::format(" in pages of {}", page_bytes()), seals);
  }
  uint64_t page_bytes() const { return huge_page_order == 0 ? page_size : uint64_t{1} << huge_page_order; }
};

struct MemfdFile final : model::KindValue {
  ObjectId inode;
  std::string_view kind() const override { return "memfd"; }
  bool equals(const model::KindValue& other) const override {
    const auto* file = dynamic_cast<const MemfdFile*>(&other);
    return file != nullptr && inode == file->inode;
  }
  std::string describe() const override { return fmt::format("memfd {}", inode); }
};

class MemfdRoom final : public FileRoom {
 public:
  std::string_view kind() const override { return "memfd"; }
  ObjectId made_together(const model::OpenDescription& description) const override {
    return description.state.as<MemfdFile>()->inode;
  }
  bool seekable() const override { return true; }

  bool recognises(const DescriptorProbe& probe) const override {
    return S_ISREG(probe.stat.st_mode) && (probe.link.starts_with(prefix) || is_shared_memory(probe.link));
  }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    auto made = std::make_shared<MemfdFile>();
    bool fresh = false;
    const auto id = context.object(fmt::format("memfd {}:{}", probe.stat.st_dev, probe.stat.st_ino), fresh);
    made->inode = ObjectId{id.value | memfd_bit};
    if (!fresh) return model::KindState{std::move(made)};
    context.application.objects[made->inode] = {TRY(capture_inode(probe))};
    if (is_shared_memory(probe.link) && probe.fd < 0) {
      context.diagnostics.refuse(probe.subject, "it is a private mapping of shared memory which nobody has open now",
                                 "keep the descriptor open, or close the mapping before the dump");
    }
    return model::KindState{std::move(made)};
  }

  Status encode(const model::Application& application, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    const auto& file = *description.state.as<MemfdFile>();
    image::FileRecord record;
    record.set_type(MEMFD), record.set_id(description.id.value);
    auto& memfd = *record.mutable_memfd();
    memfd.set_id(description.id.value), memfd.set_flags(description.flags), memfd.set_pos(description.position);
    memfd.set_inode_id(record_id(file.inode));
    encode_owner(description.owner, *memfd.mutable_fown());
    records.files.push_back(std::move(record));
    return is_first(application, description) ? encode_inode(application, file.inode, records) : Status{};
  }

  bool decodes(const image::FileRecords&, const image::FileRecord& record) const override {
    return record.type() == MEMFD;
  }

  Result<model::OpenDescription> decode(const image::FileRecords& records, const image::FileRecord& record,
                                        model::Application& application) const override {
    const std::string subject = fmt::format("files.img, file {}", record.id());
    if (!record.has_memfd())
      return fail(Error::invalid("decode memfd", "the entry of type MEMFD has no memfd field", subject));
    const auto& memfd = record.memfd();
    auto made = std::make_shared<MemfdFile>();
    made->inode = ObjectId{memfd.inode_id() | memfd_bit};
    auto& object = application.objects[made->inode];
    if (!object.value) object = {TRY(decode_inode(records, memfd.inode_id(), subject))};
    if (object.as<MemfdInode>() == nullptr)
      return fail(Error::invalid("decode memfd", fmt::format("object {} is no memfd", made->inode), subject));
    model::OpenDescription description;
    description.id = ObjectId{record.id()}, description.flags = memfd.flags(), description.position = memfd.pos();
    description.owner = decode_owner(memfd.fown());
    description.state = {std::move(made)};
    return description;
  }

  Status make(const model::Application& application, std::span<const plan::Placement> placements,
              plan::Sink& sink) const override {
    const auto& inode =
        *application.objects.at(placements.front().description->state.as<MemfdFile>()->inode).as<MemfdInode>();
    const int file = placements.front().scratch, pages = file + 1;
    const StoredFile wanted{inode.describe(), inode.name, inode.size, inode.huge_page_order, inode.stored};
    add_stored_file(wanted, file, pages, sink);
    plan::Perform perform{"descriptors of " + inode.describe(), "", {}, {}, {}};
    auto& calls = perform.calls;
    calls.push_back(call(SYS_fchown, file, inode.uid, inode.gid));
    calls.push_back(call(SYS_fchmod, file, inode.mode & 07777));
    std::ranges::move(set_extended_attributes(inode.attributes, file), std::back_inserter(calls));
    // The file that memfd_create returns does not count as a writer, one opened anew does (fs/file_table.c,
    // alloc_file_pseudo), and nobody can execute it then: the first that is open for both keeps it.
    const auto original = std::ranges::find_if(placements, [](const plan::Placement& placement) {
      return (placement.description->flags & (O_ACCMODE | O_PATH)) == O_RDWR;
    });
    for (auto placement = placements.begin(); placement != placements.end(); ++placement) {
      perform.creates.push_back({placement->fd, placement->description->id});
      if (placement == original) continue;
      const uint32_t flags = reopen_flags(placement->description->flags);
      calls.push_back(call(SYS_openat, AT_FDCWD, plan::text(fmt::format("/proc/self/fd/{}", file)), flags, 0));
      calls.push_back(call(plan::Call::move_fd, ResultOf{-1}, placement->fd, 0));
    }
    // Last: F_SEAL_WRITE would forbid what comes before it. Without MFD_ALLOW_SEALING a file has F_SEAL_SEAL.
    calls.push_back(call(SYS_fcntl, file, F_ADD_SEALS, inode.seals));
    if (original != placements.end()) {
      calls.push_back(call(SYS_lseek, file, 0, SEEK_SET));  // filling has moved it
      calls.push_back(call(SYS_fcntl, file, F_SETFL, original->description->flags));
      calls.push_back(call(SYS_dup3, file, original->fd, 0));
    }
    sink.add(std::move(perform));
    sink.add(plan::Close{file});
    return {};
  }

 private:
  static bool is_shared_memory(std::string_view link) { return link == shared_memory || link == huge_shared_memory; }

  static Result<std::shared_ptr<MemfdInode>> capture_inode(const DescriptorProbe& probe) {
    auto inode = std::make_shared<MemfdInode>();
    inode->name = probe.link.starts_with(prefix) ? probe.link.substr(prefix.size()) : probe.link.substr(1);
    if (inode->name.ends_with(suffix)) inode->name.resize(inode->name.size() - suffix.size());
    inode->uid = probe.stat.st_uid, inode->gid = probe.stat.st_gid, inode->mode = probe.stat.st_mode;
    inode->size = static_cast<uint64_t>(probe.stat.st_size);
    inode->file = std::make_shared<UniqueFd>(open(probe.proc_path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!inode->file->valid()) return fail_errno("open", probe.subject);
    inode->huge_page_order = kernel::huge_page_order(inode->file->get());
    const int seals = fcntl(inode->file->get(), F_GET_SEALS);
    inode->seals = seals < 0 ? 0 : static_cast<uint32_t>(seals);
    inode->attributes = TRY_IN("look at " + probe.subject, read_extended_attributes(probe.proc_path));
    return inode;
  }

  static bool is_first(const model::Application& application, const model::OpenDescription& description) {
    for (const auto& [id, other] : application.descriptions) {
      const auto* sharing = other.state.as<MemfdFile>();
      if (sharing != nullptr && sharing->inode == description.state.as<MemfdFile>()->inode) return id == description.id;
    }
    return true;
  }

  static Status encode_inode(const model::Application& application, ObjectId id, image::FileRecords& records) {
    const auto& inode = *application.objects.at(id).as<MemfdInode>();
    memfd_inode_entry entry;
    entry.set_name(inode.name), entry.set_uid(inode.uid), entry.set_gid(inode.gid), entry.set_size(inode.size);
    const uint32_t number = record_id(id);
    entry.set_shmid(number), entry.set_seals(inode.seals), entry.set_inode_id(number), entry.set_mode(inode.mode);
    encode_extended_attributes(inode.attributes, *entry.mutable_attributes());
    if (inode.huge_page_order != 0) entry.set_hugetlb_flag(kernel::huge_page_flags(inode.huge_page_order, MFD_HUGETLB));
    TRY(TRY(records.side("memfd"))->append(entry));
    if (!inode.file) return fail(Error::internal("save memfd", "its content is not at hand"));
    return store_file(records, number, inode.file->get(), inode.size, inode.describe());
  }

  static Result<std::shared_ptr<MemfdInode>> decode_inode(const image::FileRecords& records, uint32_t id,
                                                          const std::string& subject) {
    for (const auto& entry : TRY(records.all<memfd_inode_entry>("memfd"))) {
      if (entry.inode_id() != id) continue;
      auto inode = std::make_shared<MemfdInode>();
      inode->name = entry.name();
      if (inode->name.size() > longest_name || inode->name.find('\0') != std::string::npos ||
          entry.size() > INT64_MAX) {
        return fail(Error::invalid("decode memfd", "its name or size is out of range", subject));
      }
      const auto order = kernel::huge_page_order_of(entry.hugetlb_flag(), MFD_HUGETLB);
      if (!order)
        return fail(Error::invalid(
            "decode memfd", fmt::format("hugetlb_flag {:#x} is no size of pages", entry.hugetlb_flag()), subject));
      inode->huge_page_order = *order;
      if (inode->huge_page_order != 0 && entry.size() % inode->page_bytes() != 0)
        return fail(Error::invalid("decode memfd",
                                   fmt::format("{} bytes are no whole pages of {}", entry.size(), inode->page_bytes()),
                                   subject));
      inode->uid = entry.uid(), inode->gid = entry.gid(), inode->size = entry.size(), inode->seals = entry.seals();
      inode->attributes = TRY(decode_extended_attributes(entry.attributes(), subject));
      inode->mode = entry.has_mode() ? entry.mode() : (S_IFREG | 0777);
      inode->stored = TRY(memory::read_pagemap(records.directory(), fmt::format("shmem-{}", entry.shmid())));
      return inode;
    }
    return fail(Error::invalid("decode memfd", fmt::format("memfd {} is not in memfd.img", id), subject));
  }
};

}  // namespace

const FileRoom& memfd_room() {
  static const MemfdRoom room;
  return room;
}

}  // namespace stasis::resource
