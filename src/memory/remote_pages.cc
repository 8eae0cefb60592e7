#include "memory/remote_pages.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "image/names.h"
#include "memory/filter/filter.h"
#include "memory/io_parts.h"
#include "memory/page_protocol.h"
#include "memory/pagemap_writer.h"
#include "memory/pages.h"
#include "memory/sent_pages.h"

namespace stasis::memory {
namespace {

using image::PageEntry;
using wire::Header;
using wire::Target;

template <typename Value>
iovec part_of(Value& value) {
  return {&value, sizeof value};
}

Result<bool> ask_parent(Stream& stream, const Target& target) {
  const auto answer = TRY(wire::ask<int32_t>(stream, {.command = wire::ask_parent, .target = target.encoded()}));
  if (answer == 0 || answer == 1) return answer == 1;
  return fail(Error::invalid("speak with the page server", "it answers what no page server does", stream.peer())
                  .advise("it may be another program, or want --tls"));
}

/// Whatever broke the connection here: the server knows more.
template <typename Outcome>
Outcome explained(Outcome outcome) {
  if (outcome) return outcome;
  auto error = std::move(outcome).error();
  if (!error.advice().empty()) return fail(std::move(error).within("send pages"));
  return fail(std::move(error).within("send pages").advise("the page server's log says what it made of it"));
}

Result<UniqueFd> memory_file() {
  UniqueFd fd(memfd_create("stasis-images", MFD_CLOEXEC));
  if (!fd.valid()) return fail_errno("memfd_create");
  return fd;
}

Result<UniqueFd> duplicate(const UniqueFd& fd) {
  UniqueFd copy(fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) return fail_errno("fcntl(F_DUPFD_CLOEXEC)");
  return copy;
}

/// An image on its way to the server: written into memory first, because only then its length is known.
struct Draft {
  UniqueFd fd;
  std::string name;

  static Result<Draft> make(std::string name) { return Draft{TRY(memory_file()), std::move(name)}; }
  Result<image::Writer> writer(const image::Directory& directory) const {
    return image::create_in(directory, TRY(duplicate(fd)), name);
  }
};

}  // namespace

/// What both kinds have in common: the stream is theirs alone.
class RemoteSink : public image::PageSink {
 public:
  explicit RemoteSink(RemotePages& store, std::unique_lock<std::mutex> turn) : store_(store), turn_(std::move(turn)) {}
  ~RemoteSink() override {
    // Whoever asks next is told.
    if (!finished_) (void)remember(fail(Error::conflict("send pages", "an earlier memory could not be read")));
  }
  Status add(std::span<const PageEntry> entries, std::span<const iovec> bytes) final {
    return remember(send(entries, bytes));
  }
  Status finish() final { return remember(send_rest()); }

  /// The list for the next increment, of tasks only: shared memory is compared with what the parent images hold.
  Status list_sent(const image::PageImages& images) {
    if (wire::target_of(images.suffix)->kind != Target::task) return {};
    auto writer = TRY(directory().create(image::file_name(sent_prefix + images.suffix)));
    sent_ = TRY(PagemapWriter::begin(std::move(writer), images.pages_id));
    return {};
  }

 protected:
  virtual Status send(std::span<const PageEntry> entries, std::span<const iovec> bytes) = 0;
  virtual Status send_rest() = 0;
  /// All who come later are told why.
  Status remember(Status done) {
    if (!done && !store_.failure_) store_.failure_ = done.error();
    return done;
  }
  Stream& stream() { return *store_.stream_; }
  const image::Directory& directory() { return store_.directory_; }
  Status note(std::span<const PageEntry> entries) {
    if (!sent_) return {};
    for (const PageEntry& entry : entries) TRY(sent_->add(entry));
    return {};
  }
  Status done() {
    if (sent_) TRY(sent_->finish());
    finished_ = true;
    return {};
  }

 private:
  RemotePages& store_;
  std::unique_lock<std::mutex> turn_;
  std::optional<PagemapWriter> sent_;
  bool finished_ = false;
};

namespace {

/// Pages as they are: each entry, and its bytes after it.
class PlainSink final : public RemoteSink {
 public:
  PlainSink(RemotePages& store, std::unique_lock<std::mutex> turn, Target target)
      : RemoteSink(store, std::move(turn)), target_(target) {}

  Status send(std::span<const PageEntry> entries, std::span<const iovec> bytes) override {
    std::vector<Header> headers;
    headers.reserve(entries.size());  // the parts point into it
    std::vector<iovec> parts, copy(bytes.begin(), bytes.end());
    auto left = rest_of(copy, 0);
    for (const PageEntry& entry : entries) {
      parts.push_back(part_of(headers.emplace_back(wire::header_of(entry, target_))));
      if ((entry.flags & image::page_flag::present) == 0) continue;
      for (uint64_t size = entry.range.size(); size > 0;) {
        const size_t step = std::min<uint64_t>(size, left.front().iov_len);
        parts.push_back({left.front().iov_base, step});
        left = rest_of(left, step);
        size -= step;
      }
    }
    TRY(explained(stream().write(parts)));
    return note(entries);
  }
  Status store(const std::string& name, const Content&) override {
    return fail(Error::internal("send pages", name + " has no place among pages that are sent as they are"));
  }
  Status send_rest() override { return done(); }

 private:
  Target target_;
};

/// Pages in blocks: files, part by part.
class BlockSink final : public RemoteSink {
 public:
  BlockSink(RemotePages& store, std::unique_lock<std::mutex> turn, uint64_t pages_id, Draft draft,
            PagemapWriter pagemap)
      : RemoteSink(store, std::move(turn)),
        pages_{Target::pages_file, pages_id},
        draft_(std::move(draft)),
        pagemap_(std::move(pagemap)) {}

