#include "kernel/fdinfo.h"

#include <gtest/gtest.h>

#include "kernel/mounts.h"

namespace stasis::kernel {
namespace {

constexpr std::string_view head = "pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t1038\n";
std::string with_head(std::string_view rest) { return std::string(head) + std::string(rest); }

TEST(Fdinfo, Eventfd) {
  const auto info = parse_eventfd(with_head("eventfd-count:               ff\neventfd-id: 1\neventfd-semaphore: 1\n"));
  ASSERT_TRUE(info);
  EXPECT_EQ(info->counter, 255u);
  EXPECT_EQ(info->semaphore, true);
  const auto old = parse_eventfd(with_head("eventfd-count:                3\n"));
  ASSERT_TRUE(old);
  EXPECT_EQ(old->semaphore, std::nullopt);
  EXPECT_FALSE(parse_eventfd(head));
}

TEST(Fdinfo, Timerfd) {
  const auto info =
      parse_timerfd(with_head("clockid: 8\nticks: 3\nsettime flags: 03\nit_value: (1, 500)\nit_interval: (2, 0)\n"));
  ASSERT_TRUE(info);
  EXPECT_EQ(info->clock, 8);
  EXPECT_EQ(info->ticks, 3u);
  EXPECT_EQ(info->settime_flags, 3u);
  EXPECT_EQ(info->remaining_ns, 1'000'000'500u);
  EXPECT_EQ(info->interval_ns, 2'000'000'000u);
  EXPECT_FALSE(parse_timerfd(with_head("clockid: 8\nticks: 3\nsettime flags: 03\nit_value: (1\n")));
}

TEST(Fdinfo, Locks) {
  const auto text = with_head(
      "lock:\t1: POSIX  ADVISORY  WRITE 4711 fd:01:1038 100 199\n"
      "lock:\t2: OFDLCK ADVISORY  READ -1 00:2b:1038 0 EOF\n"
      "lock:\t3: FLOCK  ADVISORY  WRITE 4711 fd:01:1038 0 EOF\n"
      "lock:\t4: LEASE  BREAKING  UNLCK 4711 fd:01:1038 0 EOF\n");
  const auto locks = parse_locks(text);
  ASSERT_TRUE(locks && locks->size() == 4);
  const auto& posix = locks->at(0);
  EXPECT_EQ(posix.kind, "POSIX");
  EXPECT_EQ(posix.type, "WRITE");
  EXPECT_FALSE(posix.breaking);
  EXPECT_EQ(posix.pid, 4711);
  EXPECT_EQ(posix.device_major, 0xfdu);
  EXPECT_EQ(posix.inode, 1038u);
  EXPECT_EQ(posix.start, 100u);
  EXPECT_EQ(posix.length, 100u);
  EXPECT_EQ(locks->at(1).kind, "OFDLCK");
  EXPECT_EQ(locks->at(1).pid, -1);
  EXPECT_EQ(locks->at(1).device_minor, 0x2bu);
  EXPECT_EQ(locks->at(1).length, 0u);
  EXPECT_TRUE(locks->at(3).breaking);
  EXPECT_EQ(locks->at(3).type, "UNLCK");
  EXPECT_TRUE(parse_locks(head)->empty());
  EXPECT_FALSE(parse_locks(with_head("lock:\t1: POSIX  ADVISORY  WRITE 4711 fd:01:1038 5 4\n")));
  EXPECT_FALSE(parse_locks(with_head("lock:\t1: POSIX  ADVISORY  WRITE x fd:01:1038 0 EOF\n")));
}

TEST(Fdinfo, LocksOfTheSystem) {
  const auto locks = parse_all_locks(
      "1: FLOCK  ADVISORY  WRITE 12 fd:01:7 0 EOF\n"
      "1: -> FLOCK  ADVISORY  WRITE 13 fd:01:7 0 EOF\n");
  ASSERT_TRUE(locks);
  ASSERT_EQ(locks->size(), 1u);
  EXPECT_EQ(locks->front().pid, 12);
}

TEST(Fdinfo, Signalfd) {
  EXPECT_EQ(parse_signalfd(with_head("sigmask:\t0000000400000200\n")), 0x400000200u);
  EXPECT_FALSE(parse_signalfd(head));
}

TEST(Fdinfo, Epoll) {
  const auto targets =
      parse_epoll(with_head("tfd:        3 events: 40000019 data: 1122334455667788  pos:0 ino:40e sdev:10\n"
                            "tfd:       12 events:       1d data:                c  pos:-1 ino:2 sdev:fe00000\n"));
  ASSERT_TRUE(targets);
  ASSERT_EQ(targets->size(), 2u);
  EXPECT_EQ(targets->front().fd, 3);
  EXPECT_EQ(targets->front().events, 0x40000019u);
  EXPECT_EQ(targets->front().data, 0x1122334455667788u);
  EXPECT_EQ(targets->front().inode, 0x40eu);
  EXPECT_EQ(targets->front().device, 0x10u);
  EXPECT_EQ(targets->back().position, ~0ull);
  EXPECT_EQ(parse_epoll(head)->size(), 0u);
  EXPECT_FALSE(parse_epoll(with_head("tfd:        3 events: 40000019\n")));
}

TEST(Fdinfo, Inotify) {
  const auto watches = parse_inotify(
      with_head("inotify wd:1f ino:3c51a sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 "
                "f_handle:1ac5030000000000\n"
                "inotify wd:1 ino:1 sdev:4 mask:2 ignored_mask:0\n"));
  ASSERT_TRUE(watches);
  ASSERT_EQ(watches->size(), 2u);
  EXPECT_EQ(watches->front().descriptor, 31);
  EXPECT_EQ(watches->front().inode, 0x3c51au);
  EXPECT_EQ(watches->front().handle.bytes, (Bytes{0x1a, 0xc5, 3, 0, 0, 0, 0, 0}));
  EXPECT_TRUE(watches->back().handle.bytes.empty());
  EXPECT_FALSE(
      parse_inotify(with_head("inotify wd:1 ino:1 sdev:4 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 "
                              "f_handle:1ac5\n")));
}

TEST(Fdinfo, Fanotify) {
  const auto info = parse_fanotify(
      with_head("fanotify flags:11 event-flags:8000\n"
                "fanotify sdev:fe00000 mflags:0 mask:8 ignored_mask:0\n"
                "fanotify mnt_id:1b mflags:40 mask:8 ignored_mask:2\n"
                "fanotify ino:3c51a sdev:fe00000 mflags:0 mask:40000008 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 "
                "f_handle:1ac5030000000000\n"));
  ASSERT_TRUE(info);
  EXPECT_EQ(info->flags, 0x11u);
  EXPECT_EQ(info->event_flags, 0x8000u);
  ASSERT_EQ(info->marks.size(), 3u);
  EXPECT_EQ(info->marks[0].kind, FanotifyMark::Kind::filesystem);
  EXPECT_EQ(info->marks[1].kind, FanotifyMark::Kind::mount);
  EXPECT_EQ(info->marks[1].mount_id, 0x1bu);
  EXPECT_EQ(info->marks[1].flags, 0x40u);
  EXPECT_EQ(info->marks[1].ignored_mask, 2u);
  EXPECT_EQ(info->marks[2].kind, FanotifyMark::Kind::inode);
  EXPECT_EQ(info->marks[2].mask, 0x40000008u);
  EXPECT_FALSE(parse_fanotify(head));
}

TEST(Fdinfo, Pidfd) {
  EXPECT_EQ(parse_pidfd(with_head("Pid:\t-1\nNSpid:\t-1\n"))->pid, -1);
  EXPECT_EQ(parse_pidfd(with_head("Pid:\t4711\nNSpid:\t4711\t3\n"))->pid, 4711);
  EXPECT_FALSE(parse_pidfd(head));
}

TEST(Fdinfo, BpfMap) {
  const std::string map =
      "map_type:\t2\nkey_size:\t4\nvalue_size:\t8\nmax_entries:\t16\nmap_flags:\t0x80\nmap_extra:\t0x0\n"
      "memlock:\t440\nmap_id:\t25\nfrozen:\t1\n";
  const auto info = parse_bpf_map(with_head(map));
  ASSERT_TRUE(info);
  EXPECT_EQ(info->type, 2u);
  EXPECT_EQ(info->value_size, 8u);
  EXPECT_EQ(info->flags, 0x80u);
  EXPECT_EQ(info->memory, 440u);
  EXPECT_TRUE(info->frozen);
  EXPECT_FALSE(parse_bpf_map(with_head(map.substr(0, map.size() - 10))));
  EXPECT_FALSE(parse_bpf_map(with_head("map_flags:\t128\n" + map)));
}

TEST(Mountinfo, Lines) {
  const auto mounts = parse_mountinfo(
      "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
      "30 27 0:25 /sub /mnt/with\\040blank rw - tmpfs none rw\n");
  ASSERT_TRUE(mounts);
  ASSERT_EQ(mounts->size(), 2u);
  EXPECT_EQ(mounts->front().id, 27);
  EXPECT_EQ(mounts->front().device_major, 254u);
  EXPECT_EQ(mounts->back().device_minor, 25u);
  EXPECT_EQ(mounts->back().point, "/mnt/with blank");
  EXPECT_EQ(mounts->front().type, "ext4");
  EXPECT_EQ(mounts->front().options, "rw");
  EXPECT_EQ(mounts->back().root, "/sub");
  EXPECT_EQ(mounts->back().type, "tmpfs");
  EXPECT_FALSE(parse_mountinfo("nonsense\n"));
}

}  // namespace
}  // namespace stasis::kernel
