#include "resource/unsupported.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace stasis::resource {
namespace {

struct Unsupported final : model::KindValue {
  std::string link;
  std::string_view kind() const override { return "unsupported"; }
  bool equals(const model::KindValue& other) const override {
    const auto* same = dynamic_cast<const Unsupported*>(&other);
    return same != nullptr && link == same->link;
  }
  std::string describe() const override { return link; }
};

/// Kinds of which more can be said than their names.
struct Known {
  std::string_view link, problem, advice;
};
constexpr Known known[] = {
    {"anon_inode:[io_uring]",
     "it is an io_uring: the kernel alone chooses where its rings are mapped, so that they cannot be put back where "
     "the "
     "program expects them",
     "have the program close it before the dump, or run it with another way of I/O (for libuv: UV_USE_IO_URING=0)"},
    {"anon_inode:[userfaultfd]",
     "it is a userfaultfd: which faults wait for an answer, and what is registered with it, the kernel tells nobody",
     "have the program close it before the dump"},
};

/// What the thing is, for people.
std::string name_of(const DescriptorProbe& probe) {
  if (probe.link.starts_with("socket:")) return "a socket";
  if (probe.link.starts_with("anon_inode:")) return "an object of kind " + probe.link.substr(sizeof "anon_inode:" - 1);
  if (S_ISCHR(probe.stat.st_mode)) return "a character device";
  if (S_ISBLK(probe.stat.st_mode)) return "a block device";
  return "a file of an unknown kind";
}

class UnsupportedRoom final : public FileRoom {
 public:
  std::string_view kind() const override { return "unsupported"; }
  bool recognises(const DescriptorProbe&) const override { return true; }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    const auto* reason = std::ranges::find(known, std::string_view(probe.link), &Known::link);
    if (reason != std::end(known)) {
      context.diagnostics.refuse(probe.subject, std::string(reason->problem), std::string(reason->advice));
    } else {
      context.diagnostics.refuse(probe.subject, fmt::format("{} cannot be saved by this version", name_of(probe)),
                                 "close it before the dump");
    }
    auto state = std::make_shared<Unsupported>();
    state->link = probe.link;
    return model::KindState{std::move(state)};
  }

  Status encode(const model::Application&, const model::OpenDescription& description,
                image::FileRecords&) const override {
    return fail(
        Error::unsupported("save a descriptor", "it was refused at capture", description.state.value->describe()));
  }
  bool decodes(const image::FileRecords&, const image::FileRecord&) const override { return true; }
  Result<model::OpenDescription> decode(const image::FileRecords&, const image::FileRecord& record,
                                        model::Application&) const override {
    return fail(Error::unsupported(
        "decode a file", fmt::format("type {} cannot be restored by this version", fd_types_Name(record.type())),
        fmt::format("files.img, file {}", record.id())));
  }
  Status make(const model::Application&, std::span<const plan::Placement>, plan::Sink&) const override {
    return fail(Error::internal("plan a descriptor", "its kind is not supported"));
  }
};

}  // namespace

const FileRoom& unsupported_room() {
  static const UnsupportedRoom room;
  return room;
}

}  // namespace stasis::resource
