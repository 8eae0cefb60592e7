#include "memory/page_protocol.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include <fmt/format.h>

#include "image/names.h"

namespace stasis::memory::wire {
namespace {

constexpr std::string_view of_shared_memory = "shmem-";

}  // namespace

std::string Target::suffix() const { return fmt::format("{}{}", kind == shared_memory ? of_shared_memory : "", id); }

std::string Target::file_name() const {
  switch (kind) {
    case pages_file:
      return image::file_name("pages-{}", id);
    case block_table:
      return image::file_name("page-blocks-{}", id);
    default:
      return image::file_name("pagemap-" + suffix());
  }
}

std::optional<Target> decode_target(uint64_t encoded) {
  constexpr uint8_t old_tasks[] = {10, 11, 16, 17}, old_shared[] = {27, 28, 29, 32, 33, 34};
  const auto number = static_cast<uint8_t>(encoded);
  Target target{static_cast<Target::Kind>(number), encoded >> 8};
  if (std::ranges::find(old_tasks, number) != std::end(old_tasks)) target.kind = Target::task;
  if (std::ranges::find(old_shared, number) != std::end(old_shared)) target.kind = Target::shared_memory;
  switch (target.kind) {
    case Target::shared_memory:
      return target;  // an inode's number, or the id of a System V segment, which may be 0
    case Target::task:
      return target.id > 0 && target.id <= INT32_MAX ? std::optional(target) : std::nullopt;
    case Target::pages_file:
    case Target::block_table:
      return target.id > 0 && target.id <= UINT32_MAX ? std::optional(target) : std::nullopt;
  }
  return std::nullopt;
}

std::optional<Target> target_of_file(std::string_view file) {
  constexpr std::pair<std::string_view, Target::Kind> kinds[] = {{"pagemap-{}", Target::task},
                                                                 {"pagemap-shmem-{}", Target::shared_memory},
                                                                 {"pages-{}", Target::pages_file},
                                                                 {"page-blocks-{}", Target::block_table}};
  const auto parsed = image::parse_name(file);
  if (!parsed || !parsed->id) return std::nullopt;
  for (const auto& [pattern, kind] : kinds) {
    if (parsed->kind->pattern == pattern) return Target{kind, *parsed->id};
  }
  return std::nullopt;
}

std::optional<Target> target_of(std::string_view suffix) {
  return target_of_file(image::file_name("pagemap-" + std::string(suffix)));
}

Header header_of(const image::PageEntry& entry, const Target& target) {
  const uint32_t flags = entry.flags | (entry.shared_with_parent ? shared_with_parent : 0);
  return {.command = add_flagged | flags << flag_shift,
          .count = entry.range.size() / page_size,
          .address = entry.range.begin,
          .target = target.encoded()};
}

Result<std::optional<Header>> next_header(Stream& stream) {
  Header header;
  if (!TRY(stream.read_or_end({reinterpret_cast<uint8_t*>(&header), sizeof header}))) return std::nullopt;
  return header;
}

}  // namespace stasis::memory::wire
