// The parsers of /proc on literal texts, as kernels print them.
#include <sys/mman.h>
#include <sys/resource.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernel/proc.h"

namespace stasis::kernel {
namespace {

using testing::ElementsAre;

TEST(ParseStat, CommWithBlanksAndParentheses) {
  const auto info = parse_stat(
      "4711 (a) b (c)) S 1 4711 4700 34816 4712 4194304 97 0 0 0 0 0 0 0 20 -5 3 0 12345 8192 100 18446744073709551615 "
      "94000000000000 94000000001000 140700000000000 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 94000000002000 94000000003000 "
      "94000000004000 140700000000100 140700000000200 140700000000200 140700000000300 256\n");
  ASSERT_TRUE(info) << info.error().message();
  EXPECT_EQ(info->comm, "a) b (c)");
  EXPECT_EQ(info->state, 'S');
  EXPECT_EQ(info->ppid, 1);
  EXPECT_EQ(info->pgrp, 4711);
  EXPECT_EQ(info->session, 4700);
  EXPECT_EQ(info->tty_nr, 34816);
  EXPECT_EQ(info->tty_pgrp, 4712);
  EXPECT_EQ(info->nice, -5);
  EXPECT_EQ(info->num_threads, 3);
  EXPECT_EQ(info->start_code, 94000000000000u);
  EXPECT_EQ(info->start_brk, 94000000004000u);
  EXPECT_EQ(info->env_end, 140700000000300u);
  EXPECT_EQ(info->exit_code, 256);
}

TEST(ParseStat, RefusesWhatIsCut) {
  EXPECT_FALSE(parse_stat(""));
  EXPECT_FALSE(parse_stat("1 (init) S 1 2 3"));
  EXPECT_FALSE(parse_stat("1 init S"));
  EXPECT_FALSE(parse_stat("1 )init( S 1 2"));
}

constexpr const char* status_text =
    "Name:\ta\\nb\\\\\nUmask:\t0027\nState:\tt (tracing stop)\nTgid:\t4711\nNgid:\t0\nPid:\t4712\nPPid:\t1\n"
    "TracerPid:\t99\nUid:\t0\t1\t2\t3\nGid:\t4\t5\t6\t7\nFDSize:\t64\nGroups:\t10 20 30 \nNStgid:\t4711\t1\n"
    "NSpid:\t4712\t2\nNSpgid:\t4711\t1\nNSsid:\t4711\t1\nKthread:\t0\nVmPeak:\t    100 kB\nVmPin:\t      12 "
    "kB\nTHP_enabled:\t0\n"
    "untag_mask:\t0xffffffffffffffff\nThreads:\t2\nSigQ:\t0/"
    "1000\nSigPnd:\t0000000000000001\nShdPnd:\t0000000000000002\n"
    "SigBlk:\t0000000000000004\nSigIgn:\t0000000000001000\nSigCgt:\tffffffff7ffbfeff\nCapInh:\t0000000000000000\n"
    "CapPrm:\t000001ffffffffff\nCapEff:\t000001fffeffffff\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000001\n"
    "NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n"
    "voluntary_ctxt_switches:\t77\nnonvoluntary_ctxt_switches:\t8\n";

TEST(ParseStatus, AllFields) {
  const auto info = parse_status(status_text);
  ASSERT_TRUE(info) << info.error().message();
  EXPECT_EQ(info->name, "a\nb\\");
  EXPECT_EQ(info->umask, 027u);
  EXPECT_EQ(info->state, 't');
  EXPECT_EQ(info->tgid, 4711);
  EXPECT_EQ(info->descriptor_table_size, 64u);
  EXPECT_EQ(info->pid, 4712);
  EXPECT_EQ(info->tracer, 99);
  EXPECT_THAT(info->uids, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(info->gids, ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(info->groups, ElementsAre(10, 20, 30));
  EXPECT_THAT(info->ns_tgid, ElementsAre(4711, 1));
  EXPECT_THAT(info->ns_pid, ElementsAre(4712, 2));
  EXPECT_THAT(info->ns_sid, ElementsAre(4711, 1));
  EXPECT_EQ(info->pinned_kb, 12u);
  EXPECT_FALSE(info->thp_enabled);
  EXPECT_EQ(info->sig_pending, 1u);
  EXPECT_EQ(info->shared_pending, 2u);
  EXPECT_EQ(info->caught, 0xffffffff7ffbfeffu);
  EXPECT_EQ(info->cap_effective, 0x1fffeffffffu);
  EXPECT_EQ(info->cap_ambient, 1u);
  EXPECT_TRUE(info->no_new_privs);
  EXPECT_EQ(info->seccomp, 2);
  EXPECT_EQ(info->seccomp_filters, 3);
  EXPECT_EQ(info->voluntary_switches, 77u);
}

TEST(ParseStatus, EmptyGroupsAndBadNumbers) {
  const auto info = parse_status("Pid:\t5\nGroups:\t \n");
  ASSERT_TRUE(info);
  EXPECT_TRUE(info->groups.empty());
  EXPECT_FALSE(parse_status("Pid:\tx\n"));
  EXPECT_FALSE(parse_status("Pid:\t1\nUid:\t0\t1\n"));
  EXPECT_FALSE(parse_status(""));
}

TEST(ParseMaps, Lines) {
  const auto maps = parse_maps(
      "00400000-00401000 r-xp 00001000 fe:01 1234567 /bin/a b\\012c (deleted)\n"
      "7ffff7ff9000-7ffff7ffd000 r--p 00000000 00:00 0                          [vvar]\n"
      "7f0000000000-7f0000010000 rw-s 00000000 00:01 42 /dev/zero (deleted)\n"
      "7f0000020000-7f0000030000 ---p 00000000 00:00 0 \n"
      "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n");
  ASSERT_TRUE(maps) << maps.error().message();
  ASSERT_EQ(maps->size(), 5u);
  EXPECT_EQ((*maps)[0].range, (AddressRange{0x400000, 0x401000}));
  EXPECT_EQ((*maps)[0].protection, static_cast<uint32_t>(PROT_READ | PROT_EXEC));
  EXPECT_EQ((*maps)[0].offset, 0x1000u);
  EXPECT_EQ((*maps)[0].device_major, 0xfeu);
  EXPECT_EQ((*maps)[0].inode, 1234567u);
  EXPECT_EQ((*maps)[0].path, "/bin/a b\nc (deleted)");
  EXPECT_EQ((*maps)[1].path, "[vvar]");
  EXPECT_TRUE((*maps)[2].shared);
  EXPECT_EQ((*maps)[3].path, "");
  EXPECT_EQ((*maps)[3].protection, 0u);
  EXPECT_EQ((*maps)[4].range.end, 0xffffffffff601000u);
  EXPECT_FALSE((*maps)[4].has_vm_flags);
}

TEST(ParseMaps, SmapsAttributes) {
  const auto maps = parse_maps(
      "7f0000000000-7f0000200000 rw-p 00000000 00:00 0                          [anon:my heap]\n"
      "Size:               2048 kB\nKernelPageSize:     2048 kB\nMMUPageSize:        2048 kB\nRss:                  12 "
      "kB\n"
      "Anonymous:             8 kB\nSwap:                  4 kB\nSwapPss:               0 kB\nLocked:                0 "
      "kB\n"
      "THPeligible:           0\nProtectionKey:         3\nVmFlags: rd wr mr mw me ac sd ?? \n");
  ASSERT_TRUE(maps) << maps.error().message();
  ASSERT_EQ(maps->size(), 1u);
  const auto& entry = maps->front();
  EXPECT_EQ(entry.path, "[anon:my heap]");
  EXPECT_EQ(entry.kernel_page_size, 2048u << 10);
  EXPECT_EQ(entry.rss_bytes, 12u << 10);
  EXPECT_EQ(entry.anonymous_bytes, 8u << 10);
  EXPECT_EQ(entry.swap_bytes, 4u << 10);
  EXPECT_EQ(entry.protection_key, 3);
  EXPECT_TRUE(entry.has_vm_flags);
  for (const char* flag : {"ac", "me", "mr", "mw", "rd", "sd", "wr"})
    EXPECT_TRUE(entry.vm_flags.contains(flag)) << flag;
  EXPECT_EQ(entry.vm_flags.size(), 7u);
  EXPECT_FALSE(entry.vm_flags.contains("ra"));
  EXPECT_FALSE(entry.vm_flags.contains("??"));
}

TEST(ParseMaps, RefusesNonsense) {
  EXPECT_FALSE(parse_maps("Rss: 4 kB\n"));
  EXPECT_FALSE(parse_maps("00400000-0040 r-xp 0 0:0 0\n"));
  EXPECT_FALSE(parse_maps("00400000-00401000 r-x 0 0:0 0\n"));
  EXPECT_FALSE(parse_maps("00400000-00401000 r-xp 0 0:0 0\nRss: x kB\n"));
  EXPECT_FALSE(parse_maps("00400000-00401000 r-xp 0 0:0 0\nRss: 18446744073709551615 kB\n"));
  EXPECT_TRUE(parse_maps("")->empty());
}

TEST(ParseFdInfo, CommonFieldsOnly) {
  const auto info =
      parse_fdinfo("pos:\t4096\nflags:\t02100002\nmnt_id:\t27\nino:\t99\neventfd-count:                5\npos:\tx\n");
  ASSERT_TRUE(info) << info.error().message();
  EXPECT_EQ(info->position, 4096u);
  EXPECT_EQ(info->flags, 02100002u);
  EXPECT_EQ(info->mount_id, 27);
  EXPECT_EQ(info->inode, 99u);
  EXPECT_THAT(info->text, testing::HasSubstr("eventfd-count"));
  EXPECT_FALSE(parse_fdinfo("pos:\t0\n"));
  EXPECT_FALSE(parse_fdinfo("pos:\tq\nflags:\t0\n"));
}

TEST(ParseLimits, AllSixteen) {
  std::string text = "Limit                     Soft Limit           Hard Limit           Units     \n";
  for (const char* name : {"Max cpu time", "Max file size", "Max data size", "Max stack size", "Max core file size",
                           "Max resident set", "Max processes", "Max open files", "Max locked memory",
                           "Max address space", "Max file locks", "Max pending signals", "Max msgqueue size",
                           "Max nice priority", "Max realtime priority", "Max realtime timeout"}) {
    text += name + std::string(name == std::string("Max open files") ? "  1024   4096   files\n"
                                                                     : "  unlimited  unlimited  x\n");
  }
  const auto limits = parse_limits(text);
  ASSERT_TRUE(limits) << limits.error().message();
  ASSERT_EQ(limits->size(), static_cast<size_t>(RLIM_NLIMITS));
  EXPECT_EQ((*limits)[RLIMIT_NOFILE].soft, 1024u);
  EXPECT_EQ((*limits)[RLIMIT_NOFILE].hard, 4096u);
  EXPECT_EQ((*limits)[RLIMIT_CPU].soft, ~uint64_t{0});
  EXPECT_FALSE(parse_limits("Max cpu time  1  2  s\n"));
}

TEST(ParseTimers, Kinds) {
  const auto timers = parse_timers(
      "ID: 0\nsignal: 14/00007ffd00000010\nnotify: signal/pid.4711\nClockID: 0\n"
      "ID: 7\nsignal: 34/0x10\nnotify: signal/tid.4712\nClockID: 1\n"
      "ID: 8\nsignal: 0/0\nnotify: none/pid.4711\nClockID: -6\n");
  ASSERT_TRUE(timers) << timers.error().message();
  ASSERT_EQ(timers->size(), 3u);
  EXPECT_EQ((*timers)[0].signal, 14);
  EXPECT_EQ((*timers)[0].value, 0x7ffd00000010u);
  EXPECT_EQ((*timers)[0].notification, 0);
  EXPECT_EQ((*timers)[0].notified, 4711);
  EXPECT_EQ((*timers)[1].id, 7);
  EXPECT_EQ((*timers)[1].value, 0x10u);
  EXPECT_EQ((*timers)[1].notification, 4);
  EXPECT_EQ((*timers)[1].notified, 4712);
  EXPECT_EQ((*timers)[2].notification, 1);
  EXPECT_EQ((*timers)[2].clock, -6);
  EXPECT_FALSE(parse_timers("signal: 1/2\n"));
}

}  // namespace
}  // namespace stasis::kernel
