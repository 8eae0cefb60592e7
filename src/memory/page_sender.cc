#include "memory/page_sender.h"

#include <algorithm>

#include <fmt/format.h>

#include "image/names.h"

namespace stasis::memory {
namespace {

using wire::Header;

constexpr uint64_t piece_size = 1 << 20;

std::unexpected<Error> reject(std::string cause) { return fail(Error::invalid("serve pages", std::move(cause))); }

}  // namespace

Status PageSender::serve(Stream& stream) {
  for (;;) {
    const auto header = TRY(wire::next_header(stream));
    if (!header) return fail(Error::conflict("serve pages", "the client has gone without a word", stream.peer()));
    switch (header->command) {
      case wire::get_pages:
        TRY_IN("serve " + stream.peer(), give(*header, stream));
        break;
      case wire::close:
      case wire::close_by_force:
        return stream.write(bytes_of(int32_t{0}));
      default:
        return reject(
            fmt::format("command {:#x} of {} is none for a server that gives pages", header->command, stream.peer()));
    }
  }
}

Result<ImagePages*> PageSender::pages_of(uint64_t pid) {
  const auto known = open_.find(pid);
  if (known != open_.end()) return known->second.get();
  const auto suffix = std::to_string(pid);
  if (!directory_.has(image::file_name("pagemap-" + suffix))) return reject(fmt::format("there is no task {}", pid));
  auto pages = TRY(ImagePages::open(directory_, suffix));
  return open_.emplace(pid, std::move(pages)).first->second.get();
}

Status PageSender::give(const Header& header, Stream& stream) {
  ImagePages& pages = *TRY(pages_of(header.target));
  if (header.address % page_size != 0) return reject(fmt::format("field vaddr: {:#x} is no page", header.address));
  if (header.count == 0) return reject("field nr_pages: no pages are asked for");
  const auto run =
      std::ranges::upper_bound(pages.runs(), header.address, {}, [](const StoredRun& r) { return r.range.end; });
  const bool is_stored = run != pages.runs().end() && run->range.begin <= header.address && !run->zero;
  Header answer = header;
  answer.command = wire::add_flagged | image::page_flag::present << wire::flag_shift;
  answer.count = is_stored ? std::min(header.count, (run->range.end - header.address) / page_size) : 0;
  uint64_t at = header.address, left = answer.count * page_size;
  Bytes buffer(std::min(left, piece_size));
  for (bool first = true; first || left > 0; first = false) {
    const auto piece = std::span(buffer).first(std::min<uint64_t>(left, buffer.size()));
    TRY(pages.read(at, piece));
    const iovec parts[] = {{&answer, first ? sizeof answer : 0}, {piece.data(), piece.size()}};
    TRY(stream.write(parts));
    at += piece.size();
    left -= piece.size();
  }
  return {};
}

Result<size_t> fetch_pages(Stream& stream, uint64_t pid, uint64_t address, std::span<uint8_t> buffer) {
  const Header question{
      .command = wire::get_pages, .count = buffer.size() / page_size, .address = address, .target = pid};
  const auto answer = TRY(wire::ask<Header>(stream, question));
  const auto command = static_cast<uint16_t>(answer.command);
  const bool fits = (command == wire::add_flagged || command == wire::add_pages) &&
                    answer.count <= buffer.size() / page_size &&
                    (answer.count == 0 || (answer.address == address && answer.target == pid));
  if (!fits)
    return fail(Error::invalid("fetch pages", "the answer has nothing to do with the question", stream.peer()));
  TRY(stream.read(buffer.first(answer.count * page_size)));
  return static_cast<size_t>(answer.count);
}

Status end_fetching(Stream& stream) {
  TRY(wire::ask<int32_t>(stream, {.command = wire::close}));
  return stream.finish();
}

}  // namespace stasis::memory
