// Reading pagemaps: everything in them is hostile. A page that is "in the parent" lies in the images that the "parent"
// link of the directory leads to, or in their parents.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "base/checked.h"
#include "image/names.h"
#include "image/page_sink.h"
#include "memory/block_file.h"
#include "memory/page_protocol.h"
#include "memory/page_release.h"
#include "memory/pages.h"
#include "memory/sent_pages.h"
#include "pagemap.pb.h"

namespace stasis::memory {
namespace {

using image::page_flag::in_parent, image::page_flag::lazy, image::page_flag::present;
constexpr size_t parents_limit = 256;  // a path of "parent/" has to stay below PATH_MAX

struct Level {
  const image::Directory& directory;
  std::string prefix;  // "", "parent/", "parent/parent/" …
};

std::unexpected<Error> reject(const std::string& where, std::string cause) {
  return fail(Error::invalid("read pagemap", std::move(cause), where));
}

struct Unresolved {
  StoredRun run;
  bool in_parent = false;
};

Result<Unresolved> parse(const pagemap_entry& entry, const std::string& where) {
  const uint64_t pages = entry.has_nr_pages() ? entry.nr_pages() : entry.compat_nr_pages();
  const auto size = checked_multiply(pages, page_size);
  const auto end = size ? checked_add(entry.vaddr(), *size) : std::nullopt;
  if (entry.vaddr() % page_size != 0)
    return reject(where, fmt::format("field vaddr: {:#x} is no page boundary", entry.vaddr()));
  if (pages == 0 || !end)
    return reject(where, fmt::format("field nr_pages: {} pages at {:#x} are impossible", pages, entry.vaddr()));
  // Before flags there were only pages in the file and, with a field of their own, pages in the parent.
  uint32_t flags = entry.has_flags() ? entry.flags() : present;
  if (entry.in_parent()) flags = (entry.has_flags() ? entry.flags() : 0) | in_parent;
  if ((flags & in_parent) != 0 && (flags & present) != 0)
    return reject(where, "field flags: both here and in the parent");
  Unresolved parsed;
  parsed.run.range = {entry.vaddr(), *end};
  // A page server of criu leaves our flag where it has come.
  parsed.run.shared_with_parent = entry.shared_with_parent() || (flags & wire::shared_with_parent) != 0;
  parsed.run.zero = (flags & (in_parent | lazy | present)) == 0;
  parsed.run.elsewhere = (flags & (in_parent | lazy | present)) == lazy;
  parsed.in_parent = (flags & in_parent) != 0;
  return parsed;
}

std::vector<StoredRun> plain(std::vector<Unresolved> runs) {
  std::vector<StoredRun> result;
  result.reserve(runs.size());
  for (auto& run : runs) result.push_back(std::move(run.run));
  return result;
}

struct Entries {
  uint32_t pages_id = 0;
  std::vector<Unresolved> runs;
  uint64_t size = 0;  ///< of the pages that are here
};

Result<Entries> entries(const Level& level, const std::string& file) {
  auto reader = TRY(level.directory.read(file));
  pagemap_head head;
  if (!TRY(reader.next(head))) return reject(level.prefix + reader.name(), "it is empty: the head is missing");
  Entries found{.pages_id = head.pages_id()};
  const auto target = wire::target_of_file(file);
  const bool is_shared = target && target->kind == wire::Target::shared_memory;
  uint64_t end = 0;
  for (pagemap_entry entry; TRY(reader.next(entry));) {
    auto run = TRY(parse(entry, level.prefix + reader.where()));
    if (run.run.elsewhere && is_shared)
      return reject(level.prefix + reader.where(), "field flags: pages of shared memory cannot come later");
    if (run.run.range.begin < end)
      return reject(level.prefix + reader.where(), "field vaddr: out of order, or overlaps the entry before");
    end = run.run.range.end;
    run.run.directory = level.prefix;
    run.run.pages_id = head.pages_id();
    if (!run.in_parent && run.run.in_file()) {
      run.run.file_offset = found.size;
      found.size += run.run.range.size();  // cannot overflow: the runs are disjoint parts of 64 bits
    }
    found.runs.push_back(std::move(run));
  }
  return found;
}

class Chain {
 public:
  Result<std::vector<StoredRun>> read(const Level& level, const std::string& suffix) {
    struct stat status{};
    if (fstat(level.directory.fd(), &status) < 0) return fail_errno("fstat", level.directory.path());
    if (!visited_.insert({status.st_dev, status.st_ino}).second) {
      return reject(level.prefix, "the chain of parent images leads back to itself");
    }
    if (visited_.size() > parents_limit)
      return reject(level.prefix, fmt::format("more than {} parent images", parents_limit));
    auto runs = TRY(own(level, suffix));
    if (std::ranges::none_of(runs, &Unresolved::in_parent)) return plain(std::move(runs));
    const auto parent = TRY_IN("open the parent images", level.directory.holding("parent/"));
    const auto theirs = TRY(read({parent, level.prefix + "parent/"}, suffix));
    return resolve(level, suffix, std::move(runs), theirs);
  }