  Status send(std::span<const PageEntry> entries, std::span<const iovec> bytes) override {
    for (const PageEntry& entry : entries) TRY(pagemap_.add(entry));
    for (const iovec& part : bytes) {
      for (ByteView left(static_cast<const uint8_t*>(part.iov_base), part.iov_len); !left.empty();) {
        const ByteView piece = left.first(std::min<size_t>(left.size(), wire::largest_part));
        TRY(send_part(pages_, size_, piece));
        size_ += piece.size();
        left = left.subspan(piece.size());
      }
    }
    return note(entries);
  }
  Status store(const std::string& name, const Content& content) override {
    const auto draft = TRY(Draft::make(name));
    auto writer = TRY(draft.writer(directory()));
    TRY(content(writer));
    TRY(writer.finish());
    return send_file(draft);
  }
  Status send_rest() override {
    if (size_ == 0) TRY(send_part(pages_, 0, {}));  // an empty file is a part of the checkpoint, too
    TRY(pagemap_.finish());
    TRY(send_file(draft_));
    return done();
  }

 private:
  Status send_part(const Target& target, uint64_t offset, ByteView bytes) {
    Header header{.command = wire::store_part, .count = bytes.size(), .address = offset, .target = target.encoded()};
    const iovec parts[] = {part_of(header), {const_cast<uint8_t*>(bytes.data()), bytes.size()}};
    return explained(stream().write(parts));
  }
  Status send_file(const Draft& draft) {
    const auto target = wire::target_of_file(draft.name);
    Bytes buffer(wire::largest_part);
    for (uint64_t at = 0;;) {
      const ssize_t got = pread(draft.fd.get(), buffer.data(), buffer.size(), static_cast<off_t>(at));
      if (got < 0) return fail_errno("read", draft.name);
      if (got == 0) return {};
      TRY(send_part(*target, at, ByteView(buffer).first(static_cast<size_t>(got))));
      at += static_cast<uint64_t>(got);
    }
  }

  Target pages_;
  Draft draft_;  ///< of the pagemap
  PagemapWriter pagemap_;
  uint64_t size_ = 0;  ///< of the pages file
};

}  // namespace

Result<std::shared_ptr<RemotePages>> RemotePages::begin(std::unique_ptr<Stream> stream,
                                                        const image::Directory& directory, Ending ending) {
  std::shared_ptr<RemotePages> store(new RemotePages(std::move(stream), directory, ending));
  store->in_blocks_ = !filters_of(directory).empty();
  // A question that every page server answers. A client that TLS 1.3 refuses learns it here.
  TRY(explained(ask_parent(*store->stream_, {Target::task, 1})));
  if (store->in_blocks_) TRY(store->announce());
  return store;
}

Status RemotePages::announce() {
  const bool is_sealed = directory_.encryption() != nullptr;
  const Header question{.command = wire::announce_blocks, .count = wire::blocks_version, .address = is_sealed};
  TRY(explained(stream_->write(bytes_of(question))));
  const auto answer = wire::answer_of<int32_t>(*stream_);
  if (answer && *answer == 0) return {};
  return fail(Error::unsupported("send pages in blocks", "the page server does not know them: it is criu's, or older",
                                 stream_->peer())
                  .advise("leave out --compress and --encrypt, or start `stasis page-server` of this version there"));
}

/// Whether the server has parent images of it, if that matters.
Result<bool> RemotePages::begin_memory(const Target& target, bool refers_to_parent) {
  if (in_blocks_) return refers_to_parent ? ask_parent(*stream_, target) : Result<bool>(true);
  return TRY(wire::ask<uint8_t>(*stream_, {.command = wire::open_memory, .target = target.encoded()})) != 0;
}

Result<std::unique_ptr<image::PageSink>> RemotePages::open(const image::PageImages& images, bool refers_to_parent) {
  std::unique_lock turn(busy_);
  if (failure_) return fail(*failure_);
  const auto target = wire::target_of(images.suffix);
  if (!target) return fail(Error::internal("send pages", "no page server knows memory " + images.suffix));
  auto has_parent = explained(begin_memory(*target, refers_to_parent));
  if (has_parent && refers_to_parent && !*has_parent) {
    has_parent =
        fail(Error::conflict("send an increment", "the page server has no parent images of this memory", images.suffix)
                 .advise("give it --prev-images-dir, too, or dump in full"));
  }
  if (!has_parent) {
    failure_ = has_parent.error();
    return fail(*failure_);
  }
  std::unique_ptr<RemoteSink> sink;
  if (in_blocks_) {
    auto draft = TRY(Draft::make(target->file_name()));
    auto pagemap = TRY(PagemapWriter::begin(TRY(draft.writer(directory_)), images.pages_id));
    sink = std::make_unique<BlockSink>(*this, std::move(turn), images.pages_id, std::move(draft), std::move(pagemap));
  } else {
    sink = std::make_unique<PlainSink>(*this, std::move(turn), *target);
  }
  TRY(sink->list_sent(images));
  return sink;
}

Status RemotePages::complete() {
  const std::lock_guard turn(busy_);
  if (failure_) return fail(*failure_);
  const bool by_force = ending_ == Ending::close_by_force;
  const auto answer =
      TRY(explained(wire::ask<int32_t>(*stream_, {.command = by_force ? wire::close_by_force : wire::close})));
  if (answer != 0)
    return fail(Error::conflict("send pages", fmt::format("the page server answers {}", answer), stream_->peer())
                    .advise("its log says why"));
  // Everything is stored. The end of the connection itself is a courtesy: criu waits for it.
  if (!by_force) static_cast<void>(stream_->finish());
  return {};
}

}  // namespace stasis::memory
