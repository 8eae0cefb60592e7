#include "resource/socket_probe.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "kernel/socket_option.h"

namespace stasis::resource {

std::optional<int> socket_family(const DescriptorProbe& probe) {
  if (!S_ISSOCK(probe.stat.st_mode)) return std::nullopt;
  const auto fd = probe.duplicate();
  if (!fd) return std::nullopt;
  const auto family = kernel::socket_option<int>(*fd, SOL_SOCKET, SO_DOMAIN, "SO_DOMAIN");
  return family ? std::optional(*family) : std::nullopt;
}

short poll_events(int fd, short wanted) {
  pollfd asked{fd, wanted, 0};
  return poll(&asked, 1, 0) > 0 ? asked.revents : short{0};
}

void refuse_other_network(CaptureContext& context, const DescriptorProbe& probe) {
  context.diagnostics.refuse(probe.subject, "the socket belongs to another network namespace",
                             "sockets of one network namespace, that of stasis, can be saved");
}

}  // namespace stasis::resource
