#include "kernel/mapping_flags.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <string_view>

#include "kernel/userfaultfd.h"

namespace stasis::kernel {
namespace {

constexpr std::string_view vsyscall = "[vsyscall]";

// ---- mappings to learn from

/// A page for each flag that a program can give to its memory. What this kernel, or this machine, does not have is left
/// as it was made, and nothing is learnt of it.
class Specimens {
 public:
  Specimens() {
    constexpr int advice[] = {MADV_DONTFORK,   MADV_WIPEONFORK, MADV_DONTDUMP,   MADV_HUGEPAGE,
                              MADV_NOHUGEPAGE, MADV_MERGEABLE,  MADV_SEQUENTIAL, MADV_RANDOM};
    for (const int one : advice) give([one](void* page) { madvise(page, page_size, one); });
    constexpr int protections[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_EXEC};
    for (const int one : protections) give([one](void* page) { mprotect(page, page_size, one); });
    give([](void* page) { mlock(page, page_size); });
    give([](void* page) { mlock2(page, page_size, MLOCK_ONFAULT); });
    for (const int more : {MAP_NORESERVE, MAP_GROWSDOWN}) {
      give([more](void* page) {
        (void)mmap(page, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | more, -1, 0);
      });
    }
    for (const int protection : {PROT_READ, PROT_READ | PROT_WRITE}) {
      give([protection](void* page) {
        (void)mmap(page, page_size, protection, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
      });
    }
    // Who may not write to a file cannot have a mapping that is shared in earnest.
    const UniqueFd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    give([&](void* page) { (void)mmap(page, page_size, PROT_READ, MAP_SHARED | MAP_FIXED, file.get(), 0); });
    give_keys();
    watch();
  }
  Specimens(const Specimens&) = delete;
  Specimens& operator=(const Specimens&) = delete;
  ~Specimens() {
    if (pages_ != MAP_FAILED) munmap(pages_, count * page_size);
    for (const int key : keys_) pkey_free(key);
  }

 private:
  /// To every second page: neighbours with the same flags would be one mapping.
  void give(const std::function<void(void*)>& flag) {
    if (pages_ == MAP_FAILED || next_ >= count) return;
    flag(static_cast<char*>(pages_) + next_ * page_size);
    next_ += 2;
  }
  void give_keys() {
    constexpr int most_keys = 15;
    for (int key = 0; static_cast<int>(keys_.size()) < most_keys && (key = pkey_alloc(0, 0)) > 0;) {
      keys_.push_back(key);
      give([key](void* page) { pkey_mprotect(page, page_size, PROT_READ | PROT_WRITE, key); });
    }
  }
  void watch() {
    UniqueFd fd(static_cast<int>(syscall(userfaultfd_call, userfaultfd_flags)));
    if (!fd.valid()) return;
    watcher_.emplace(std::move(fd));
    if (!watcher_->begin_tracking()) return;
    give([&](void* page) {
      const auto begin = reinterpret_cast<uint64_t>(page);
      (void)watcher_->register_range({begin, begin + page_size});
    });
  }

  static constexpr size_t count = 96;
  void* pages_ = mmap(nullptr, count* page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  size_t next_ = 1;
  std::vector<int> keys_;
  std::optional<Userfaultfd> watcher_;
};

}  // namespace

Result<MappingFlags> MappingFlags::open() {
  MappingFlags flags;
  flags.iterator_ = TRY(BpfIterator::load(
      "mappings", "task_vma", "vma",
      {{{"vm_area_struct", "vm_start"}}, {{"vm_area_struct", "vm_end"}}, {{"vm_area_struct", "vm_flags"}}}));
  const Specimens specimens;
  const auto shown = TRY(read_smaps(getpid()));
  std::vector<FlagNames::Sample> samples;
  auto entry = shown.begin();
  for (const auto& [range, bits] : TRY(flags.ranges(getpid()))) {
    while (entry != shown.end() && entry->range.begin < range.begin) ++entry;
    if (entry != shown.end() && entry->range == range && entry->has_vm_flags)
      samples.push_back({bits, {entry->vm_flags, entry->protection_key}});
  }
  flags.names_ = FlagNames::learn(samples);
  const auto gate = std::ranges::find(shown, vsyscall, &MapsEntry::path);
  if (gate != shown.end()) flags.gate_ = *gate;
  return flags;
}

Result<std::vector<FlaggedRange>> MappingFlags::ranges(pid_t tid) const {
  bpf_iter_link_info whose{};
  whose.task.tid = static_cast<uint32_t>(tid);
  return iterator_.run<FlaggedRange>(whose, fmt::format("thread {}", tid));
}

Result<std::vector<MapsEntry>> MappingFlags::read(pid_t tid) const {
  auto entries = TRY(read_maps(tid));
  // It is nobody's mapping, and the same for all.
  const bool has_gate = !entries.empty() && gate_ && entries.back().range == gate_->range;
  if (has_gate) entries.back() = *gate_;
  const auto flagged = ranges(tid);
  const size_t own = entries.size() - (has_gate ? 1 : 0);
  bool understood = flagged && flagged->size() == own;
  for (size_t index = 0; understood && index < own; ++index) {
    auto& entry = entries[index];
    const auto meaning = names_.of((*flagged)[index].flags);
    understood = meaning && (*flagged)[index].range == entry.range;
    if (!understood) break;
    entry.vm_flags = meaning->names, entry.protection_key = meaning->protection_key, entry.has_vm_flags = true;
  }
  if (understood) return entries;
  return read_smaps(tid);
}

}  // namespace stasis::kernel
