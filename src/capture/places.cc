#include "capture/places.h"

#include <sys/mman.h>

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "capture/arch/x86_64/task_code.h"
#include "kernel/process.h"

namespace stasis::capture {
namespace {

constexpr uint64_t lowest_address = 0x10000;                           // vm.mmap_min_addr
constexpr uint64_t highest_address = (uint64_t{1} << 47) - page_size;  // TASK_SIZE without 5-level paging
constexpr uint64_t generous_margin = uint64_t{2} << 20, least_margin = page_size;

/// The highest hole that holds `size` with this margin on either side.
std::optional<AddressRange> highest_gap(const std::vector<Occupied>& occupied, uint64_t size, uint64_t margin) {
  uint64_t above = highest_address;
  bool above_grows_down = true;  // whatever lies there
  for (auto entry = occupied.rbegin();; ++entry) {
    const bool last = entry == occupied.rend();
    const uint64_t below = last ? lowest_address : entry->range.end;
    if (!above_grows_down && below < above && above - below >= size + 2 * margin) {
      const uint64_t end = above - margin;
      return AddressRange{end - size, end};
    }
    if (last) return std::nullopt;
    if (entry->range.begin < above) {
      above = entry->range.begin;
      above_grows_down = entry->is_stack;
    }
  }
}

/// The last stub_space bytes, or the last but one …, that are all zero. Stubs that earlier dumps left behind when they
/// were killed are passed by: a stopped task may still be inside.
std::optional<uint64_t> zero_tail(ByteView page) {
  for (uint64_t at = page.size(); at >= stub_space; at -= stub_space) {
    const auto part = page.subspan(at - stub_space, stub_space);
    if (std::all_of(part.begin(), part.end(), [](uint8_t byte) { return byte == 0; })) return at - stub_space;
  }
  return std::nullopt;
}

}  // namespace

std::vector<Occupied> occupied_by(const std::vector<kernel::MapsEntry>& maps) {
  std::vector<Occupied> occupied;
  occupied.reserve(maps.size());
  for (const auto& entry : maps) {
    const bool code = (entry.protection & PROT_EXEC) != 0 && !entry.shared && entry.path != "[vsyscall]";
    occupied.push_back({entry.range, entry.path == "[stack]", entry.path == "[vdso]", code});
  }
  return occupied;
}

std::vector<Occupied> occupied_by(const model::AddressSpace& space) {
  using model::Backing;
  std::vector<Occupied> occupied;
  occupied.reserve(space.mappings.size());
  for (const auto& mapping : space.mappings) {
    const bool is_private = mapping.backing == Backing::private_file || mapping.backing == Backing::private_anonymous ||
                            mapping.backing == Backing::vdso;
    occupied.push_back({mapping.range, mapping.is_stack || (mapping.map_flags & MAP_GROWSDOWN) != 0,
                        mapping.backing == Backing::vdso, is_private && (mapping.protection & PROT_EXEC) != 0});
  }
  return occupied;
}

Result<AddressRange> find_gap(const std::vector<Occupied>& occupied, uint64_t size) {
  for (const uint64_t margin : {generous_margin, least_margin}) {
    if (const auto gap = highest_gap(occupied, size, margin)) return *gap;
  }
  return fail(
      Error::unsupported("find room for the agent", fmt::format("no hole of {} bytes in the address space", size)));
}

Result<uint64_t> find_stub_place(pid_t pid, const std::vector<Occupied>& occupied) {
  Bytes page(page_size);
  const auto try_mapping = [&](const Occupied& entry) -> std::optional<uint64_t> {
    const uint64_t last_page = entry.range.end - page_size;
    if (!kernel::read_memory(pid, RemoteAddress{last_page}, page)) return std::nullopt;
    const auto offset = zero_tail(page);
    return offset ? std::optional(last_page + *offset) : std::nullopt;
  };
  for (const bool vdso : {true, false}) {
    for (const auto& entry : occupied) {
      if (!entry.holds_private_code || entry.is_vdso != vdso) continue;
      if (const auto address = try_mapping(entry)) return *address;
    }
  }
  return fail(Error::unsupported("find room for the bootstrap stub", "no executable mapping ends in unused bytes",
                                 fmt::format("task {}", pid)));
}

}  // namespace stasis::capture
