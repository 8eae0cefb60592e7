#include "memory/page_receiver.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include <fmt/format.h>

#include "base/checked.h"
#include "memory/increments.h"
#include "memory/local_pages.h"
#include "memory/page_release.h"
#include "memory/pages.h"

namespace stasis::memory {
namespace {

using wire::Header;
using wire::Target;
namespace page_flag = image::page_flag;

/// Page ids of the server: criu counts from there, too, so that none meets one of the client's in one directory.
constexpr uint32_t first_pages_id = 0x10000;

std::unexpected<Error> reject(std::string cause) { return fail(Error::invalid("receive pages", std::move(cause))); }

Result<Target> target_of(const Header& header) {
  const auto target = wire::decode_target(header.target);
  if (!target) return reject(fmt::format("field dst_id: {:#x} is no memory", header.target));
  return *target;
}

Result<Target> pagemap_of(const Header& header) {
  const auto target = TRY(target_of(header));
  if (!target.is_pagemap()) return reject(fmt::format("field dst_id: {:#x} is no pagemap", header.target));
  return target;
}

std::unexpected<Error> explain_existing(Error error, const std::string& file) {
  if (error.errno_value() != EEXIST) return fail(std::move(error));
  return reject(fmt::format("{} is sent twice", file));
}

}  // namespace

struct PageReceiver::Memory {
  Target target;
  std::unique_ptr<image::PageSink> sink;
  uint64_t end = 0;                              ///< of what has come
  std::optional<std::vector<StoredRun>> parent;  ///< what the parent images have of it, once it matters
  size_t next = 0;                               ///< in there

