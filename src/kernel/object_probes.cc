#include "kernel/object_probes.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/aio_abi.h>
#include <linux/inet_diag.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <compare>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "base/unique_fd.h"
#include "kernel/proc.h"
#include "kernel/process.h"

namespace stasis::kernel {
namespace {

std::string failed(const char* call) { return std::string(call) + ": " + std::strerror(errno); }

/// Empty if fdinfo of the descriptor has a line that begins so.
std::string told_by_fdinfo(const UniqueFd& fd, const char* field) {
  if (!fd.valid()) return failed("open");
  std::ifstream lines(fmt::format("/proc/self/fdinfo/{}", fd.get()));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(field)) return {};
  }
  return fmt::format("/proc/self/fdinfo does not tell '{}'", field);
}

/// Empty if the request is answered by anything but an error.
std::string asked_by_netlink(int protocol, const void* request, size_t size) {
  const UniqueFd netlink(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol));
  if (!netlink.valid()) return failed("socket(AF_NETLINK)");
  if (send(netlink.get(), request, size, 0) < 0) return failed("send");
  alignas(nlmsghdr) char answer[1 << 14];
  const ssize_t length = recv(netlink.get(), answer, sizeof answer, 0);
  const auto* header = reinterpret_cast<const nlmsghdr*>(answer);
  if (length < static_cast<ssize_t>(sizeof *header)) return failed("recv");
  if (header->nlmsg_type != NLMSG_ERROR) return {};
  errno = -static_cast<const nlmsgerr*>(NLMSG_DATA(header))->error;
  return errno == 0 ? std::string() : failed("netlink");
}

bool is_executable_by_name(const std::string& program) {
  const char* path = std::getenv("PATH");
  std::istringstream directories(path != nullptr ? path : "");
  for (std::string directory; std::getline(directories, directory, ':');) {
    if (access((directory + "/" + program).c_str(), X_OK) == 0) return true;
  }
  return false;
}

}  // namespace

std::string probe_mount_ids() { return told_by_fdinfo(UniqueFd(open("/", O_PATH | O_CLOEXEC)), "mnt_id:"); }

std::string probe_listed_locks() {
  const UniqueFd file(memfd_create("probe", MFD_CLOEXEC));
  if (!file.valid()) return failed("memfd_create");
  return flock(file.get(), LOCK_SH) == 0 ? told_by_fdinfo(file, "lock:") : failed("flock");
}

std::string probe_timerfd() {
  constexpr unsigned long set_ticks = 0x40085400;  // TFD_IOC_SET_TICKS of linux/timerfd.h, which glibc's header shadows
  const UniqueFd timer(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
  if (!timer.valid()) return failed("timerfd_create");
  const uint64_t ticks = 1;
  return ioctl(timer.get(), set_ticks, &ticks) == 0 ? told_by_fdinfo(timer, "clockid:") : failed("TFD_IOC_SET_TICKS");
}

std::string probe_epoll_targets() {
  const UniqueFd epoll(epoll_create1(EPOLL_CLOEXEC)), timer(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
  epoll_event event{};
  if (epoll_ctl(epoll.get(), EPOLL_CTL_ADD, timer.get(), &event) != 0) return failed("epoll_ctl");
  const auto order = kcmp_epoll(getpid(), timer.get(), getpid(), {epoll.get(), timer.get(), 0});
  if (!order) return order.error().message();
  return *order == std::strong_ordering::equal ? std::string() : "kcmp(KCMP_EPOLL_TFD) does not find a target";
}

std::string probe_aio_remap() {
  aio_context_t context = 0;
  if (syscall(SYS_io_setup, 1, &context) != 0) return failed("io_setup");
  uint64_t size = 0;
  if (const auto maps = read_maps(getpid())) {
    const auto ring = std::ranges::find(*maps, context, [](const MapsEntry& vma) { return vma.range.begin; });
    if (ring != maps->end()) size = ring->range.size();
  }
  void* const place = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  void* const moved = place == MAP_FAILED
                          ? MAP_FAILED
                          : mremap(reinterpret_cast<void*>(context), size, size, MREMAP_MAYMOVE | MREMAP_FIXED, place);
  if (moved == MAP_FAILED) {
    const std::string problem = failed("mremap");
    syscall(SYS_io_destroy, context);
    return problem;
  }
  return syscall(SYS_io_destroy, moved) == 0 ? std::string() : failed("io_destroy");
}

std::string probe_huge_memfd() {
  const UniqueFd file(memfd_create("probe", MFD_CLOEXEC | MFD_HUGETLB));
  return file.valid() ? std::string() : failed("memfd_create(MFD_HUGETLB)");
}

std::string probe_socket_files() {
  constexpr unsigned long open_file_of_socket = 0x89e0;  // SIOCUNIXFILE (linux/un.h)
  const UniqueFd unbound(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!unbound.valid()) return failed("socket");
  // Of a socket without a name it answers ENOENT or EINVAL where it is known.
  const int file = ioctl(unbound.get(), open_file_of_socket);
  if (file >= 0) close(file);
  return file >= 0 || errno == ENOENT || errno == EINVAL ? std::string() : failed("SIOCUNIXFILE");
}

std::string probe_raw_diag() {
  struct {
    nlmsghdr header;
    inet_diag_req_v2 request;
  } message{};
  message.header = {sizeof message, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0};
  message.request.sdiag_family = AF_INET, message.request.sdiag_protocol = IPPROTO_RAW;
  message.request.idiag_states = ~0u;
  return asked_by_netlink(NETLINK_SOCK_DIAG, &message, sizeof message);
}

std::string probe_tcp_window() {
  const UniqueFd made(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  if (setsockopt(made.get(), IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) != 0) return failed("TCP_REPAIR");
  tcp_repair_window window{};
  socklen_t size = sizeof window;
  if (getsockopt(made.get(), IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, &size) != 0) return failed("TCP_REPAIR_WINDOW");
  return {};
}

std::string probe_buffer_locks() {
  const UniqueFd made(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  int value = 0;
  socklen_t size = sizeof value;
  return getsockopt(made.get(), SOL_SOCKET, SO_BUF_LOCK, &value, &size) == 0 ? std::string() : failed("SO_BUF_LOCK");
}

std::string probe_freebind6() {
  const UniqueFd made(socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!made.valid()) return failed("socket(AF_INET6)");
  const int on = 1;
  return setsockopt(made.get(), SOL_IPV6, IPV6_FREEBIND, &on, sizeof on) == 0 ? std::string() : failed("IPV6_FREEBIND");
}

std::string probe_nf_tables() {
  struct {
    nlmsghdr header;
    nfgenmsg family;
  } message{};
  message.header = {sizeof message, (NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_GETGEN, NLM_F_REQUEST, 1, 0};
  message.family.nfgen_family = AF_INET;
  return asked_by_netlink(NETLINK_NETFILTER, &message, sizeof message);
}

std::string probe_iptables_restore() {
  for (const char* program : {"iptables-restore", "ip6tables-restore"}) {
    if (!is_executable_by_name(program)) return fmt::format("{} is not installed", program);
  }
  return {};
}

}  // namespace stasis::kernel
