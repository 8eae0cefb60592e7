#include "kernel/missing_pages.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include <fmt/format.h>

namespace stasis::kernel {
namespace {

constexpr uint64_t features =
    UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

// include/uapi/linux/userfaultfd.h; older headers lack it.
struct PoisonRequest {
  uffdio_range range;
  uint64_t mode;
  int64_t updated;
};
constexpr unsigned long poison_request = _IOWR(UFFDIO, 0x08, PoisonRequest);

std::unexpected<Error> impossible(std::string subject) {
  return fail(Error::system("restore memory lazily", errno, std::move(subject))
                  .advise("it needs CAP_SYS_PTRACE; without --lazy-pages the memory is restored at once"));
}

std::string text(AddressRange range) { return fmt::format("{:#x}-{:#x}", range.begin, range.end); }

/// One of the requests that fill: their last word is how many bytes they have filled, or the negative error.
template <typename Request, typename Count>
Result<MissingPages::Filled> fill(int fd, unsigned long number, Request& request, Count& filled, AddressRange range) {
  using Outcome = MissingPages::Outcome;
  filled = 0;
  while (ioctl(fd, number, &request) != 0 && errno == EINTR && filled <= 0) {
  }
  const uint64_t bytes = filled > 0 ? static_cast<uint64_t>(filled) : 0;
  if (bytes == range.size()) return MissingPages::Filled{bytes, Outcome::done};
  if (bytes != 0) return MissingPages::Filled{bytes, Outcome::changed};
  switch (errno) {
    case EAGAIN:
      return MissingPages::Filled{0, Outcome::changed};
    case EEXIST:
      return MissingPages::Filled{0, Outcome::present};
    case ENOENT:
    case EINVAL:
      return MissingPages::Filled{0, Outcome::unmapped};
    case ESRCH:
    case ENOSPC:  // what it was before 4.13
      return MissingPages::Filled{0, Outcome::gone};
    default:
      return fail_errno("put pages into a task", text(range));
  }
}

}  // namespace

Status MissingPages::probe() {
  const MissingPages tried(UniqueFd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK))));
  return tried.fd() < 0 ? impossible("userfaultfd(2)") : tried.begin();
}

Status MissingPages::begin() const {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = features;
  if (ioctl(fd_.get(), UFFDIO_API, &api) == 0) return {};
  return impossible("UFFDIO_API");
}

Status MissingPages::watch(AddressRange range) const {
  uffdio_register request{};
  request.range.start = range.begin, request.range.len = range.size();
  request.mode = UFFDIO_REGISTER_MODE_MISSING;
  while (ioctl(fd_.get(), UFFDIO_REGISTER, &request) != 0) {
    if (errno != EINTR && errno != EAGAIN) return fail_errno("watch for missing pages", text(range));
  }
  return {};
}

Result<std::vector<MissingPages::Event>> MissingPages::events() const {
  std::vector<Event> events;
  for (;;) {
    std::array<uffd_msg, 16> messages;
    const ssize_t got = read(fd_.get(), messages.data(), sizeof messages);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || !events.empty())) return events;
    if (got < 0) return fail_errno("read what happens to memory");
    for (size_t i = 0; i < static_cast<size_t>(got) / sizeof(uffd_msg); ++i) {
      const auto& [event, reserved1, reserved2, reserved3, arg] = messages[i];
      switch (event) {
        case UFFD_EVENT_PAGEFAULT:
          events.emplace_back(Fault{arg.pagefault.address & ~(page_size - 1)});
          break;
        case UFFD_EVENT_FORK:
          events.emplace_back(Fork{UniqueFd(static_cast<int>(arg.fork.ufd))});
          break;
        case UFFD_EVENT_REMAP:
          events.emplace_back(Moved{{arg.remap.from, arg.remap.from + arg.remap.len}, arg.remap.to});
          break;
        case UFFD_EVENT_REMOVE:
        case UFFD_EVENT_UNMAP:
          events.emplace_back(Gone{{arg.remove.start, arg.remove.end}});
          break;
        default:
          return fail(Error::internal("read what happens to memory", fmt::format("unknown event {}", event)));
      }
    }
  }
}

Result<MissingPages::Filled> MissingPages::copy(uint64_t to, ByteView bytes) const {
  uffdio_copy request{};
  request.dst = to, request.src = reinterpret_cast<uint64_t>(bytes.data()), request.len = bytes.size();
  return fill(fd_.get(), UFFDIO_COPY, request, request.copy, {to, to + bytes.size()});
}

Result<MissingPages::Filled> MissingPages::zero(AddressRange range) const {
  uffdio_zeropage request{};
  request.range.start = range.begin, request.range.len = range.size();
  return fill(fd_.get(), UFFDIO_ZEROPAGE, request, request.zeropage, range);
}

Result<MissingPages::Filled> MissingPages::poison(AddressRange range) const {
  PoisonRequest request{{range.begin, range.size()}, 0, 0};
  return fill(fd_.get(), poison_request, request, request.updated, range);
}

void MissingPages::wake(AddressRange range) const {
  uffdio_range request{range.begin, range.size()};
  ioctl(fd_.get(), UFFDIO_WAKE, &request);
}

bool MissingPages::is_gone() const {
  const auto tried = zero({0, page_size});  // nothing is ever mapped there
  return !tried || tried->outcome == Outcome::gone;
}

}  // namespace stasis::kernel
