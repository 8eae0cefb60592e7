// Netlink sockets: bound by the kernel and by themselves, with groups beyond the first 32, options, a peer.
// FAIL_RESTORE
#include <initializer_list>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include "probe.h"

static int netlink_socket(int type, int protocol) {
  const int fd = socket(AF_NETLINK, type, protocol);
  CHECK(fd >= 0);
  return fd;
}
static sockaddr_nl name_of(int fd, int (*ask)(int, sockaddr*, socklen_t*) = getsockname) {
  sockaddr_nl name = {};
  socklen_t size = sizeof name;
  CHECK(ask(fd, (sockaddr*)&name, &size) == 0);
  return name;
}
static void bind_to(int fd, uint32_t port, uint32_t groups) {
  sockaddr_nl name = {};
  name.nl_family = AF_NETLINK, name.nl_pid = port, name.nl_groups = groups;
  CHECK(bind(fd, (const sockaddr*)&name, sizeof name) == 0);
}
static int option_of(int fd, int level, int name) {
  int value = 0;
  socklen_t size = sizeof value;
  CHECK(getsockopt(fd, level, name, &value, &size) == 0);
  return value;
}
/// Asks for the first device.
static void expect_answer(int fd) {
  struct {
    nlmsghdr head;
    ifinfomsg info;
  } request = {};
  request.head.nlmsg_len = sizeof request, request.head.nlmsg_type = RTM_GETLINK;
  request.head.nlmsg_flags = NLM_F_REQUEST, request.head.nlmsg_seq = 7, request.info.ifi_index = 1;
  CHECK(send(fd, &request, sizeof request, 0) == sizeof request);
  alignas(nlmsghdr) char answer[1 << 15];
  CHECK(recv(fd, answer, sizeof answer, 0) > 0);
  CHECK_EQUAL(((const nlmsghdr*)answer)->nlmsg_type, RTM_NEWLINK);
  CHECK_EQUAL(((const nlmsghdr*)answer)->nlmsg_seq, 7);
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const int fresh = netlink_socket(SOCK_DGRAM, NETLINK_ROUTE), automatic = netlink_socket(SOCK_RAW, NETLINK_ROUTE);
  bind_to(automatic, 0, 0);
  const int chosen = netlink_socket(SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE);
  const uint32_t port = 0x47110000u | (uint32_t)getpid();
  bind_to(chosen, port, RTMGRP_LINK | RTMGRP_IPV4_ROUTE);
  const int high = RTNLGRP_MDB + 8;  // beyond the 32 that a name has room for
  CHECK(setsockopt(chosen, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &high, sizeof high) == 0);
  const int yes = 1;
  for (const int option : {NETLINK_EXT_ACK, NETLINK_PKTINFO, NETLINK_GET_STRICT_CHK})
    CHECK(setsockopt(chosen, SOL_NETLINK, option, &yes, sizeof yes) == 0);
  const int events = netlink_socket(SOCK_DGRAM, NETLINK_KOBJECT_UEVENT);
  bind_to(events, 0, 0);
  const auto automatic_name = name_of(automatic);

  probe::ready();
  probe::wait_for_go();

  CHECK_EQUAL(name_of(fresh).nl_pid, 0);
  CHECK_EQUAL(option_of(fresh, SOL_SOCKET, SO_TYPE), SOCK_DGRAM);
  CHECK_EQUAL(name_of(automatic).nl_pid, automatic_name.nl_pid);
  CHECK_EQUAL(name_of(chosen).nl_pid, port);
  CHECK_EQUAL(name_of(chosen).nl_groups, RTMGRP_LINK | RTMGRP_IPV4_ROUTE);
  CHECK((fcntl(chosen, F_GETFL) & O_NONBLOCK) != 0);
  uint32_t groups[8] = {};
  socklen_t size = sizeof groups;
  CHECK(getsockopt(chosen, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups, &size) == 0);
  CHECK((groups[(high - 1) / 32] >> (high - 1) % 32 & 1) != 0);
  for (const int option : {NETLINK_EXT_ACK, NETLINK_PKTINFO, NETLINK_GET_STRICT_CHK})
    CHECK_EQUAL(option_of(chosen, SOL_NETLINK, option), 1);
  CHECK_EQUAL(option_of(chosen, SOL_NETLINK, NETLINK_CAP_ACK), 0);
  CHECK_EQUAL(option_of(events, SOL_SOCKET, SO_PROTOCOL), NETLINK_KOBJECT_UEVENT);
  expect_answer(automatic), expect_answer(fresh);
  return probe::passed();
}