  /// Whether all of the range is in the parent images. Ranges come in order.
  bool in_parent(AddressRange range) {
    while (!range.empty()) {
      while (next < parent->size() && (*parent)[next].range.end <= range.begin) ++next;
      if (next == parent->size() || !(*parent)[next].range.contains(range.begin)) return false;
      range.begin = std::min(range.end, (*parent)[next].range.end);
    }
    return true;
  }
};

struct PageReceiver::File {
  Target target;
  std::string name;
  UniqueFd fd;
  uint64_t size = 0;
};

PageReceiver::PageReceiver(const image::Directory& directory)
    : directory_(directory), last_pages_id_(first_pages_id), buffer_(wire::largest_part) {}
PageReceiver::~PageReceiver() = default;

Status PageReceiver::clear(const image::Directory& directory) {
  return directory.begin([](std::string_view file) { return wire::target_of_file(file) || file == released_marker; });
}

Result<ReceivedPages> PageReceiver::receive(Stream& stream) {
  auto parent = TRY(ParentImages::linked(directory_));
  if (parent) parent_ = TRY(parent->directory().holding(""));
  auto served = serve(stream);
  if (served) return received_;
  memory_.reset();
  file_.reset();
  if (const auto cleared = clear(directory_); !cleared)
    return fail(std::move(served).error().within("what had come could not be removed: " + cleared.error().message()));
  return fail(std::move(served).error());
}

Status PageReceiver::serve(Stream& stream) {
  while (!closed_) {
    const auto header = TRY(wire::next_header(stream));
    if (!header)
      return fail(Error::conflict("receive pages", "the client has gone before everything was sent", stream.peer()));
    if (auto obeyed = obey(*header, stream); !obeyed)
      return fail(std::move(obeyed).error().within(fmt::format("command {:#x} of {}", header->command, stream.peer())));
  }
  return {};
}

Status PageReceiver::obey(const Header& header, Stream& stream) {
  const auto command = static_cast<uint16_t>(header.command);
  const uint32_t flags = header.command >> wire::flag_shift;
  if (flags != 0 && command != wire::add_flagged) return reject("it has flags where there are none");
  switch (command) {
    case wire::ask_parent:
      return stream.write(bytes_of(int32_t{TRY(parent_has(TRY(pagemap_of(header))))}));
    case wire::open_quietly:
      return begin(TRY(pagemap_of(header)));
    case wire::open_memory: {
      const auto target = TRY(pagemap_of(header));
      TRY(begin(target));
      return stream.write(bytes_of(uint8_t{TRY(parent_has(target))}));
    }
    case wire::add_pages:
      return add(header, page_flag::present, stream);
    case wire::add_hole:
      return add(header, page_flag::in_parent, stream);
    case wire::add_flagged:
      return add(header, flags, stream);
    case wire::announce_blocks:
      return announce(header, stream);
    case wire::store_part:
      return store_part(header, stream);
    case wire::close:
    case wire::close_by_force:
      TRY(complete_current());
      closed_ = true;
      return stream.write(bytes_of(int32_t{0}));
    case wire::get_pages:
      return reject("pages are asked for, but this server stores them (--lazy-pages serves them)");
    default:
      return reject("it is unknown: the client may be newer, or older than criu 4.2");
  }
}

Result<bool> PageReceiver::parent_has(const Target& target) const {
  return parent_ && parent_->has(target.file_name());
}

Status PageReceiver::begin(const Target& target) {
  if (in_blocks_) return reject("pages as they are among pages in blocks");
  TRY(complete_current());
  begun_ = true;
  auto sink = LocalPages(directory_, LocalPages::Existing::refuse).open({target.suffix(), ++last_pages_id_}, false);
  if (!sink) return explain_existing(std::move(sink).error(), target.file_name());
  memory_ = std::make_unique<Memory>(target, std::move(*sink));
  ++received_.memories;
  return {};
}

Status PageReceiver::complete_current() {
  if (memory_) TRY(memory_->sink->finish());
  memory_.reset();
  // close(2) is where a network file system reports that the data never arrived.
  if (file_ && ::close(file_->fd.release()) < 0) return fail_errno("close image", file_->name);
  file_.reset();
  return {};
}

Status PageReceiver::add(const Header& header, uint32_t flags, Stream& stream) {
  const auto target = TRY(pagemap_of(header));
  if (!memory_ || memory_->target != target) TRY(begin(target));  // criu before 1.6 did not say `open`
  const auto size = checked_multiply(header.count, page_size);
  const auto end = size ? checked_add(header.address, *size) : std::nullopt;
  if (!end || header.count == 0)
    return reject(fmt::format("field nr_pages: {} at {:#x}", header.count, header.address));
  if (header.address % page_size != 0) return reject(fmt::format("field vaddr: {:#x} is no page", header.address));
  if (header.address < memory_->end)
    return reject(fmt::format("field vaddr: {:#x} has come before, or should have", header.address));
  constexpr uint32_t known = page_flag::in_parent | page_flag::lazy | page_flag::present | wire::shared_with_parent;
  const bool is_present = (flags & page_flag::present) != 0, is_in_parent = (flags & page_flag::in_parent) != 0;
  if ((flags & ~known) != 0 || (is_present && is_in_parent)) return reject(fmt::format("flags {:#x}", flags));
  const image::PageEntry entry{
      {header.address, *end}, flags & ~wire::shared_with_parent, (flags & wire::shared_with_parent) != 0};
  if (is_in_parent) {
    if (!TRY(parent_has(target)))
      return reject(fmt::format("{} refers to parent images that are not here", target.file_name()));
    if (!memory_->parent) memory_->parent = TRY(read_pagemap(*parent_, target.suffix()));
    if (!memory_->in_parent(entry.range))
      return reject(fmt::format("pages at {:#x} should be in the parent images, but are not", header.address));
  }
  memory_->end = *end;
  TRY(memory_->sink->add({&entry, 1}, {}));
  for (uint64_t left = is_present ? *size : 0; left > 0;) {
    const auto bytes = std::span(buffer_).first(std::min<uint64_t>(left, buffer_.size()));
    TRY(stream.read(bytes));
    const iovec part{bytes.data(), bytes.size()};
    TRY(memory_->sink->add({}, {&part, 1}));
    left -= bytes.size();
    received_.bytes += bytes.size();
  }
  return {};
}

Status PageReceiver::announce(const Header& header, Stream& stream) {
  if (begun_ || in_blocks_) return reject("blocks are announced too late");
  if (header.count != wire::blocks_version)
    return reject(
        fmt::format("blocks of version {}, but only version {} is known", header.count, wire::blocks_version));
  if (header.address > 1) return reject(fmt::format("field vaddr: {} says neither yes nor no", header.address));
  in_blocks_ = true;
  received_.sealed = header.address == 1;
  return stream.write(bytes_of(int32_t{0}));
}

Status PageReceiver::store_part(const Header& header, Stream& stream) {
  if (!in_blocks_) return reject("parts of files come, but blocks were not announced");
  const auto target = TRY(target_of(header));
  const bool is_new = !file_ || file_->target != target;
  if ((header.count == 0 && !is_new) || header.count > wire::largest_part)
    return reject(fmt::format("field nr_pages: a part of {} bytes", header.count));
  if (is_new) {
    TRY(complete_current());
    const std::string name = target.file_name();
    auto fd = create_raw(directory_, name, LocalPages::Existing::refuse);
    if (!fd) return explain_existing(std::move(fd).error(), name);
    file_ = std::make_unique<File>(target, name, std::move(*fd));
    received_.memories += target.is_pagemap();
  }
  if (header.address != file_->size)
    return reject(
        fmt::format("field vaddr: a part at {} of {}, which has {} bytes", header.address, file_->name, file_->size));
  const auto bytes = std::span(buffer_).first(header.count);
  TRY(stream.read(bytes));
  iovec part{bytes.data(), bytes.size()};
  TRY(write_at(file_->fd.get(), {&part, 1}, file_->size, file_->name));
  file_->size += bytes.size();
  if (target.kind == Target::pages_file) received_.bytes += bytes.size();
  return {};
}

}  // namespace stasis::memory
