#include "resource/memory_mappings.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <string_view>

#include "resource/io_uring.h"

namespace stasis::resource {
namespace {

using namespace std::string_view_literals;

struct AdviceFlag {
  std::string_view flag;  // in VmFlags (Documentation/filesystems/proc.rst)
  int advice;             // madvise(2)
};
constexpr AdviceFlag advice_flags[] = {
    {"sr", MADV_SEQUENTIAL}, {"rr", MADV_RANDOM},   {"dc", MADV_DONTFORK},   {"dd", MADV_DONTDUMP},
    {"mg", MADV_MERGEABLE},  {"hg", MADV_HUGEPAGE}, {"nh", MADV_NOHUGEPAGE}, {"wf", MADV_WIPEONFORK},
};

constexpr std::string_view write_protected = "uw";

struct Refused {
  std::string_view flag, problem;
};
/// State of a VMA that is somebody else's as well: a device's or another descriptor's.
constexpr Refused refused_flags[] = {
    {"ss", "a shadow stack: its protection cannot be rebuilt"},
    {"um",
     "watched by a userfaultfd, whose handler cannot be saved; after a restore with --lazy-pages, when lazy-pages has "
     "ended, it is not any more"},
    {write_protected, write_protected_problem},
    {"ui", "watched by a userfaultfd, whose handler cannot be saved"},
    {"pf", "memory of a device: only its driver knows what is in it"},
    {"io", "memory of a device: only its driver knows what is in it"},
};

Classified refuse(std::string problem) { return {VmaKind::unsupported, std::move(problem)}; }

/// Names in brackets and what they mean; nothing for other names.
Classified classify_special(const kernel::MapsEntry& vma) {
  const std::string_view path = vma.path;
  if (path == "[vdso]") return {VmaKind::vdso, {}};
  if (path == "[vvar]" || path == "[vvar_vclock]") return {VmaKind::vvar, {}};
  if (path == "[vsyscall]") return {VmaKind::vsyscall, {}};
  if (path == "[uprobes]") return refuse("instructions that a uprobe has moved: remove the probe first");
  if (path.starts_with("[anon_shmem:")) return {VmaKind::shared_segment, {}};
  if (path == "[heap]" || path.starts_with("[stack") || path.starts_with("[anon:")) return {VmaKind::anonymous, {}};
  return refuse("a special mapping of the kernel that stasis does not know");
}

Classified classify_name(const kernel::MapsEntry& vma) {
  const std::string_view path = vma.path;
  if (path.starts_with('[')) return classify_special(vma);
  const bool unlinked = path.ends_with(" (deleted)");
  const bool hidden_device = vma.device_major == 0;  // tmpfs, hugetlbfs and other file systems without a disk
  if (hidden_device && unlinked && path.starts_with("/SYSV") && vma.shared) return {VmaKind::system_v, {}};
  if (vma.inode == 0)
    return path.empty() ? Classified{VmaKind::anonymous, {}}
                        : refuse("a special mapping of the kernel that stasis does not know");
  if (hidden_device && path.starts_with("/[aio]")) {
    if (vma.offset == 0 && vma.protection == (PROT_READ | PROT_WRITE)) return {VmaKind::aio_ring, {}};
    return refuse("a part of the ring of an asynchronous I/O context, or protected");
  }
  if (hidden_device && path.starts_with("/secretmem"))
    return refuse("secret memory (memfd_secret), which nobody but the program can read");
  if (path.starts_with("socket:")) return {VmaKind::packet_rings, {}};
  if (path == "anon_inode:[io_uring]") {
    constexpr uint64_t completions = 0x8000000;  // IORING_OFF_CQ_RING: the same as 0
    if (vma.shared && (vma.offset == 0 || vma.offset == completions || vma.offset == uring::offset_of_entries))
      return {VmaKind::io_uring, {}};
    return refuse("a part of an io_uring's queues, or a ring of buffers of its");
  }
  if (path.starts_with("anon_inode:")) return refuse("memory shared with a kernel object (a ring) cannot be saved");
  const bool huge = vma.vm_flags.contains("ht");
  if (huge && path == "/anon_hugepage (deleted)")
    return {vma.shared ? VmaKind::shared_segment : VmaKind::anonymous, {}};
  if (vma.shared && hidden_device && path == "/dev/zero (deleted)") return {VmaKind::shared_segment, {}};
  return {VmaKind::file, {}};
}

model::Backing backing_of(VmaKind kind, bool shared) {
  switch (kind) {
    case VmaKind::anonymous:
      return model::Backing::private_anonymous;
    case VmaKind::file:
    case VmaKind::packet_rings:
      return shared ? model::Backing::shared_file : model::Backing::private_file;
    case VmaKind::shared_segment:
    case VmaKind::system_v:
      return model::Backing::shared_anonymous;
    case VmaKind::aio_ring:
      return model::Backing::aio_ring;
    case VmaKind::io_uring:
      return model::Backing::io_uring;
    case VmaKind::vdso:
      return model::Backing::vdso;
    case VmaKind::vvar:
      return model::Backing::vvar;
    case VmaKind::vsyscall:
    case VmaKind::unsupported:
      break;
  }
  return model::Backing::vsyscall;
}

std::string given_name(std::string_view path) {
  for (const auto prefix : {"[anon:"sv, "[anon_shmem:"sv}) {
    if (path.starts_with(prefix) && path.ends_with(']'))
      return std::string(path.substr(prefix.size(), path.size() - prefix.size() - 1));
  }
  return {};
}

bool has_offset(model::Backing backing) {
  return backing == model::Backing::private_file || backing == model::Backing::shared_file ||
         backing == model::Backing::shared_anonymous || backing == model::Backing::io_uring;
}

}  // namespace

Classified classify(const kernel::MapsEntry& vma, bool tracked) {
  Classified found = classify_name(vma);
  constexpr VmaKind with_content[] = {VmaKind::anonymous, VmaKind::file, VmaKind::shared_segment, VmaKind::system_v,
                                      VmaKind::packet_rings};
  if (std::ranges::find(with_content, found.kind) == std::end(with_content)) return found;
  for (const auto& [flag, problem] : refused_flags) {
    if (tracked && flag == write_protected) continue;
    if (vma.vm_flags.contains(flag)) return refuse(std::string(problem));
  }
  return found;
}

model::Mapping mapping_of(const kernel::MapsEntry& vma, VmaKind kind) {
  const auto has = [&](std::string_view flag) { return vma.vm_flags.contains(flag); };
  model::Mapping mapping;
  mapping.range = vma.range;
  mapping.protection = vma.protection;
  mapping.backing = backing_of(kind, vma.shared);
  if (kind == VmaKind::vdso || kind == VmaKind::vvar || kind == VmaKind::vsyscall || kind == VmaKind::aio_ring)
    return mapping;
  if (has_offset(mapping.backing)) mapping.offset = vma.offset;
  if (has("gd")) mapping.map_flags |= MAP_GROWSDOWN;
  if (has("nr")) mapping.map_flags |= MAP_NORESERVE;
  if (has("dp")) mapping.map_flags |= model::map_droppable;
  if (has("ht") && kind != VmaKind::file) {
    mapping.map_flags |= MAP_HUGETLB | static_cast<uint32_t>(std::countr_zero(vma.kernel_page_size)) << MAP_HUGE_SHIFT;
  }
  mapping.is_heap = vma.path == "[heap]";
  mapping.is_stack = vma.path == "[stack]";
  for (const auto& [flag, advice] : advice_flags) {
    if (has(flag)) mapping.advice.insert(advice);
  }
  mapping.locked = has("lo");
  mapping.locked_on_fault = mapping.locked && has("lf");
  mapping.accounted = has("ac");
  mapping.protection_key = vma.protection_key;
  mapping.sealed = has("sl");
  if (kind != VmaKind::file && kind != VmaKind::io_uring && kind != VmaKind::packet_rings)
    mapping.name = given_name(vma.path);
  mapping.read_only_attach = kind == VmaKind::system_v && !has("mw");
  return mapping;
}

std::vector<model::Mapping> coalesce(std::vector<model::Mapping> mappings) {
  std::vector<model::Mapping> joined;
  for (model::Mapping& next : mappings) {
    if (!joined.empty() && joined.back().range.end == next.range.begin) {
      model::Mapping& before = joined.back();
      model::Mapping alike = next;
      alike.range = before.range;
      alike.guards = before.guards;
      const bool special = next.backing == model::Backing::vdso || next.backing == model::Backing::vvar ||
                           next.backing == model::Backing::vsyscall || next.backing == model::Backing::aio_ring;
      const bool follows = !has_offset(next.backing) || next.offset == before.offset + before.range.size();
      alike.offset = before.offset;
      if (!special && follows && alike == before) {
        before.range.end = next.range.end;
        before.guards.insert(before.guards.end(), next.guards.begin(), next.guards.end());
        continue;
      }
    }
    joined.push_back(std::move(next));
  }
  return joined;
}

}  // namespace stasis::resource
