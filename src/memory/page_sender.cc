#include "memory/page_sender.h"

#include <algorithm>
#include <climits>
#include <utility>

#include <fmt/format.h>

#include "image/names.h"

namespace stasis::memory {
namespace {

using wire::Header;

constexpr uint64_t piece_size = 1 << 20;

std::unexpected<Error> reject(std::string cause) { return fail(Error::invalid("serve pages", std::move(cause))); }

std::unexpected<Error> no_such_task(uint64_t pid) { return reject(fmt::format("there is no task {}", pid)); }

Result<GivenPages> stored_pages(const image::Directory& directory, pid_t task) {
  const auto suffix = std::to_string(task);
  if (!directory.has(image::file_name("pagemap-" + suffix))) return no_such_task(static_cast<uint64_t>(task));
  auto pages = TRY(ImagePages::open(directory, suffix));
  GivenPages given;
  for (const StoredRun& run : pages->runs()) {
    if (run.in_file()) given.ranges.push_back(run.range);
  }
  given.source = std::move(pages);
  return given;
}

}  // namespace

PageSender::PageSender(const image::Directory& directory)
    : PageSender([&directory](pid_t task) { return stored_pages(directory, task); }) {}

Status PageSender::serve(Stream& stream, const std::function<Status()>& wait) {
  for (;;) {
    if (wait && !stream.has_buffered()) TRY(wait());
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

Result<const GivenPages*> PageSender::pages_of(uint64_t pid) {
  const auto known = open_.find(pid);
  if (known != open_.end()) return &known->second;
  if (pid == 0 || pid > INT_MAX) return no_such_task(pid);
  auto pages = TRY(find_(static_cast<pid_t>(pid)));
  return &open_.emplace(pid, std::move(pages)).first->second;
}

Status PageSender::give(const Header& header, Stream& stream) {
  const auto& [source, ranges] = *TRY(pages_of(header.target));
  if (header.address % page_size != 0) return reject(fmt::format("field vaddr: {:#x} is no page", header.address));
  if (header.count == 0) return reject("field nr_pages: no pages are asked for");
  const auto range = std::ranges::upper_bound(ranges, header.address, {}, &AddressRange::end);
  const bool is_there = range != ranges.end() && range->begin <= header.address;
  if (before_first_) TRY(std::exchange(before_first_, nullptr)());
  Header answer = header;
  answer.command = wire::add_flagged | image::page_flag::present << wire::flag_shift;
  answer.count = is_there ? std::min(header.count, (range->end - header.address) / page_size) : 0;
  uint64_t at = header.address, left = answer.count * page_size;
  Bytes buffer(std::min(left, piece_size));
  for (bool first = true; first || left > 0; first = false) {
    const auto piece = std::span(buffer).first(std::min<uint64_t>(left, buffer.size()));
    TRY(source->read(at, piece));
    const iovec parts[] = {{&answer, first ? sizeof answer : 0}, {piece.data(), piece.size()}};
    TRY(stream.write(parts));
    at += piece.size();
    left -= piece.size();
  }
  bytes_given_ += answer.count * page_size;
  return {};
}

}  // namespace stasis::memory