 private:
  /// The entries of this level alone.
  Result<std::vector<Unresolved>> own(const Level& level, const std::string& suffix) {
    auto [pages_id, runs, size] = TRY(entries(level, image::file_name("pagemap-" + suffix)));
    const bool in_blocks = TRY(check_size(level, pages_id, size));
    for (Unresolved& run : runs) run.run.in_blocks = in_blocks && !run.in_parent && run.run.in_file();
    return runs;
  }

  /// That the pages file has what is needed of it; whether it is stored in blocks.
  static Result<bool> check_size(const Level& level, uint32_t pages_id, uint64_t needed) {
    if (needed == 0) return false;
    const std::string name = image::file_name("pages-{}", pages_id);
    const auto too_short = [&](uint64_t size) {
      return reject(level.prefix + name, fmt::format("it has {} bytes, but its pagemap speaks of {}", size, needed));
    };
    if (BlockFile::is_one(level.directory, name)) {
      const auto blocks = TRY(BlockFile::open(level.directory, name));
      if (blocks->size() < needed) return too_short(blocks->size());
      return true;
    }
    if (level.directory.encryption()) return reject(level.prefix + name, "it should be encrypted, but is not");
    struct stat status{};
    if (fstatat(level.directory.fd(), name.c_str(), &status, 0) < 0)
      return fail_errno("find the pages", level.prefix + name);
    if (!S_ISREG(status.st_mode)) return reject(level.prefix + name, "not a regular file");
    if (static_cast<uint64_t>(status.st_size) < needed) return too_short(static_cast<uint64_t>(status.st_size));
    return false;
  }

  static Result<std::vector<StoredRun>> resolve(const Level& level, const std::string& suffix,
                                                std::vector<Unresolved> runs, const std::vector<StoredRun>& theirs) {
    std::vector<StoredRun> result;
    auto next = theirs.begin();
    for (auto& [run, is_in_parent] : runs) {
      if (!is_in_parent) {
        result.push_back(std::move(run));
        continue;
      }
      uint64_t at = run.range.begin;
      while (next != theirs.end() && next->range.end <= at) ++next;
      for (auto one = next; at < run.range.end; ++one) {
        if (one == theirs.end() || one->range.begin > at) {
          return reject(fmt::format("{}pagemap-{}.img", level.prefix, suffix),
                        fmt::format("page {:#x} should be in the parent images, but is not", at));
        }
        if (one->elsewhere) {
          return reject(fmt::format("{}pagemap-{}.img", level.prefix, suffix),
                        fmt::format("page {:#x} should be in the parent images, which were left without it", at));
        }
        StoredRun part = *one;
        part.file_offset += at - part.range.begin;
        part.range = {at, std::min(run.range.end, one->range.end)};
        part.shared_with_parent = run.shared_with_parent;
        at = part.range.end;
        result.push_back(std::move(part));
      }
    }
    return result;
  }

  std::set<std::pair<dev_t, ino_t>> visited_;
};

/// Of the images whose names begin so.
Result<std::vector<std::string>> suffixes(const image::Directory& directory, std::string_view prefix) {
  constexpr std::string_view ending = ".img";
  std::vector<std::string> found;
  for (const std::string& file : TRY(directory.list())) {
    if (file.starts_with(prefix) && image::parse_name(file))
      found.push_back(file.substr(prefix.size(), file.size() - prefix.size() - ending.size()));
  }
  return found;
}

}  // namespace

Result<std::vector<StoredRun>> read_pagemap(const image::Directory& directory, const std::string& suffix) {
  if (directory.has(released_marker)) {
    return fail(Error::conflict("read pagemap",
                                "pages of these images have been released: by restore --auto-dedup, or because a newer "
                                "checkpoint needs no more of them (dump --auto-dedup, stasis dedup)",
                                directory.path())
                    .advise("name the newest checkpoint of the chain; what has been restored with --auto-dedup cannot "
                            "be restored again"));
  }
  auto runs = TRY(Chain().read({directory, ""}, suffix));
  for (StoredRun& run : runs) run.through_stasis = run.in_file() && (run.in_blocks || directory.consumes_pages());
  return runs;
}

Result<std::vector<StoredRun>> read_sent_pagemap(const image::Directory& directory, const std::string& suffix) {
  return plain(TRY(entries({directory, ""}, image::file_name(sent_prefix + suffix))).runs);
}

Result<std::vector<std::string>> list_pagemaps(const image::Directory& directory) {
  return suffixes(directory, "pagemap-");
}

Result<std::vector<std::string>> list_sent_pagemaps(const image::Directory& directory) {
  return suffixes(directory, sent_prefix);
}

}  // namespace stasis::memory
