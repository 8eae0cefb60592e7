// What a page server and its clients say to each other: criu's protocol (docs/page-server.md), and a few commands of
// ours for pages in blocks, whose numbers criu does not know, so that it refuses them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "image/page_sink.h"
#include "memory/transfer_stream.h"

namespace stasis::memory::wire {

enum Command : uint16_t {
  add_pages = 1,     ///< bytes follow
  add_hole = 2,      ///< they are in the parent images
  open_quietly = 3,  ///< a memory begins
  open_memory = 4,   ///< the same; answered by one byte: whether the parent images have it
  ask_parent = 5,    ///< answered by 32 bits: whether the parent images have a memory
  add_flagged = 6,   ///< page_flag in the upper half of the command; bytes follow if the pages are present
  get_pages = 7,     ///< answered by add_flagged and the bytes
  // -- ours
  announce_blocks = 0x5301,  ///< version and `sealed`; answered by 32 bits of 0
  store_part = 0x5302,       ///< of a file: `address` is the offset, `count` bytes follow
  // -- the end, answered by 32 bits of 0 when all is stored
  close = 0x1023,
  close_by_force = 0x1024,  ///< the same, where the connection stays open for others
};

/// In front of everything. Numbers are those of the machine, which is little-endian, as criu has it.
struct Header {
  uint32_t command = 0;  ///< and flags in its upper half
  uint32_t padding = 0;
  uint64_t count = 0;  ///< of pages
  uint64_t address = 0;
  uint64_t target = 0;  ///< what it is about: Target, but a pid in get_pages
};
static_assert(sizeof(Header) == 32);

inline constexpr unsigned flag_shift = 16;
/// Beside page_flag, of ours: PageEntry::shared_with_parent. criu stores it as one more flag of the pagemap.
inline constexpr uint32_t shared_with_parent = 1 << 14;

inline constexpr uint64_t blocks_version = 1;
inline constexpr uint64_t largest_part = 1 << 20;  ///< of a file, in bytes

/// A file of the page store.
struct Target {
  enum Kind : uint8_t { task = 1, shared_memory = 2, pages_file = 0x41, block_table = 0x42 };
  Kind kind = task;
  uint64_t id = 0;

  friend bool operator==(const Target&, const Target&) = default;
  uint64_t encoded() const { return id << 8 | kind; }
  bool is_pagemap() const { return kind == task || kind == shared_memory; }
  std::string suffix() const;     ///< of pagemaps: "7", "shmem-3"
  std::string file_name() const;  ///< "pagemap-7.img", "pages-1.img"
};
/// Old versions of criu have other numbers for the two kinds that they know. Nothing: there is no such kind or id.
std::optional<Target> decode_target(uint64_t encoded);
/// The inverse of file_name().
std::optional<Target> target_of_file(std::string_view file);
/// Of a pagemap by its suffix.
std::optional<Target> target_of(std::string_view suffix);

Header header_of(const image::PageEntry&, const Target&);

/// Nothing: the stream has ended.
Result<std::optional<Header>> next_header(Stream&);

template <typename Answer>
Result<Answer> answer_of(Stream& stream) {
  Answer answer{};
  TRY(stream.read({reinterpret_cast<uint8_t*>(&answer), sizeof answer}));
  return answer;
}
/// What is asked by a header alone.
template <typename Answer>
Result<Answer> ask(Stream& stream, const Header& question) {
  TRY(stream.write(bytes_of(question)));
  return answer_of<Answer>(stream);
}

}  // namespace stasis::memory::wire
