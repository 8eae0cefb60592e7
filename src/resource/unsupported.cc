#include "resource/unsupported.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>

#include <optional>

#include "resource/socket_probe.h"

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
struct Reason {
  std::string problem, advice;
};

std::optional<Reason> reason_of_object(std::string_view link) {
  if (link == "anon_inode:[userfaultfd]")
    return Reason{
        "it is a userfaultfd: which faults wait for an answer, and what is registered with it, the kernel tells nobody",
        "have the program close it before the dump"};
  if (link.starts_with("/secretmem"))
    return Reason{"it is secret memory (memfd_secret): nobody but the program can read it",
                  "have the program close and unmap it before the dump"};
  return std::nullopt;
}

std::optional<Reason> reason_of_socket(const DescriptorProbe& probe) {
  if ((probe.flags & O_PATH) != 0)
    return Reason{"it is the file of a unix socket, opened by O_PATH",
                  "close it before the dump: whose socket it is nothing tells"};
  const auto family = socket_family(probe);
  if (!family) return std::nullopt;
  if (*family == AF_VSOCK)
    return Reason{
        "it is a vsock socket: its peer is a hypervisor or a guest, and the kernel cannot repair connections with them",
        "have the program close it before the dump, and connect or listen anew afterwards"};
  if (*family == AF_XDP)
    return Reason{"it is an XDP socket: the device writes to its rings, and where, the kernel tells nobody",
                  "have the program close it before the dump, or use packet sockets"};
  return Reason{fmt::format("it is a socket of address family {}, which cannot be saved", *family),
                "unix, internet, netlink and packet sockets can be saved; have the program close it before the dump"};
}

/// The network device goes with the last descriptor, and its addresses and routes with it; those belong to the network
/// namespace, which is not saved.
std::optional<Reason> reason_of_device(const DescriptorProbe& probe) {
  if (!S_ISCHR(probe.stat.st_mode) || probe.stat.st_rdev != makedev(10, 200)) return std::nullopt;
  ifreq request{};
  const auto fd = probe.duplicate();
  if (!fd || ioctl(*fd, TUNGETIFF, &request) != 0)
    return Reason{"it is a tun or tap device that is not attached to a network device yet",
                  "have the program close it before the dump"};
  return Reason{
      fmt::format("it is the {} device '{}': addresses and routes that others have given to it go with it, and "
                  "are not saved",
                  (request.ifr_flags & IFF_TAP) != 0 ? "tap" : "tun", request.ifr_name),
      "have the program close it before the dump, and attach to the device anew afterwards (ip tuntap add makes "
      "one that stays)"};
}

std::optional<Reason> reason_of(const DescriptorProbe& probe) {
  if (auto reason = reason_of_object(probe.link)) return reason;
  if (S_ISSOCK(probe.stat.st_mode)) return reason_of_socket(probe);
  return reason_of_device(probe);
}

/// What the thing is, for people.
std::string name_of(const DescriptorProbe& probe) {
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
    auto reason = reason_of(probe);
    if (!reason)
      reason = {fmt::format("{} cannot be saved by this version", name_of(probe)), "close it before the dump"};
    context.diagnostics.refuse(probe.subject, std::move(reason->problem), std::move(reason->advice));
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
