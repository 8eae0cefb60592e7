// One thing is wrong in an otherwise good checkpoint: the error says which file and which field.
#include <gmock/gmock.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/inotify.h>
#include <sys/socket.h>

#include "core.pb.h"
#include "criu_images.h"
#include "fdinfo.pb.h"
#include "fs.pb.h"
#include "ids.pb.h"
#include "inventory.pb.h"
#include "locks.pb.h"
#include "mm.pb.h"
#include "mqueue.pb.h"
#include "namespaces.pb.h"
#include "pagemap.pb.h"
#include "pstree.pb.h"
#include "resource/codec.h"
#include "sockets_more.pb.h"
#include "terminals.pb.h"

namespace stasis::resource {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class Hostile : public CriuImages {
 protected:
  template <typename Record>
  using Change = std::function<void(std::vector<Record>&)>;

  /// Changes the records of a file, decodes, puts the file back.
  template <typename Record>
  std::string error_after(const std::string& file, const Change<Record>& change) {
    const std::string before = bytes("theirs/" + file);
    std::vector<Record> records;
    auto reader = theirs->read(file);
    EXPECT_TRUE(reader);
    for (Record record; *reader->next(record);) records.push_back(record);
    change(records);
    auto writer = theirs->create(file);
    EXPECT_TRUE(writer);
    for (const Record& record : records) EXPECT_TRUE(writer->append(record));
    EXPECT_TRUE(writer->finish());
    auto error = decoded();
    std::ofstream(root_ / "theirs" / file, std::ios::binary) << before;
    return error;
  }

  template <typename Record>
  std::string error_of_first(const std::string& file, const std::function<void(Record&)>& change) {
    return error_after<Record>(file, [&](std::vector<Record>& records) { change(records.front()); });
  }

  std::string decoded() {
    const auto application = decode(*theirs);
    return application ? "none" : application.error().message();
  }

  /// With a file of one record more than there is, which is not among theirs.
  template <typename Record>
  std::string error_with_side(const std::string& file, const std::function<void(Record&)>& fill,
                              const std::function<std::string()>& decode) {
    auto writer = theirs->create(file);
    EXPECT_TRUE(writer);
    Record record;
    fill(record);
    EXPECT_TRUE(writer->append(record));
    EXPECT_TRUE(writer->finish());
    auto error = decode();
    std::filesystem::remove(root_ / "theirs" / file);
    return error;
  }

  /// Its chunks follow the record, and stay.
  std::string error_of_first_of_ghost(const std::function<void(ghost_file_entry&)>& change) {
    const std::string file = "ghost-file-1.img", before = bytes("theirs/" + file);
    auto reader = theirs->read(file);
    ghost_file_entry ghost;
    EXPECT_TRUE(reader && *reader->next(ghost));
    change(ghost);
    auto writer = theirs->create(file);
    EXPECT_TRUE(writer && writer->append(ghost) && writer->append_raw(*reader->raw(reader->remaining())));
    EXPECT_TRUE(writer->finish());
    auto error = decoded();
    std::ofstream(root_ / "theirs" / file, std::ios::binary) << before;
    return error;
  }

  std::string error_without(const std::string& file) {
    std::filesystem::rename(root_ / "theirs" / file, root_ / "aside");
    auto error = decoded();
    std::filesystem::rename(root_ / "aside", root_ / "theirs" / file);
    return error;
  }

  const std::string core = "core-31904.img", ids = "ids-31904.img", mm = "mm-31904.img";
};

TEST_F(Hostile, TheCheckpointItselfIsGood) { EXPECT_EQ(decoded(), "none"); }

TEST_F(Hostile, MissingFilesAreNamed) {
  for (const char* file : {"inventory.img", "pstree.img", "core-31907.img", "ids-31907.img", "mm-31907.img",
                           "fs-31907.img", "pages-2.img", "ghost-file-1.img", "pagemap-31904.img"})
    EXPECT_THAT(error_without(file), HasSubstr(file)) << file;
  EXPECT_THAT(error_without("files.img"), HasSubstr("files.img"));
}

TEST_F(Hostile, ProcessesOfAnotherKind) {
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.set_mtype(core_entry::AARCH64); }),
              AllOf(HasSubstr(core + ", field mtype"), HasSubstr("AARCH64")));
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.mutable_tc()->set_task_state(99); }),
              AllOf(HasSubstr(core + ", field tc.task_state"), HasSubstr("99")));
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.mutable_tc()->set_task_state(2); }),
              AllOf(HasSubstr(core + ", field tc.task_state"), HasSubstr("the root is a zombie")));
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.clear_tc(); }), HasSubstr(core + ", field tc"));
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.clear_thread_core(); }),
              HasSubstr(core + ", field thread_core"));
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.clear_thread_info(); }),
              HasSubstr(core + ", field thread_info"));
  EXPECT_THAT(error_of_first<core_entry>("core-31907.img",
                                         [](auto& r) {
                                           r.mutable_tc()->set_task_state(2);
                                           r.mutable_tc()->set_exit_code(0x10000);
                                         }),
              HasSubstr("core-31907.img, field tc.exit_code"));
  EXPECT_THAT(error_of_first<core_entry>(core,
                                         [](auto& r) {
                                           r.mutable_tc()->set_task_state(3);
                                           r.mutable_tc()->set_stop_signo(9);
                                         }),
              HasSubstr(core + ", field tc.stop_signo"));
}

TEST_F(Hostile, CallsThatAreNotInterrupted) {
  const auto error_of_call = [&](uint64_t in_registers, uint32_t number, uint64_t remaining) {
    return error_of_first<core_entry>(core, [&](auto& r) {
      r.mutable_thread_info()->mutable_gpregs()->set_ax(in_registers);
      auto& call = *r.mutable_thread_core()->mutable_interrupted_call();
      call.set_number(number), call.set_remaining_ns(remaining);
    });
  };
  constexpr uint32_t poll = 7, nanosleep = 35, pause = 34;
  const std::string field = core + ", field thread_core.interrupted_call.";
  EXPECT_EQ(error_of_call(poll, poll, 5), "none");
  EXPECT_THAT(error_of_call(pause, pause, 5), AllOf(HasSubstr(field + "number"), HasSubstr("34")));
  EXPECT_THAT(error_of_call(nanosleep, poll, 5),
              AllOf(HasSubstr(field + "number"), HasSubstr("before system call 35")));
  EXPECT_THAT(error_of_call(poll, poll, uint64_t{1} << 63), HasSubstr(field + "remaining_ns"));
}

TEST_F(Hostile, LeadersThatHaveEnded) {
  const auto error_of_status = [&](const std::string& file, uint32_t status, uint32_t state = 1) {
    return error_of_first<core_entry>(file, [&](auto& r) {
      r.clear_thread_info();
      r.mutable_tc()->set_leader_exit_status(status);
      r.mutable_tc()->set_task_state(state);
    });
  };
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.mutable_tc()->set_leader_exit_status(0); }),
              AllOf(HasSubstr(core + ", field thread_info"), HasSubstr("has no registers")));
  EXPECT_THAT(error_of_status(core, 0),
              AllOf(HasSubstr(core + ", field tc.leader_exit_status"), HasSubstr("no other")));
  EXPECT_THAT(error_of_status("core-31907.img", 0, 2),
              AllOf(HasSubstr("core-31907.img, field tc.leader_exit_status"), HasSubstr("a zombie")));
  const std::string before = bytes("theirs/" + core);
  std::ofstream(root_ / "theirs/core-40000.img", std::ios::binary) << before;
  const auto error_beside_another = [&](uint32_t status) {
    auto error = error_after<pstree_entry>("pstree.img", [&](auto& tasks) {
      tasks[0].add_threads(40000);
      core_entry record;
      ASSERT_TRUE(theirs->read(core)->single(record));
      record.clear_thread_info();
      record.mutable_tc()->set_leader_exit_status(status);
      auto writer = theirs->create(core);
      ASSERT_TRUE(writer->append(record));
      ASSERT_TRUE(writer->finish());
    });
    std::ofstream(root_ / "theirs" / core, std::ios::binary) << before;
    return error;
  };
  EXPECT_THAT(error_beside_another(9), HasSubstr("0x9 is no status of exit"));
  EXPECT_THAT(error_beside_another(0x10000), HasSubstr("0x10000 is no status of exit"));
  EXPECT_EQ(error_beside_another(0x700), "none");
}

TEST_F(Hostile, AZombieHasNoChildren) {
  const std::string before = bytes("theirs/core-31907.img");
  std::ofstream(root_ / "theirs/core-31907.img", std::ios::binary) << before;
  EXPECT_THAT(error_after<pstree_entry>("pstree.img",
                                        [&](auto& tasks) {
                                          tasks[2].set_ppid(tasks[1].pid());
                                          core_entry record;
                                          auto reader = theirs->read("core-31907.img");
                                          ASSERT_TRUE(reader->single(record));
                                          record.mutable_tc()->set_task_state(2);
                                          auto writer = theirs->create("core-31907.img");
                                          ASSERT_TRUE(writer->append(record));
                                          ASSERT_TRUE(writer->finish());
                                        }),
              AllOf(HasSubstr("pstree.img, field ppid"), HasSubstr("child of the zombie 31907")));
}

/// Nested pid namespaces have to fit together: who lives where, with how many ids.
TEST_F(Hostile, NestedPidNamespaces) {
  const auto error_of_last = [&](const std::function<void(pstree_entry&)>& change) {
    return error_after<pstree_entry>("pstree.img", [&](auto& tasks) { change(tasks.back()); });
  };
  EXPECT_THAT(error_of_last([](auto& r) { r.add_nested_pids(0); }),
              AllOf(HasSubstr("pstree.img"), HasSubstr("field nested_pids"), HasSubstr("0 cannot be a pid")));
  EXPECT_THAT(error_of_last([](auto& r) { r.add_nested_pids(1); }),
              AllOf(HasSubstr("pstree.img, field nested_pids"), HasSubstr("0 levels deep")));
  EXPECT_THAT(error_of_last([](auto& r) { r.set_pid_namespace(4711); }), HasSubstr("the init of none"));
  EXPECT_THAT(error_of_last([](auto& r) { r.set_outer_namespace(4711); }), HasSubstr("the init of no pid namespace"));
  EXPECT_THAT(error_of_last([](auto& r) { r.set_outer_namespace(0xffffffff); }), HasSubstr("field outer_namespace"));
  EXPECT_THAT(error_of_last([](auto& r) {
                r.add_nested_pids(1);
                r.set_pid_namespace(r.pid());
              }),
              HasSubstr("0 nested ids instead of 1"));  // its threads have none
  EXPECT_THAT(error_of_last([](auto& r) { r.set_childrens_namespace(r.pid()); }),
              HasSubstr("which is none below its own"));
  EXPECT_THAT(error_of_last([](auto& r) { r.set_childrens_namespace(0xffffffff); }),
              AllOf(HasSubstr("pstree.img"), HasSubstr("field childrens_namespace")));
  EXPECT_THAT(error_of_last([](auto& r) { r.set_parent_thread(0xffffffff); }),
              AllOf(HasSubstr("pstree.img"), HasSubstr("field parent_thread")));
  EXPECT_THAT(error_of_last([](auto& r) {
                auto& leader = *r.add_dead_leaders();
                leader.set_pid(4711);
                leader.set_pid_namespace(0xffffffff);
              }),
              HasSubstr("field dead_leaders.pid_namespace"));
  EXPECT_THAT(error_of_last([](auto& r) {
                auto& leader = *r.add_dead_leaders();
                leader.set_pid(4711);
                leader.add_nested_pids(2);
                leader.set_pid_namespace(r.pid());
              }),
              HasSubstr("the dead leader 4711"));
  EXPECT_THAT(error_of_first<core_entry>(core, [](auto& r) { r.mutable_thread_core()->add_nested_tids(0x7fffffff); }),
              HasSubstr(core + ", field thread_core.nested_tids"));
}

/// Each thread says for itself where its children are born.
TEST_F(Hostile, ChildrensNamespacesOfThreads) {
  core_entry of_leader;
  ASSERT_TRUE(theirs->read(core)->single(of_leader));
  const auto error_of = [&](uint32_t space) {
    const auto fill = [&](core_entry& record) {
      record = of_leader;
      record.clear_tc();
      record.mutable_thread_core()->set_childrens_namespace(space);
    };
    return error_with_side<core_entry>("core-40000.img", fill, [&] {
      return error_after<pstree_entry>("pstree.img", [](auto& tasks) { tasks[0].add_threads(40000); });
    });
  };
  EXPECT_THAT(error_of(0xffffffff), HasSubstr("core-40000.img, field thread_core.childrens_namespace"));
  EXPECT_THAT(error_of(4711), HasSubstr("which is none below its own"));
  EXPECT_EQ(error_of(0), "none") << "a namespace that is still empty";
}

TEST_F(Hostile, ObjectsThatAreNotThere) {
  EXPECT_THAT(error_of_first<task_kobj_ids_entry>(ids, [](auto& r) { r.set_vm_id(0); }),
              HasSubstr(ids + ", field vm_id"));
  EXPECT_THAT(error_of_first<task_kobj_ids_entry>(ids, [](auto& r) { r.set_sighand_id(0); }),
              HasSubstr(ids + ", field sighand_id"));
  EXPECT_THAT(error_of_first<fs_entry>("fs-31904.img", [](auto& r) { r.set_cwd_id(4711); }),
              AllOf(HasSubstr("fs-31904.img, field cwd_id"), HasSubstr("4711 is not in files.img")));
  EXPECT_THAT(error_of_first<fdinfo_entry>("fdinfo-2.img", [](auto& r) { r.set_id(4711); }),
              AllOf(HasSubstr("fdinfo-2.img, record 0"), HasSubstr("field id"), HasSubstr("4711 is not in files.img")));
  EXPECT_THAT(error_of_first<mm_entry>(mm, [](auto& r) { r.set_exe_file_id(4711); }),
              HasSubstr(mm + ", field exe_file_id"));
}

TEST_F(Hostile, NumbersThatAreTaken) {
  EXPECT_THAT(error_after<fdinfo_entry>("fdinfo-2.img", [](auto& slots) { slots[1].set_fd(slots[0].fd()); }),
              AllOf(HasSubstr("fdinfo-2.img, record 1"), HasSubstr("field fd"), HasSubstr("occurs twice")));
  EXPECT_THAT(error_of_first<fdinfo_entry>("fdinfo-2.img", [](auto& r) { r.set_fd(0x80000000); }),
              HasSubstr("is no descriptor"));
  EXPECT_THAT(error_after<file_entry>("files.img", [](auto& files) { files.push_back(files[0]); }),
              AllOf(HasSubstr("files.img"), HasSubstr("field id"), HasSubstr("twice")));
}

TEST_F(Hostile, NamespacesOfItsOwn) {
  EXPECT_THAT(error_of_first<task_kobj_ids_entry>(ids, [](auto& r) { r.set_net_ns_id(99); }),
              HasSubstr(ids + ", field net_ns_id"));
  EXPECT_THAT(error_of_first<task_kobj_ids_entry>(ids, [](auto& r) { r.set_pid_ns_id(99); }),
              AllOf(HasSubstr(ids + ", field pid_ns_id"), HasSubstr("not pid 1")));
  EXPECT_THAT(error_of_first<task_kobj_ids_entry>("ids-31907.img", [](auto& r) { r.set_pid_ns_id(99); }),
              HasSubstr("ids-31907.img, field pid_ns_id"));
  EXPECT_THAT(error_of_first<inventory_entry>("inventory.img", [](auto& r) { r.set_img_version(1); }),
              HasSubstr("img_version"));
}

/// An open file of some other kind, which would be good if it were not for one field.
class HostileFile : public Hostile {
 protected:
  static constexpr uint32_t id = 90001;
  std::string error_of(fd_types type, const std::function<void(file_entry&)>& fill) {
    return error_after<file_entry>("files.img", [&](auto& files) {
      files.emplace_back();
      files.back().set_type(type), files.back().set_id(id);
      fill(files.back());
    });
  }
  /// What each kind has: `entry` gets its id, flags and owner.
  template <typename Entry>
  static Entry& begun(Entry* entry) {
    entry->set_id(id), entry->set_flags(2);
    auto& owner = *entry->mutable_fown();
    owner.set_uid(0), owner.set_euid(0), owner.set_signum(0), owner.set_pid_type(0), owner.set_pid(0);
    return *entry;
  }
  static testing::Matcher<std::string> at(const std::string& field) {
    return HasSubstr("files.img, file 90001, field " + field);
  }
};

TEST_F(HostileFile, HasNothingOfItsKind) {
  for (const auto type : {EVENTFD, EVENTPOLL, SIGNALFD, TIMERFD, INOTIFY, FANOTIFY, PIDFD, BPFMAP, POSIX_MQUEUE,
                          NETLINKSK, PACKETSK, INETSK})
    EXPECT_THAT(error_of(type, [](auto&) {}), at("type")) << fd_types_Name(type);
}

TEST_F(HostileFile, Eventfd) {
  const auto with = [&](uint64_t counter) {
    return error_of(EVENTFD, [&](auto& file) { begun(file.mutable_efd()).set_counter(counter); });
  };
  EXPECT_EQ(with(~0ull - 1), "none");
  EXPECT_THAT(with(~0ull), at("efd.counter"));
}

TEST_F(HostileFile, Timerfd) {
  const auto with = [&](const std::function<void(timerfd_entry&)>& change) {
    return error_of(TIMERFD, [&](auto& file) {
      auto& timer = begun(file.mutable_tfd());
      timer.set_clockid(1), timer.set_ticks(0), timer.set_settime_flags(0);
      timer.set_vsec(1), timer.set_vnsec(0), timer.set_isec(1), timer.set_insec(0);
      change(timer);
    });
  };
  EXPECT_EQ(with([](auto&) {}), "none");
  EXPECT_THAT(with([](auto& t) { t.set_clockid(2); }), at("tfd.clockid"));
  EXPECT_THAT(with([](auto& t) { t.set_settime_flags(4); }), at("tfd.settime_flags"));
  EXPECT_THAT(with([](auto& t) { t.set_vnsec(1'000'000'000); }), at("tfd.vsec"));
  EXPECT_THAT(with([](auto& t) { t.set_vsec(~0ull); }), at("tfd.vsec"));
  EXPECT_THAT(with([](auto& t) { t.set_isec(1ull << 40); }), at("tfd.isec"));
  EXPECT_THAT(with([](auto& t) { t.set_expires_ns(~0ull); }), at("tfd.expires_ns"));
}

TEST_F(HostileFile, Epoll) {
  const auto with = [&](const std::function<void(eventpoll_tfd_entry&)>& change, int times = 1) {
    std::string error;
    error_after<fdinfo_entry>("fdinfo-2.img", [&](auto& slots) {
      slots.push_back(slots.front());
      slots.back().set_id(id), slots.back().set_type(EVENTPOLL), slots.back().set_fd(77);
      auto writer = theirs->create("fdinfo-2.img");
      for (const auto& slot : slots) EXPECT_TRUE(writer->append(slot));
      EXPECT_TRUE(writer->finish());
      error = error_of(EVENTPOLL, [&](auto& file) {
        auto& epoll = begun(file.mutable_epfd());
        for (int i = 0; i < times; ++i) {
          auto& target = *epoll.add_tfd();
          target.set_id(id), target.set_tfd(slots.front().fd()), target.set_events(0x19), target.set_data(5);
          change(target);
        }
      });
    });
    return error;
  };
  EXPECT_EQ(with([](auto&) {}), "none");
  EXPECT_THAT(with([](auto& t) { t.set_tfd(1u << 30); }), at("epfd.tfd"));
  EXPECT_THAT(with([](auto& t) { t.set_added_under(~0u); }), at("epfd.tfd"));
  EXPECT_THAT(with([](auto& t) { t.set_events(1u << 31); }), at("epfd.events"));
  EXPECT_THAT(with([](auto& t) { t.set_tfd(4711); }), AllOf(at("epfd.tfd"), HasSubstr("not open in any")));
  EXPECT_THAT(with([](auto& t) { t.set_target(4711); }), AllOf(at("epfd.tfd"), HasSubstr("not open in any")));
  EXPECT_THAT(with([](auto& t) { t.set_tfd(77); }), at("epfd.tfd"));
  EXPECT_THAT(with([](auto&) {}, 2), AllOf(at("epfd.tfd"), HasSubstr("twice")));
  EXPECT_THAT(error_of(EVENTPOLL,
                       [&](auto& file) {
                         auto& busy = *begun(file.mutable_epfd()).mutable_busy_poll();
                         busy.set_microseconds(1), busy.set_budget(1 << 16), busy.set_preferred(true);
                       }),
              at("epfd.busy_poll"));
}

class HostileTerminal : public HostileFile {
 protected:
  static constexpr uint32_t index = 7, slave = index << 1, master = slave | 1;

  static tty_info_entry info(uint32_t id) {
    tty_info_entry entry;
    entry.set_id(id), entry.set_type(PTY), entry.set_rdev(id == master ? 0x502 : 0x8800 | index);
    entry.set_locked(false), entry.set_exclusive(false), entry.set_packet_mode(false);
    entry.set_sid(0), entry.set_pgrp(0), entry.mutable_pty()->set_index(index);
    auto& modes = *entry.mutable_termios();
    modes.set_c_iflag(0), modes.set_c_oflag(0), modes.set_c_cflag(0), modes.set_c_lflag(0), modes.set_c_line(0);
    modes.set_c_ispeed(0), modes.set_c_ospeed(0);
    for (int i = 0; i < 19; ++i) modes.add_c_cc(0);
    return entry;
  }
  /// Both sides of a terminal, of which the master side is open.
  std::string with(const std::function<void(tty_info_entry& master, tty_info_entry& slave)>& change,
                   const std::function<void(tty_data_entry&)>& queue = {}, uint32_t opened = master) {
    auto first = info(master), second = info(slave);
    change(first, second);
    write("tty-info.img", first, second);
    if (queue) {
      tty_data_entry data;
      data.set_tty_id(slave), data.set_data("typed");
      queue(data);
      write("tty-data.img", data);
    }
    auto error = error_of(TTY, [&](auto& file) { begun(file.mutable_tty()).set_tty_info_id(opened); });
    std::filesystem::remove(root_ / "theirs/tty-info.img");
    std::filesystem::remove(root_ / "theirs/tty-data.img");
    return error;
  }
  template <typename... Records>
  void write(const std::string& file, const Records&... records) {
    auto writer = theirs->create(file);
    for (const auto& done : {writer->append(records)...}) EXPECT_TRUE(done);
    EXPECT_TRUE(writer->finish());
  }
};

TEST_F(HostileTerminal, Devices) {
  using Info = tty_info_entry;
  EXPECT_EQ(with([](Info&, Info&) {}), "none");
  EXPECT_THAT(with([](Info&, Info&) {}, {}, 99), HasSubstr("terminal 99 is not in tty-info.img"));
  const auto at_info = [](const std::string& problem) {
    return AllOf(HasSubstr("tty-info.img, terminal"), HasSubstr(problem));
  };
  EXPECT_THAT(with([](Info&, Info& s) { s.clear_pty(); }), at_info("field pty.index"));
  EXPECT_THAT(with([](Info&, Info& s) { s.mutable_pty()->set_index(1 << 20); }), at_info("field pty.index"));
  EXPECT_THAT(with([](Info& m, Info&) { m.mutable_pty()->set_index(8); }), at_info("its other side"));
  EXPECT_THAT(with([](Info& m, Info& s) { m.mutable_pty()->set_index(8), s.mutable_pty()->set_index(8); }),
              at_info("the index 8 of another"));
  EXPECT_THAT(with([](Info&, Info& s) { s.clear_termios(); }), at_info("field termios"));
  EXPECT_THAT(with([](Info&, Info& s) { s.mutable_termios()->clear_c_cc(); }), at_info("termios.c_cc"));
  EXPECT_THAT(with([](Info& m, Info&) { m.set_type(SERIAL); }), at_info("do not belong together"));
  EXPECT_THAT(with([](Info& m, Info&) { m.set_sid(4711), m.set_pgrp(4711); }),
              HasSubstr("/dev/pts/7 controls session 4711, which nobody leads"));
}

TEST_F(HostileTerminal, Queues) {
  const auto queue = [&](const std::function<void(tty_data_entry&)>& change) {
    return with([](tty_info_entry&, tty_info_entry&) {}, change);
  };
  EXPECT_EQ(queue([](tty_data_entry&) {}), "none");
  EXPECT_THAT(queue([](tty_data_entry& d) { d.set_data(std::string(1 << 20, 'x')); }),
              HasSubstr("tty-data.img, terminal 14"));
  EXPECT_THAT(queue([](tty_data_entry& d) { d.set_tty_id(master), d.set_data(std::string((32 << 10) + 1, 'x')); }),
              HasSubstr("tty-data.img, terminal 15"));
}

TEST_F(HostileFile, MemfdOfHugePages) {
  constexpr uint32_t huge = 4, two_megabytes = 21u << 26;
  const auto with = [&](uint32_t flag, uint64_t size) {
    const auto fill = [&](memfd_inode_entry& inode) {
      inode.set_name("huge"), inode.set_uid(0), inode.set_gid(0), inode.set_size(size), inode.set_shmid(5);
      inode.set_seals(0), inode.set_inode_id(5), inode.set_hugetlb_flag(flag);
    };
    return error_with_side<memfd_inode_entry>("memfd.img", fill, [&] {
      return error_of(MEMFD, [&](auto& file) {
        auto& memfd = begun(file.mutable_memfd());
        memfd.set_pos(0), memfd.set_inode_id(5);
      });
    });
  };
  const std::string later = "pagemap-shmem-5.img";  // of pages there is nothing
  EXPECT_THAT(with(huge | two_megabytes, 4 << 20), HasSubstr(later));
  EXPECT_THAT(with(0, 5), HasSubstr(later));
  EXPECT_THAT(with(huge | two_megabytes, 3 << 20), HasSubstr("no whole pages of 2097152"));
  for (const uint32_t flag : {huge, two_megabytes, huge | 63u << 26, huge | 3u << 26, huge | two_megabytes | 1, 1u})
    EXPECT_THAT(with(flag, 0), HasSubstr("is no size of pages")) << flag;
}

TEST_F(HostileFile, Pidfd) {
  const auto with = [&](const std::function<void(pidfd_entry&)>& change) {
    return error_of(PIDFD, [&](auto& file) {
      auto& pidfd = begun(file.mutable_pidfd());
      pidfd.set_ino(7), pidfd.set_nspid(31904);
      change(pidfd);
    });
  };
  EXPECT_EQ(with([](auto&) {}), "none");
  EXPECT_EQ(with([](auto& p) { p.set_nspid(-1); }), "none");
  EXPECT_THAT(with([](auto& p) { p.set_nspid(4711); }), AllOf(at("pidfd.nspid"), HasSubstr("not part of the tree")));
  EXPECT_THAT(with([](auto& p) { p.set_nspid(-2); }), at("pidfd.nspid"));
  EXPECT_THAT(with([](auto& p) { p.set_process(31904); }), at("pidfd.flags"));
  const auto of_thread = [](uint32_t process) {
    return [process](pidfd_entry& p) { p.set_flags(0x80), p.set_process(process); };
  };
  EXPECT_THAT(with(of_thread(31904)), AllOf(at("pidfd.nspid"), HasSubstr("has no thread")));
  EXPECT_THAT(with(of_thread(4711)), AllOf(at("pidfd.nspid"), HasSubstr("not part of the tree")));
  EXPECT_THAT(with([](auto& p) { p.set_nspid(0); }), at("pidfd.nspid"));
  for (const uint32_t status : {0x10000u, 0x7fu, 19u, 17u, 0x137fu})
    EXPECT_THAT(with([&](auto& p) { p.set_nspid(-1), p.set_exit_status(status); }), at("pidfd.exit_status")) << status;
}

TEST_F(HostileFile, IoUring) {
  const auto with = [&](const std::function<void(io_uring_file_entry&)>& change) {
    return error_of(IO_URING, [&](auto& file) {
      auto& ring = begun(file.mutable_iou());
      ring.set_setup_flags(0), ring.set_sq_entries(4), ring.set_cq_entries(8);
      ring.set_sq_head(5), ring.set_sq_tail(6), ring.set_sq_dropped(0), ring.set_sq_flags(0);
      ring.set_cq_head(3), ring.set_cq_tail(5), ring.set_cq_overflow(0), ring.set_cq_flags(0);
      ring.set_sqes(std::string(4 * 64, '\0')), ring.set_cqes(std::string(8 * 16, '\0'));
      ring.set_sq_array(std::string(4 * 4, '\0'));
      change(ring);
    });
  };
  EXPECT_EQ(with([](auto&) {}), "none");
  EXPECT_THAT(with([](auto& r) { r.set_setup_flags(2); }), at("iou.setup_flags"));  // IORING_SETUP_SQPOLL
  EXPECT_THAT(with([](auto& r) { r.set_sq_entries(3); }), at("iou.sq_entries"));
  EXPECT_THAT(with([](auto& r) { r.set_sq_entries(65536); }), at("iou.sq_entries"));
  EXPECT_THAT(with([](auto& r) { r.set_cq_entries(16); }), at("iou.cq_entries"));
  EXPECT_THAT(with([](auto& r) { r.set_sq_tail(10); }), at("iou.sq_tail"));
  EXPECT_THAT(with([](auto& r) { r.set_cq_head(~0u - 3); }), at("iou.cq_tail"));
  EXPECT_THAT(with([](auto& r) { r.set_cq_tail(6); }), at("iou.cq_tail"));
  EXPECT_THAT(with([](auto& r) { r.set_setup_flags(1 << 10); }), at("iou.sqes"));  // IORING_SETUP_SQE128
  EXPECT_THAT(with([](auto& r) { r.set_sq_array(""); }), at("iou.sqes"));
  EXPECT_THAT(with([](auto& r) { r.add_files(4711); }), at("iou.files"));
  EXPECT_THAT(with([](auto& r) { r.set_eventfd(4711); }), at("iou.files"));
}

TEST_F(HostileFile, BpfMap) {
  const auto with = [&](const std::function<void(bpfmap_file_entry&, bpfmap_data_entry&)>& change) {
    bpfmap_data_entry data;
    data.set_map_id(9), data.set_count(2), data.set_keys_bytes(8), data.set_values_bytes(16);
    auto error = error_of(BPFMAP, [&](auto& file) {
      auto& map = begun(file.mutable_bpf());
      map.set_pos(0), map.set_map_type(1), map.set_key_size(4), map.set_value_size(8), map.set_map_id(9);
      map.set_max_entries(2), map.set_map_flags(0), map.set_memlock(0), map.set_map_name("words");
      map.set_frozen(false), map.set_ifindex(0);
      change(map, data);
      auto writer = theirs->create("bpfmap-data.img");
      EXPECT_TRUE(writer && writer->append(data) && writer->append_raw(Bytes(24)) && writer->finish());
    });
    std::filesystem::remove(root_ / "theirs" / "bpfmap-data.img");
    return error;
  };
  EXPECT_EQ(with([](auto&, auto&) {}), "none");
  EXPECT_THAT(with([](auto& map, auto&) { map.set_map_type(3); }), at("bpf.map_type"));
  EXPECT_THAT(with([](auto& map, auto&) { map.set_ifindex(1); }), at("bpf.ifindex"));
  EXPECT_EQ(with([](auto& map, auto&) { map.set_map_type(5); }), "none");  // a value of one processor
  EXPECT_THAT(with([](auto& map, auto&) { map.set_map_type(5), map.set_value_size(9); }), at("bpf.map_id"));
  EXPECT_THAT(with([](auto& map, auto&) { map.set_max_entries(~0u); }), at("bpf.max_entries"));
  EXPECT_THAT(with([](auto& map, auto&) { map.set_key_size(0); }), at("bpf.max_entries"));
  EXPECT_THAT(with([](auto& map, auto&) { map.set_map_name("longer than sixteen"); }), at("bpf.map_name"));
  EXPECT_THAT(with([](auto& map, auto&) { map.set_max_entries(1); }), at("bpf.map_id"));
  EXPECT_THAT(with([](auto& map, auto&) { map.set_key_size(3); }), at("bpf.map_id"));
  EXPECT_THAT(with([](auto& map, auto&) { map.set_numa_node(1); }), at("bpf.numa_node"));
  EXPECT_THAT(with([](auto&, auto& data) { data.set_values_bytes(~0u); }), HasSubstr("bpfmap-data.img"));
}

TEST_F(HostileFile, Namespace) {
  const auto with = [&](uint32_t id_of_namespace, uint32_t flag) {
    return error_of(NS, [&](auto& file) {
      auto& space = *file.mutable_nsf();
      space.set_id(id), space.set_ns_id(id_of_namespace), space.set_ns_cflag(flag), space.set_flags(0);
    });
  };
  inventory_entry inventory;
  ASSERT_TRUE(theirs->read("inventory.img")->single(inventory));
  const auto& own = inventory.root_ids();
  EXPECT_EQ(with(own.net_ns_id(), CLONE_NEWNET), "none");
  EXPECT_THAT(with(own.net_ns_id(), 0x1), at("nsf.ns_cflag"));
  EXPECT_THAT(with(own.net_ns_id() + 100, CLONE_NEWNET), HasSubstr("net namespace of the tree's own"));
  EXPECT_THAT(with(own.pid_ns_id() + 100, CLONE_NEWPID), at("nsf.ns_id"));
  EXPECT_THAT(error_of(NS, [](auto&) {}), at("nsf.ns_cflag"));
}

TEST_F(HostileFile, Inotify) {
  const auto with = [&](const std::function<void(inotify_wd_entry&)>& change, int times = 1) {
    return error_of(INOTIFY, [&](auto& file) {
      auto& inotify = begun(file.mutable_ify());
      for (int i = 0; i < times; ++i) {
        auto& watch = *inotify.add_wd();
        watch.set_id(id), watch.set_i_ino(1), watch.set_mask(2), watch.set_ignored_mask(0), watch.set_s_dev(0);
        watch.set_wd(5), watch.mutable_f_handle()->set_bytes(0), watch.mutable_f_handle()->set_type(0);
        watch.mutable_f_handle()->set_path("/");
        change(watch);
      }
    });
  };
  EXPECT_EQ(with([](auto&) {}), "none");
  EXPECT_THAT(with([](auto& w) { w.set_wd(0); }), at("ify.wd"));
  EXPECT_THAT(with([](auto& w) { w.set_wd(1u << 31); }), at("ify.wd"));
  EXPECT_THAT(with([](auto& w) { w.set_mask(IN_ISDIR); }), at("ify.wd.mask"));
  EXPECT_THAT(with([](auto& w) { w.mutable_f_handle()->set_bytes(8); }), at("ify.wd.f_handle.bytes"));
  EXPECT_THAT(with([](auto& w) { w.mutable_f_handle()->set_path("etc"); }), at("ify.wd.f_handle.path"));
  EXPECT_THAT(with([](auto& w) { w.mutable_f_handle()->clear_path(); }), at("ify.wd.f_handle.path"));
  EXPECT_THAT(with([](auto& w) { w.mutable_f_handle()->set_path(std::string("/a\0b", 4)); }),
              at("ify.wd.f_handle.path"));
  EXPECT_THAT(with([](auto&) {}, 2), AllOf(at("ify.wd"), HasSubstr("twice")));
}

TEST_F(HostileFile, Fanotify) {
  const auto with = [&](const std::function<void(fanotify_mark_entry&)>& change) {
    return error_of(FANOTIFY, [&](auto& file) {
      auto& fanotify = begun(file.mutable_ffy());
      fanotify.set_faflags(0), fanotify.set_evflags(0);
      auto& mark = *fanotify.add_mark();
      mark.set_id(id), mark.set_type(MOUNT), mark.set_mflags(0), mark.set_mask(2), mark.set_ignored_mask(0);
      mark.set_s_dev(0), mark.mutable_me()->set_mnt_id(1), mark.mutable_me()->set_path("/");
      change(mark);
    });
  };
  EXPECT_EQ(with([](auto&) {}), "none");
  EXPECT_THAT(with([](auto& m) { m.mutable_me()->clear_path(); }), at("ffy.mark.me.path"));
  EXPECT_THAT(with([](auto& m) { m.clear_me(); }), at("ffy.mark.me.path"));
  EXPECT_THAT(with([](auto& m) { m.set_type(INODE); }), at("ffy.mark.ie"));
}

class HostileLocks : public Hostile {
 protected:
  /// A good lock but for the change, several times.
  std::string error_with(const std::function<void(file_lock_entry&)>& change, int times = 1) {
    auto writer = theirs->create("filelocks.img");
    EXPECT_TRUE(writer);
    for (int i = 0; i < times; ++i) {
      file_lock_entry lock;
      lock.set_flag(1), lock.set_type(0), lock.set_pid(31904), lock.set_fd(0), lock.set_start(0), lock.set_len(10);
      change(lock);
      EXPECT_TRUE(writer->append(lock));
    }
    EXPECT_TRUE(writer->finish());
    auto error = decoded();
    std::filesystem::remove(root_ / "theirs/filelocks.img");
    return error;
  }
  static testing::Matcher<std::string> at(const std::string& field) {
    return AllOf(HasSubstr("filelocks.img"), HasSubstr("field " + field));
  }
};

TEST_F(HostileLocks, FieldsThatCannotBe) {
  EXPECT_EQ(error_with([](auto&) {}), "none");
  EXPECT_EQ(error_with([](auto& l) { l.set_flag(2), l.set_len(0); }), "none");
  EXPECT_EQ(error_with([](auto& l) { l.set_flag(8), l.set_type(4 | 2), l.set_len(0); }), "none");
  EXPECT_THAT(error_with([](auto& l) { l.set_flag(3); }), at("flag"));
  EXPECT_THAT(error_with([](auto& l) { l.set_type(2); }), at("type"));
  EXPECT_THAT(error_with([](auto& l) { l.set_type(4); }), at("type"));
  EXPECT_THAT(error_with([](auto& l) { l.set_flag(8), l.set_type(4 | 1), l.set_len(0); }), at("type"));
  EXPECT_THAT(error_with([](auto& l) { l.set_start(-1); }), at("start"));
  EXPECT_THAT(error_with([](auto& l) { l.set_flag(2); }), at("start"));
  EXPECT_THAT(error_with([](auto& l) { l.set_len(-1); }), at("len"));
  EXPECT_THAT(error_with([](auto& l) { l.set_start(INT64_MAX); }), at("len"));
  EXPECT_THAT(error_with([](auto& l) { l.set_pid(4711); }), AllOf(at("pid"), HasSubstr("4711")));
  EXPECT_THAT(error_with([](auto& l) { l.set_fd(77); }), AllOf(at("fd"), HasSubstr("77 is not open")));
  EXPECT_THAT(error_with([](auto& l) { l.set_flag(4), l.set_description(4711); }), at("description"));
  EXPECT_THAT(error_with([](auto& l) { l.set_description(1); }), at("description"));
}

TEST_F(HostileLocks, TheSameOneTwice) {
  EXPECT_THAT(error_with([](auto&) {}, 2), at("fd"));
  int64_t start = 0;
  EXPECT_EQ(error_with([&](auto& l) { l.set_start(start += 100); }, 2), "none");
  uint32_t type = 1;
  EXPECT_THAT(error_with([&](auto& l) { l.set_flag(2), l.set_len(0), l.set_type(type--); }, 2), at("fd"));
}

class HostileQueues : public HostileFile {
 protected:
  std::string error_with(const std::function<void(mqueue_entry&)>& change) {
    auto writer = theirs->create("mqueue.img");
    EXPECT_TRUE(writer);
    mqueue_entry queue;
    queue.set_id(77), queue.set_name("/stasis-hostile"), queue.set_mode(0600), queue.set_uid(0), queue.set_gid(0);
    queue.set_max_messages(2), queue.set_message_size(8), queue.set_unlinked(true);
    for (const uint32_t priority : {5, 3}) {
      auto& message = *queue.add_messages();
      message.set_priority(priority), message.set_data("content");
    }
    change(queue);
    EXPECT_TRUE(writer->append(queue));
    EXPECT_TRUE(writer->finish());
    auto error = error_of(POSIX_MQUEUE, [](auto& file) { begun(file.mutable_mqueue()).set_queue(77); });
    std::filesystem::remove(root_ / "theirs/mqueue.img");
    return error;
  }
  static testing::Matcher<std::string> field(const std::string& name) {
    return HasSubstr("mqueue.img, queue 77, field " + name);
  }
};

TEST_F(HostileQueues, FieldsThatCannotBe) {
  EXPECT_EQ(error_with([](auto&) {}), "none");
  EXPECT_THAT(error_with([](auto& q) { q.set_id(78); }), at("mqueue.queue"));
  for (const auto* name : {"", "/", "name", "/a/b", "//"})
    EXPECT_THAT(error_with([&](auto& q) { q.set_name(name); }), field("name")) << name;
  EXPECT_THAT(error_with([](auto& q) { q.set_name("/" + std::string(256, 'x')); }), field("name"));
  EXPECT_THAT(error_with([](auto& q) { q.set_name(std::string("/a\0b", 4)); }), field("name"));
  EXPECT_THAT(error_with([](auto& q) { q.set_mode(010000); }), field("mode"));
  EXPECT_THAT(error_with([](auto& q) { q.set_max_messages(0); }), field("max_messages"));
  EXPECT_THAT(error_with([](auto& q) { q.set_max_messages(1 << 20); }), field("max_messages"));
  EXPECT_THAT(error_with([](auto& q) { q.set_max_messages(1); }), field("messages"));
  EXPECT_THAT(error_with([](auto& q) { q.set_message_size(0); }), field("message_size"));
  EXPECT_THAT(error_with([](auto& q) { q.set_message_size(1 << 30); }), field("message_size"));
  EXPECT_THAT(error_with([](auto& q) { q.set_message_size(6); }), field("messages.data"));
  EXPECT_THAT(error_with([](auto& q) { q.mutable_messages(1)->set_priority(6); }), field("messages.priority"));
  EXPECT_THAT(error_with([](auto& q) { q.mutable_messages(0)->set_priority(32768); }), field("messages.priority"));
}

TEST_F(HostileQueues, NotificationsThatCannotBe) {
  const auto with = [&](uint32_t pid, uint32_t kind, uint32_t signal) {
    return error_with([&](auto& q) {
      auto& notification = *q.mutable_notification();
      notification.set_pid(pid), notification.set_kind(kind), notification.set_signal(signal);
    });
  };
  EXPECT_THAT(with(31904, 2, 0), field("notification.kind"));
  EXPECT_THAT(with(31904, 0, 0), field("notification.signal"));
  EXPECT_THAT(with(31904, 0, 65), field("notification.signal"));
  EXPECT_THAT(with(31904, 0, 10), AllOf(field("notification.pid"), HasSubstr("has no descriptor of it")));
  EXPECT_THAT(with(4711, 0, 10), field("notification.pid"));
}

class HostileIpcNamespace : public Hostile {
 protected:
  /// The tree owns an IPC namespace, in which there is one of each kind.
  std::string error_with(const std::function<void(ipc_sem_entry&, ipc_msg_entry&, ipc_msg&, ipc_shm_entry&)>& change,
                         bool limits = true) {
    ipc_sem_entry set;
    describe(*set.mutable_desc()), set.set_nsems(3);
    ipc_msg_entry queue;
    describe(*queue.mutable_desc()), queue.set_qbytes(100), queue.set_qnum(1);
    ipc_msg message;
    message.set_mtype(1), message.set_msize(5);
    ipc_shm_entry segment;
    describe(*segment.mutable_desc()), segment.set_size(10);
    change(set, queue, message, segment);
    ipc_var_entry all;
    for (uint32_t i = 0; i < (limits ? 4u : 3u); ++i) all.add_sem_ctls(i);
    all.set_msg_ctlmax(1), all.set_msg_ctlmnb(1), all.set_msg_ctlmni(1), all.set_auto_msgmni(0), all.set_shm_ctlmax(1);
    all.set_shm_ctlall(1), all.set_shm_ctlmni(1), all.set_shm_rmid_forced(0), all.set_mq_queues_max(1);
    all.set_mq_msg_max(1), all.set_mq_msgsize_max(1);
    put("ipcns-var-10.img", {{&all, 0}}), put("ipcns-sem-10.img", {{&set, 8}});
    put("ipcns-msg-10.img", {{&queue, 0}, {&message, 8}}), put("ipcns-shm-10.img", {{&segment, 12}});
    auto error = error_of_first<task_kobj_ids_entry>(ids, [](auto& r) { r.set_ipc_ns_id(10); });
    for (const char* kind : {"var", "sem", "msg", "shm"})
      std::filesystem::remove(root_ / "theirs" / fmt::format("ipcns-{}-10.img", kind));
    return error;
  }

 private:
  static void describe(ipc_desc_entry& desc) {
    desc.set_key(1), desc.set_uid(0), desc.set_gid(0), desc.set_cuid(0), desc.set_cgid(0);
    desc.set_mode(0600), desc.set_id(7);
  }
  void put(const char* file, std::initializer_list<std::pair<const google::protobuf::Message*, size_t>> records) {
    auto writer = theirs->create(file);
    EXPECT_TRUE(writer);
    for (const auto& [record, bytes] : records)
      EXPECT_TRUE(writer->append(*record) && writer->append_raw(Bytes(bytes)));
    EXPECT_TRUE(writer->finish());
  }
};

TEST_F(HostileIpcNamespace, ObjectsThatCannotBe) {
  using Set = ipc_sem_entry;
  using Queue = ipc_msg_entry;
  using Message = ipc_msg;
  using Segment = ipc_shm_entry;
  // Others of the tree are not in it.
  EXPECT_THAT(error_with([](Set&, Queue&, Message&, Segment&) {}), HasSubstr("field ipc_ns_id"));
  EXPECT_THAT(error_with([](Set&, Queue&, Message&, Segment&) {}, false), HasSubstr("field sem_ctls"));
  const auto at = [](const std::string& file, const std::string& field) {
    return AllOf(HasSubstr("ipcns-" + file + "-10.img"), HasSubstr("field " + field));
  };
  EXPECT_THAT(error_with([](Set& s, Queue&, Message&, Segment&) { s.set_nsems(0); }), at("sem", "nsems"));
  EXPECT_THAT(error_with([](Set& s, Queue&, Message&, Segment&) { s.set_nsems(~0u); }), at("sem", "nsems"));
  EXPECT_THAT(error_with([](Set& s, Queue&, Message&, Segment&) { s.set_nsems(30000); }), at("sem", "size"));
  EXPECT_THAT(error_with([](Set& s, Queue&, Message&, Segment&) { s.mutable_desc()->set_id(~0u); }),
              at("sem", "desc.id"));
  EXPECT_THAT(error_with([](Set& s, Queue&, Message&, Segment&) { s.mutable_desc()->set_mode(01600); }),
              at("sem", "desc.mode"));
  const auto undone = [&](uint32_t pid, std::initializer_list<int32_t> values) {
    return error_with([&](Set& s, Queue&, Message&, Segment&) {
      auto& undo = *s.add_undo();
      undo.set_pid(pid);
      for (const int32_t value : values) undo.add_values(value);
    });
  };
  EXPECT_THAT(undone(31904, {1, -1, 0}), HasSubstr("field ipc_ns_id"));  // as with nothing to undo
  EXPECT_THAT(undone(7, {1, -1, 0}), AllOf(at("sem", "undo.pid"), HasSubstr("process 7 is not part of the tree")));
  EXPECT_THAT(undone(0, {1, -1, 0}), at("sem", "undo.pid"));
  EXPECT_THAT(undone(7, {1, -1}), at("sem", "undo.values"));
  EXPECT_THAT(undone(7, {1, -32768, 0}), at("sem", "undo.values"));
  EXPECT_THAT(error_with([](Set&, Queue& q, Message&, Segment&) { q.set_qnum(~0u); }), at("msg", "qnum"));
  EXPECT_THAT(error_with([](Set&, Queue& q, Message&, Segment&) { q.set_qnum(2); }), at("msg", "qnum"));
  EXPECT_THAT(error_with([](Set&, Queue&, Message& m, Segment&) { m.set_mtype(0); }), at("msg", "mtype"));
  EXPECT_THAT(error_with([](Set&, Queue&, Message& m, Segment&) { m.set_mtype(~uint64_t{0}); }), at("msg", "mtype"));
  EXPECT_THAT(error_with([](Set&, Queue&, Message& m, Segment&) { m.set_msize(~0u); }), at("msg", "msize"));
  EXPECT_THAT(error_with([](Set&, Queue&, Message& m, Segment&) { m.set_msize(9); }), at("msg", "size"));
  EXPECT_THAT(error_with([](Set&, Queue&, Message&, Segment& s) { s.set_size(13); }), at("shm", "size"));
  EXPECT_THAT(error_with([](Set&, Queue&, Message&, Segment& s) { s.set_size(0); }), at("shm", "system_v.size"));
  EXPECT_THAT(error_with([](Set&, Queue&, Message&, Segment& s) { s.set_in_pagemaps(true); }),
              at("shm", "in_pagemaps"));
}

TEST_F(Hostile, SystemVSegmentsThatCannotBe) {
  const auto with = [&](const std::function<void(vma_entry&)>& change, int mappings = 1) {
    return error_of_first<mm_entry>(mm, [&](mm_entry& r) {
      const auto& last = r.vmas(r.vmas_size() - 1);
      uint64_t begin = 0x7ffffffe0000;
      while (begin >= last.start() && begin < last.end()) begin -= 0x100000;
      std::vector<vma_entry> after;
      for (; r.vmas(r.vmas_size() - 1).start() > begin; r.mutable_vmas()->RemoveLast())
        after.push_back(r.vmas(r.vmas_size() - 1));
      for (int i = 0; i < mappings; ++i) {
        auto& vma = *r.add_vmas();
        vma.set_start(begin + static_cast<uint64_t>(i) * 0x2000), vma.set_end(vma.start() + 0x2000), vma.set_pgoff(0);
        vma.set_shmid(70000 + static_cast<uint64_t>(i)), vma.set_prot(3), vma.set_flags(0x21);
        vma.set_status(1 | 1 << 8 | 1 << 10), vma.set_fd(-1), vma.set_segment_size(0x2000);
        auto& segment = *vma.mutable_system_v();
        segment.set_size(5000);
        auto& desc = *segment.mutable_desc();
        desc.set_key(0), desc.set_uid(0), desc.set_gid(0), desc.set_cuid(0), desc.set_cgid(0), desc.set_mode(0600);
        desc.set_id(31000);
        change(vma);
      }
      for (auto entry = after.rbegin(); entry != after.rend(); ++entry) *r.add_vmas() = *entry;
    });
  };
  const auto at = [](const std::string& field) { return HasSubstr("field system_v" + field); };
  EXPECT_EQ(with([](auto&) {}), "none");
  EXPECT_THAT(with([](auto& v) { v.clear_system_v(); }), HasSubstr("System V shared memory, which cannot"));
  EXPECT_THAT(with([](auto& v) { v.mutable_system_v()->mutable_desc()->set_id(1u << 31); }), at(".desc.id"));
  EXPECT_THAT(with([](auto& v) { v.mutable_system_v()->mutable_desc()->set_mode(04600); }), at(".desc.mode"));
  EXPECT_THAT(with([](auto& v) { v.mutable_system_v()->set_size(0); }), at(".size"));
  EXPECT_THAT(with([](auto& v) { v.mutable_system_v()->set_size(4096); }), at(".size"));
  EXPECT_THAT(with([](auto& v) { v.mutable_system_v()->set_size(~0ull); }), at(".size"));
  EXPECT_THAT(with([](auto& v) { v.mutable_system_v()->set_hugetlb_flag(04000); }), at(".hugetlb_flag"));
  EXPECT_THAT(with([](auto& v) { v.mutable_system_v()->set_hugetlb_flag(04000 | 21u << 26); }),
              AllOf(at(".hugetlb_flag"), HasSubstr("pages of another size")));
  EXPECT_THAT(with([](auto& v) { v.set_read_only_attach(true); }), HasSubstr("field read_only_attach"));
  EXPECT_THAT(with([](auto&) {}, 2), AllOf(at(".desc.id"), HasSubstr("another segment's")));
  EXPECT_THAT(
      with([](auto& v) { v.set_shmid(70000), v.mutable_system_v()->mutable_desc()->set_key(v.start() >> 12 & 7); }, 2),
      AllOf(at(""), HasSubstr("differs")));
}

TEST_F(Hostile, CoreDumpsOfPartsThatThereAreNot) {
  const auto with = [&](uint32_t filter) {
    return error_of_first<mm_entry>(mm, [&](mm_entry& r) { r.set_coredump_filter(filter); });
  };
  EXPECT_EQ(with(0x1ff), "none");
  EXPECT_THAT(with(0x200), AllOf(HasSubstr(mm + ", field coredump_filter"), HasSubstr("0x200")));
}

TEST_F(Hostile, AioContextsThatCannotBe) {
  const auto with = [&](const std::function<void(aio_ring_entry&)>& change, int contexts = 1) {
    return error_of_first<mm_entry>(mm, [&](mm_entry& r) {
      auto& ring = *r.mutable_vmas(0);  // one of its own would do as well
      ring.set_status(1 | 1 << 13), ring.set_prot(3), ring.set_pgoff(0), ring.set_end(ring.start() + 0x1000);
      for (int i = 0; i < contexts; ++i) {
        auto& context = *r.add_aios();
        context.set_id(ring.start()), context.set_nr_req(62), context.set_ring_len(0x1000);
        context.set_head(126), context.set_tail(1), context.set_events(std::string(64, 'e'));
        change(context);
      }
    });
  };
  const auto at = [](const std::string& field) { return HasSubstr("mm-31904.img, field aios[0]." + field); };
  EXPECT_EQ(with([](auto&) {}), "none");
  EXPECT_THAT(with([](auto&) {}, 0), HasSubstr("a ring has no context"));
  EXPECT_THAT(with([](auto&) {}, 2), AllOf(HasSubstr("aios[1].id"), HasSubstr("occurs twice")));
  EXPECT_THAT(with([](auto& c) { c.clear_tail(); }), HasSubstr("of criu's images"));
  EXPECT_THAT(with([](auto& c) { c.set_id(0x1000); }), at("id"));
  EXPECT_THAT(with([](auto& c) { c.set_ring_len(0x2000); }), at("ring_len"));
  EXPECT_THAT(with([](auto& c) { c.set_tail(127); }), at("tail"));
  EXPECT_THAT(with([](auto& c) { c.set_head(127); }), at("tail"));
  EXPECT_THAT(with([](auto& c) { c.set_nr_req(5); }), at("nr_req"));
  EXPECT_THAT(with([](auto& c) { c.set_head(0); }), at("events"));
}

TEST_F(Hostile, PagesWhereNothingIs) {
  const std::string pagemap = "pagemap-31904.img";
  const std::string before = bytes("theirs/" + pagemap);
  auto reader = theirs->read(pagemap);
  pagemap_head head;
  pagemap_entry entry;
  ASSERT_TRUE(*reader->next(head));
  ASSERT_TRUE(*reader->next(entry));
  entry.set_vaddr(0x1000);
  auto writer = theirs->create(pagemap);
  ASSERT_TRUE(writer->append(head));
  ASSERT_TRUE(writer->append(entry));
  ASSERT_TRUE(writer->finish());
  EXPECT_THAT(decoded(), AllOf(HasSubstr(pagemap + ", field vaddr"), HasSubstr("0x1000, where nothing is mapped")));
}

/// A good record; what is wrong with it is up to the caller.
file_entry unix_socket(uint32_t id) {
  file_entry record;
  record.set_type(UNIXSK), record.set_id(id);
  auto& socket = *record.mutable_usk();
  socket.set_id(id), socket.set_ino(id), socket.set_type(1), socket.set_state(7), socket.set_flags(2);
  socket.set_uflags(0), socket.set_backlog(0), socket.set_peer(0), socket.set_name("");
  auto& owner = *socket.mutable_fown();
  owner.set_uid(0), owner.set_euid(0), owner.set_signum(0), owner.set_pid_type(0), owner.set_pid(0);
  auto& options = *socket.mutable_opts();
  options.set_so_sndbuf(212992), options.set_so_rcvbuf(212992);
  options.set_so_snd_tmo_sec(0), options.set_so_snd_tmo_usec(0);
  options.set_so_rcv_tmo_sec(0), options.set_so_rcv_tmo_usec(0);
  return record;
}

class HostileSockets : public Hostile {
 protected:
  static constexpr uint32_t first = 9001, second = 9002;
  /// Two sockets that are good but for the change.
  std::string error_with(const std::function<void(unix_sk_entry& a, unix_sk_entry& b)>& change) {
    return error_after<file_entry>("files.img", [&](auto& files) {
      files.push_back(unix_socket(first)), files.push_back(unix_socket(second));
      change(*files[files.size() - 2].mutable_usk(), *files.back().mutable_usk());
    });
  }
  std::string error_with_message(const std::function<void(sk_packet_entry&)>& change) {
    auto writer = theirs->create("sk-queues.img");
    EXPECT_TRUE(writer);
    sk_packet_entry message;
    message.set_id_for(first), message.set_length(3);
    change(message);
    EXPECT_TRUE(writer->append(message));
    const Bytes content{1, 2, 3};
    EXPECT_TRUE(writer->append_raw(content));
    EXPECT_TRUE(writer->finish());
    auto error = error_with(connect);
    std::filesystem::remove(root_ / "theirs/sk-queues.img");
    return error;
  }
  static void connect(unix_sk_entry& a, unix_sk_entry& b) {
    a.set_state(1), b.set_state(1), a.set_peer(second), b.set_peer(first);
  }
};

TEST_F(HostileSockets, GoodOnesAreGood) {
  EXPECT_EQ(error_with([](auto&, auto&) {}), "none");
  EXPECT_EQ(error_with(connect), "none");
  EXPECT_EQ(error_with_message([](auto&) {}), "none");
}

TEST_F(HostileSockets, FieldsThatCannotBe) {
  const std::string where = "files.img, file 9001, field usk.";
  EXPECT_THAT(error_with([](auto& a, auto&) { a.set_type(3); }), HasSubstr(where + "type"));
  EXPECT_THAT(error_with([](auto& a, auto&) { a.set_ino(0); }), HasSubstr(where + "ino"));
  EXPECT_THAT(error_with([](auto& a, auto&) { a.set_ino(second); }),
              AllOf(HasSubstr("file 9002, field usk.ino"), HasSubstr("occurs twice")));
  EXPECT_THAT(error_with([](auto& a, auto&) { a.set_state(10); }), HasSubstr(where + "state"));
  EXPECT_THAT(error_with([](auto& a, auto&) { a.add_pending(second); }), HasSubstr(where + "pending"));
  EXPECT_THAT(error_with([](auto& a, auto&) { a.set_name(std::string(109, 'x')); }), HasSubstr(where + "name"));
  EXPECT_THAT(error_with([](auto& a, auto&) { a.set_name("x"); }), HasSubstr(where + "name_dir"));
  EXPECT_THAT(error_with([](auto& a, auto&) { a.set_name("/x"), a.set_moved_to("y"); }), HasSubstr(where + "moved_to"));
  EXPECT_THAT(error_with([](auto& a, auto&) { a.set_name("/x"), a.set_moved_to("/y"), a.set_deleted(true); }),
              HasSubstr(where + "moved_to"));
  EXPECT_THAT(error_with([](auto& a, auto&) { a.set_peer_name(std::string(109, 'x')); }),
              HasSubstr(where + "peer_name"));
  EXPECT_THAT(error_with([](auto& a, auto&) { a.set_reset(true); }), HasSubstr(where + "reset"));
  EXPECT_THAT(error_with([](auto& a, auto&) { a.mutable_opts()->set_so_sndbuf(~0u); }),
              HasSubstr("usk.opts, field so_sndbuf"));
  EXPECT_THAT(error_with([](auto& a, auto&) { a.mutable_opts()->set_so_rcv_tmo_usec(1'000'000); }),
              HasSubstr("usk.opts, field so_rcv_tmo_usec"));
  EXPECT_THAT(error_with([](auto& a, auto&) { a.mutable_opts()->set_so_buf_lock(4); }), HasSubstr("so_buf_lock"));
  EXPECT_THAT(error_with([](auto& a, auto&) {
                auto& more = *a.mutable_opts()->add_more();
                more.set_name(26), more.set_value(1);
              }),
              HasSubstr("option 26 does not belong there"));
}

TEST_F(HostileSockets, PeersThatCannotBe) {
  const auto connected_as = [&](const std::function<void(unix_sk_entry&, unix_sk_entry&)>& change) {
    return error_with([&](auto& a, auto& b) { connect(a, b), change(a, b); });
  };
  const std::string where = "files.img, file 9001, field usk.";
  EXPECT_THAT(connected_as([](auto& a, auto&) { a.set_peer(4711); }), HasSubstr("there is no socket 4711"));
  EXPECT_THAT(connected_as([](auto& a, auto&) { a.set_peer(first); }), HasSubstr(where + "peer"));
  EXPECT_THAT(connected_as([](auto&, auto& b) { b.set_peer(0); }), HasSubstr("9002 is not connected to it"));
  EXPECT_THAT(connected_as([](auto& a, auto&) { a.set_type(5); }), HasSubstr("its peer is of another type"));
  EXPECT_THAT(connected_as([](auto& a, auto&) { a.set_peer_gone(true); }), HasSubstr(where + "peer_gone"));
  const auto listening = [&](const std::function<void(unix_sk_entry&, unix_sk_entry&)>& change) {
    return error_with([&](auto& a, auto& b) {
      a.set_state(10), a.set_name("/run/x"), a.set_backlog(1), b.set_state(1), b.set_peer(first);
      change(a, b);
    });
  };
  EXPECT_EQ(listening([](auto&, auto&) {}), "none");
  EXPECT_THAT(listening([](auto& a, auto&) { a.add_pending(4711); }), HasSubstr("4711 does not wait for it"));
  EXPECT_THAT(listening([](auto& a, auto&) { a.set_peer(second); }), HasSubstr("a listening socket has none"));
  EXPECT_THAT(listening([](auto& a, auto&) {
                a.set_backlog(0), a.add_pending(second), a.add_pending(second), a.add_pending(second);
              }),
              HasSubstr("usk.backlog"));
}

TEST_F(HostileSockets, QueuesThatCannotBe) {
  EXPECT_THAT(error_with_message([](auto& m) { m.set_length(4); }), HasSubstr("sk-queues.img"));
  EXPECT_THAT(error_with_message([](auto& m) { m.add_scm()->set_type(9); }),
              AllOf(HasSubstr("sk-queues.img, record 0"), HasSubstr("field scm.type")));
  EXPECT_THAT(error_with_message([](auto& m) {
                m.add_scm()->set_type(1);
                m.mutable_scm(0)->add_rights(4711);
              }),
              AllOf(HasSubstr("field scm.rights"), HasSubstr("4711 is not in files.img")));
  EXPECT_THAT(error_with_message([](auto& m) {
                m.add_scm()->set_type(1);
                for (int i = 0; i < 254; ++i) m.mutable_scm(0)->add_rights(first);
              }),
              HasSubstr("field scm.rights"));
  EXPECT_THAT(error_with_message([](auto& m) {
                m.mutable_credentials()->set_pid(0);
                m.mutable_credentials()->set_uid(0), m.mutable_credentials()->set_gid(0);
              }),
              HasSubstr("field credentials.pid"));
  EXPECT_THAT(error_with_message([](auto& m) { m.set_sender(std::string(109, 'x')); }), HasSubstr("field sender"));
}

/// A good record of a TCP connection; what is wrong with it is up to the caller.
file_entry inet_socket(uint32_t id) {
  file_entry record;
  record.set_type(INETSK), record.set_id(id);
  auto& socket = *record.mutable_isk();
  socket.set_id(id), socket.set_ino(id), socket.set_family(AF_INET), socket.set_type(SOCK_STREAM), socket.set_proto(6);
  socket.set_state(1), socket.set_src_port(80), socket.set_dst_port(4711), socket.set_flags(2), socket.set_backlog(0);
  socket.add_src_addr(0x0100007f), socket.add_dst_addr(0x0100007f);
  *socket.mutable_fown() = unix_socket(id).usk().fown();
  *socket.mutable_opts() = unix_socket(id).usk().opts();
  return record;
}

class HostileConnections : public Hostile {
 protected:
  static constexpr uint32_t id = 0x2345;
  const std::string stream_file = "tcp-stream-2345.img";

  std::string error_with(const std::function<void(inet_sk_entry&)>& change) {
    return error_after<file_entry>("files.img", [&](auto& files) {
      files.push_back(inet_socket(id));
      change(*files.back().mutable_isk());
    });
  }
  std::string error_with_stream(const std::function<void(tcp_stream_entry&)>& change, size_t bytes = 5) {
    auto writer = theirs->create(stream_file);
    EXPECT_TRUE(writer);
    tcp_stream_entry stream;
    stream.set_inq_len(2), stream.set_inq_seq(1000), stream.set_outq_len(3), stream.set_outq_seq(2000);
    stream.set_unsq_len(1), stream.set_opt_mask(7), stream.set_snd_wscale(7), stream.set_rcv_wscale(7);
    stream.set_mss_clamp(1460), stream.set_timestamp(1), stream.set_snd_wl1(1000), stream.set_snd_wnd(100);
    stream.set_max_window(100), stream.set_rcv_wnd(100), stream.set_rcv_wup(1000);
    change(stream);
    EXPECT_TRUE(writer->append(stream));
    EXPECT_TRUE(writer->append_raw(Bytes(bytes)));
    EXPECT_TRUE(writer->finish());
    auto error = error_with([](auto&) {});
    std::filesystem::remove(root_ / "theirs" / stream_file);
    return error;
  }
  std::string error_with_more(const std::function<void(socket_more_entry&)>& change) {
    return error_with_side<socket_more_entry>(
        "sockets-more.img", [&](auto& more) { more.set_id(id), change(more); },
        [&] { return error_with([](auto&) {}); });
  }
};

TEST_F(HostileConnections, GoodOnesAreGood) {
  EXPECT_EQ(error_with([](auto&) {}), "none");
  EXPECT_EQ(error_with_stream([](auto&) {}), "none");
  EXPECT_EQ(error_with_more([](auto& m) {
              auto& option = *m.add_options();
              option.set_level(6), option.set_name(18), option.set_value(1000);  // TCP_USER_TIMEOUT
            }),
            "none");
}

TEST_F(HostileConnections, EachFieldOfASocket) {
  const auto at = [](const std::string& field) { return HasSubstr("files.img, file 9029, field isk." + field); };
  EXPECT_THAT(error_with([](auto& s) { s.set_ino(0); }), at("ino"));
  EXPECT_THAT(error_with([](auto& s) { s.set_family(16); }), at("family"));
  EXPECT_THAT(error_with([](auto& s) { s.set_type(5); }), at("type"));
  EXPECT_THAT(error_with([](auto& s) { s.set_proto(132); }), at("proto"));
  EXPECT_THAT(error_with([](auto& s) { s.set_type(SOCK_DGRAM); }), at("proto"));
  EXPECT_THAT(error_with([](auto& s) { s.set_type(SOCK_RAW), s.set_proto(263); }), at("proto"));
  for (const uint32_t state : {0u, 3u, 6u, 12u, 4711u})
    EXPECT_THAT(error_with([&](auto& s) { s.set_state(state); }), at("state")) << state;
  EXPECT_THAT(error_with([](auto& s) { s.set_src_port(65536); }), at("src_port"));
  EXPECT_THAT(error_with([](auto& s) { s.set_dst_port(1 << 20); }), at("dst_port"));
  EXPECT_THAT(error_with([](auto& s) { s.set_src_port(0); }), at("src_port"));
  EXPECT_THAT(error_with([](auto& s) { s.set_dst_port(0); }), at("dst_port"));
  EXPECT_THAT(error_with([](auto& s) { s.clear_src_addr(); }), at("src_addr"));
  EXPECT_THAT(error_with([](auto& s) { s.set_family(AF_INET6); }), at("src_addr"));
  EXPECT_THAT(error_with([](auto& s) {
                for (int i = 0; i < 4; ++i) s.add_dst_addr(0);
              }),
              at("dst_addr"));
  EXPECT_THAT(error_with([](auto& s) { s.set_state(10), s.set_backlog(1u << 31); }), at("backlog"));
  EXPECT_THAT(error_with([](auto& s) { s.set_ifname(std::string(16, 'x')); }), at("ifname"));
  EXPECT_THAT(error_with([](auto& s) { s.mutable_ip_opts()->mutable_raw()->add_icmpv_filter(1); }),
              at("ip_opts.raw.icmpv_filter"));
}

TEST_F(HostileConnections, UrgentData) {
  const auto at = [](const std::string& field) {
    return HasSubstr("tcp-stream-2345.img, record 0 at offset 8, field " + field);
  };
  constexpr uint32_t received = 2, written = 3;
  EXPECT_EQ(error_with_stream([](auto& s) {
              s.set_urgent_received(received - 1), s.set_urgent_was_read(true), s.set_urgent_written(written - 1);
            }),
            "none");
  EXPECT_EQ(error_with_stream([](auto& s) { s.set_urgent_received(received + 70000); }), "none");
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_urgent_received(UINT32_MAX); }), at("urgent_received"));
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_urgent_received(0), s.clear_snd_wnd(); }), at("urgent_received"));
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_urgent_was_read(true); }), at("urgent_was_read"));
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_urgent_received(received), s.set_urgent_was_read(true); }),
              at("urgent_was_read"));
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_urgent_written(written); }), at("urgent_written"));
}

TEST_F(HostileConnections, OptionsOfAnyLength) {
  const auto with = [&](uint32_t level, uint32_t name, size_t size) {
    return error_with_more([=](auto& m) {
      auto& option = *m.add_long_options();
      option.set_level(level), option.set_name(name), option.set_value(std::string(size, 'x'));
    });
  };
  EXPECT_EQ(with(6, 33, 16), "none");  // TCP_FASTOPEN_KEY
  EXPECT_THAT(with(6, 33, 33), HasSubstr("isk.long_options"));
  EXPECT_THAT(with(6, 33, 0), HasSubstr("isk.long_options"));
  EXPECT_THAT(with(6, 18, 4), HasSubstr("isk.long_options"));
  EXPECT_THAT(error_with_more([](auto& m) { m.set_multicast_device(1); }), HasSubstr("isk.multicast_device"));
}

TEST_F(Hostile, AttributesThatAreNotKept) {
  const auto with = [&](const std::string& name, size_t size) {
    return error_of_first_of_ghost([&](ghost_file_entry& ghost) {
      auto& attribute = *ghost.add_attributes();
      attribute.set_name(name), attribute.set_value(std::string(size, 'x'));
    });
  };
  EXPECT_EQ(with("user.colour", 4), "none");
  EXPECT_THAT(with("security.selinux", 4), AllOf(HasSubstr("ghost-file-1.img"), HasSubstr("field attributes")));
  EXPECT_THAT(with(std::string("user.\0", 6), 4), HasSubstr("field attributes"));
  EXPECT_THAT(with("user." + std::string(300, 'x'), 4), HasSubstr("field attributes"));
  EXPECT_THAT(with("user.colour", (1 << 16) + 1), HasSubstr("field attributes"));
}

TEST_F(HostileConnections, WhatCriuDoesNotSave) {
  const auto option = [&](uint32_t level, uint32_t name) {
    return error_with_more([&](auto& m) {
      auto& option = *m.add_options();
      option.set_level(level), option.set_name(name), option.set_value(1);
    });
  };
  EXPECT_THAT(option(6, 4711), HasSubstr("isk.options"));
  EXPECT_THAT(option(41, 26), HasSubstr("isk.options"));  // of IPv6
  EXPECT_THAT(option(6, 1), HasSubstr("isk.options"));    // TCP_NODELAY has a field of its own
  EXPECT_THAT(error_with_more([](auto& m) { m.set_congestion(std::string(16, 'x')); }), HasSubstr("isk.congestion"));
}

TEST_F(HostileConnections, WhatIsLeftOfOneThatHasEnded) {
  const auto with = [&](const std::function<void(inet_sk_entry&)>& change, uint32_t pending) {
    return error_with_side<socket_more_entry>(
        "sockets-more.img", [&](auto& more) { more.set_id(id), more.set_unread("x"), more.set_pending_error(pending); },
        [&] { return error_with([&](auto& s) { s.set_state(7), change(s); }); });
  };
  const auto at = [](const std::string& field) { return HasSubstr("sockets-more.img, id 9029, field " + field); };
  for (const uint32_t error : {0, ECONNRESET, EPIPE}) EXPECT_EQ(with([](auto&) {}, error), "none");
  EXPECT_THAT(with([](auto&) {}, EINVAL), at("pending_error"));
  EXPECT_THAT(with([](auto& s) { s.set_state(1); }, 0), at("unread"));
  EXPECT_THAT(with([](auto& s) { s.set_type(SOCK_RAW); }, 0), at("unread"));
  EXPECT_THAT(with([](auto& s) { s.set_src_port(0); }, 0), at("unread"));
}

TEST_F(HostileConnections, EachFieldOfAStream) {
  const auto at = [&](const std::string& field) { return AllOf(HasSubstr(stream_file), HasSubstr("field " + field)); };
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_unsq_len(4); }), at("unsq_len"));
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_opt_mask(256); }), at("opt_mask"));
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_snd_wscale(15); }), at("snd_wscale"));
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_rcv_wscale(15); }), at("rcv_wscale"));
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_mss_clamp(0); }), at("mss_clamp"));
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_mss_clamp(65536); }), at("mss_clamp"));
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_max_window(99); }), at("max_window"));
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_snd_wl1(1101); }), at("snd_wl1"));
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_rcv_wup(1001); }), at("rcv_wup"));
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_inq_len(6); }), HasSubstr(stream_file));
  EXPECT_THAT(error_with_stream([](auto& s) { s.set_outq_len(1u << 31); }), HasSubstr(stream_file));
}

TEST_F(HostileConnections, OfDatagrams) {
  const auto with = [&](uint32_t type, uint32_t protocol, uint32_t state) {
    return error_with([&](auto& s) { s.set_type(type), s.set_proto(protocol), s.set_state(state); });
  };
  constexpr uint32_t connected = 1, closed = 7, listening = 10, udp = 17, udplite = 136;
  for (const uint32_t protocol : {uint32_t{IPPROTO_ICMP}, udp, udplite}) {
    EXPECT_EQ(with(SOCK_DGRAM, protocol, connected), "none");
    EXPECT_THAT(with(SOCK_DGRAM, protocol, listening), HasSubstr("isk.state"));
    EXPECT_THAT(with(SOCK_STREAM, protocol, closed), HasSubstr("isk.proto"));
  }
  EXPECT_THAT(with(SOCK_DGRAM, IPPROTO_ICMPV6, closed), HasSubstr("isk.proto"));  // of the other family
  EXPECT_THAT(with(SOCK_RAW, 255, listening), HasSubstr("isk.state"));
  const auto membership = [&](const std::function<void(multicast_entry&)>& change) {
    return error_with_more([&](auto& m) {
      auto& one = *m.add_memberships();
      one.set_group("\xef\1\2\3"), one.set_device("lo"), one.set_only_from(false);
      change(one);
    });
  };
  EXPECT_EQ(membership([](auto&) {}), "none");
  EXPECT_THAT(membership([](auto& m) { m.set_group("12345"); }), HasSubstr("sockets-more.img, id 9029"));
  EXPECT_THAT(membership([](auto& m) { m.add_sources("123"); }), HasSubstr("sockets-more.img, id 9029"));
}

class HostileOtherSockets : public HostileFile {
 protected:
  template <typename Entry>
  static Entry& begun_socket(Entry* entry) {
    *entry->mutable_opts() = unix_socket(id).usk().opts();
    return begun(entry);
  }
  std::string error_of_option(uint32_t level, uint32_t name, const std::function<std::string()>& decode) {
    return error_with_side<socket_more_entry>(
        "sockets-more.img",
        [&](auto& more) {
          more.set_id(id);
          auto& option = *more.add_options();
          option.set_level(level), option.set_name(name), option.set_value(1);
        },
        decode);
  }
};

TEST_F(HostileOtherSockets, Netlink) {
  const auto with = [&](const std::function<void(netlink_sk_entry&)>& change) {
    return error_of(NETLINKSK, [&](auto& file) {
      auto& socket = begun_socket(file.mutable_nlsk());
      socket.set_ino(id), socket.set_protocol(0), socket.set_state(0), socket.set_portid(7);
      socket.set_dst_portid(0), socket.set_dst_group(0);
      change(socket);
    });
  };
  const auto good = [&] { return with([](auto&) {}); };
  EXPECT_EQ(good(), "none");
  EXPECT_THAT(with([](auto& s) { s.set_protocol(32); }), at("nlsk.protocol"));
  EXPECT_THAT(with([](auto& s) {
                for (int i = 0; i < 2049; ++i) s.add_groups(0);
              }),
              at("nlsk.groups"));
  EXPECT_THAT(with([](auto& s) { s.mutable_opts()->set_so_buf_lock(4); }), at("nlsk.opts"));
  EXPECT_EQ(error_of_option(270, 11, good), "none");  // NETLINK_EXT_ACK
  EXPECT_THAT(error_of_option(270, 1, good), at("nlsk.options"));
  EXPECT_THAT(error_of_option(6, 11, good), at("nlsk.options"));
  EXPECT_THAT(error_with_side<socket_more_entry>(
                  "sockets-more.img", [](auto& more) { more.set_id(id), more.set_type(SOCK_STREAM); }, good),
              at("nlsk.type"));
}

TEST_F(HostileOtherSockets, Packet) {
  const auto with = [&](const std::function<void(packet_sock_entry&)>& change) {
    return error_of(PACKETSK, [&](auto& file) {
      auto& socket = begun_socket(file.mutable_psk());
      socket.set_type(SOCK_RAW), socket.set_protocol(8), socket.set_ifindex(1), socket.set_version(1);
      socket.set_reserve(0), socket.set_aux_data(true), socket.set_orig_dev(true), socket.set_vnet_hdr(false);
      socket.set_loss(false), socket.set_timestamp(0), socket.set_copy_thresh(0);
      auto& ring = *socket.mutable_rx_ring();
      ring.set_block_size(4096), ring.set_block_nr(4), ring.set_frame_size(2048), ring.set_frame_nr(8);
      ring.set_retire_tmo(0), ring.set_sizeof_priv(0), ring.set_features(0);
      auto& membership = *socket.add_mclist();
      membership.set_index(1), membership.set_type(0), membership.set_addr("123456");
      change(socket);
    });
  };
  const auto good = [&] { return with([](auto&) {}); };
  EXPECT_EQ(good(), "none");
  EXPECT_THAT(with([](auto& s) { s.set_type(SOCK_STREAM); }), at("psk.type"));
  EXPECT_THAT(with([](auto& s) { s.set_protocol(65536); }), at("psk.protocol"));
  EXPECT_THAT(with([](auto& s) { s.set_ifindex(~0u); }), at("psk.ifindex"));
  EXPECT_THAT(with([](auto& s) { s.set_ifname(std::string(16, 'x')); }), at("psk.ifname"));
  EXPECT_THAT(with([](auto& s) { s.set_type(SOCK_PACKET); }), at("psk.ifname"));
  EXPECT_THAT(with([](auto& s) { s.set_version(3); }), at("psk.version"));
  EXPECT_THAT(with([](auto& s) { s.set_reserve(1u << 31); }), at("psk.reserve"));
  EXPECT_THAT(with([](auto& s) { s.set_fanout(6 << 16); }), at("psk.fanout"));
  EXPECT_THAT(with([](auto& s) { s.mutable_opts()->set_so_buf_lock(4); }), at("psk.opts"));
  const auto with_ring = [&](const std::function<void(packet_ring&)>& change) {
    return with([&](auto& s) { change(*s.mutable_rx_ring()); });
  };
  EXPECT_THAT(with_ring([](auto& r) { r.set_block_size(0); }), at("psk.rx_ring.block_size"));
  EXPECT_THAT(with_ring([](auto& r) { r.set_block_size(4097); }), at("psk.rx_ring.block_size"));
  EXPECT_THAT(with_ring([](auto& r) { r.set_frame_size(0); }), at("psk.rx_ring.frame_size"));
  EXPECT_THAT(with_ring([](auto& r) { r.set_frame_size(8192); }), at("psk.rx_ring.frame_size"));
  EXPECT_THAT(with_ring([](auto& r) { r.set_block_nr(1u << 31); }), at("psk.rx_ring.block_nr"));
  EXPECT_THAT(with_ring([](auto& r) { r.set_frame_nr(9); }), at("psk.rx_ring.frame_nr"));
  EXPECT_THAT(with([](auto& s) { *s.mutable_tx_ring() = s.rx_ring(), s.mutable_tx_ring()->set_frame_nr(1); }),
              at("psk.tx_ring.frame_nr"));
  EXPECT_THAT(with_ring([](auto& r) { r.set_head(8); }), at("psk.rx_ring.head"));
  EXPECT_THAT(with_ring([](auto& r) { r.set_head(7); }), at("psk.ring_pages"));
  EXPECT_THAT(with([](auto& s) { s.mutable_rx_ring()->set_head(1), s.set_protocol(0); }), at("psk.rx_ring.head"));
  EXPECT_THAT(with([](auto& s) { s.mutable_rx_ring()->set_head(1), s.set_version(2); }), at("psk.rx_ring.head"));
  EXPECT_THAT(with([](auto& s) { *s.mutable_tx_ring() = s.rx_ring(), s.mutable_tx_ring()->set_head(9); }),
              at("psk.tx_ring.head"));
  EXPECT_THAT(with([](auto& s) { s.set_ring_pages(1); }), at("psk.ring_pages"));
  EXPECT_THAT(with([](auto& s) { s.set_ring_pages(id), s.clear_rx_ring(); }), at("psk.ring_pages"));
  EXPECT_THAT(with([](auto& s) { s.set_ring_pages(id); }), HasSubstr(fmt::format("pagemap-shmem-{}.img", id)));
  const auto with_membership = [&](const std::function<void(packet_mclist&)>& change) {
    return with([&](auto& s) { change(*s.mutable_mclist(0)); });
  };
  EXPECT_THAT(with_membership([](auto& m) { m.set_index(0); }), at("psk.mclist.index"));
  EXPECT_THAT(with_membership([](auto& m) { m.set_type(4); }), at("psk.mclist.type"));
  EXPECT_THAT(with_membership([](auto& m) { m.set_addr(std::string(33, 'x')); }), at("psk.mclist.addr"));
  EXPECT_THAT(with_membership([](auto& m) { m.set_ifname(std::string(16, 'x')); }), at("psk.mclist.ifname"));
  EXPECT_EQ(error_of_option(263, 20, good), "none");  // PACKET_QDISC_BYPASS
  EXPECT_THAT(error_of_option(263, 18, good), at("psk.options"));
  EXPECT_THAT(error_of_option(263, 24, good), at("psk.options"));  // PACKET_VNET_HDR_SZ

  // Its rings, mapped: as a whole, or it is not them.
  const auto with_mapping = [&](const std::function<void(vma_entry&)>& change) {
    const std::string before = bytes("theirs/" + mm);
    mm_entry space;
    auto reader = theirs->read(mm);
    EXPECT_TRUE(reader && *reader->next(space));
    auto& vma = *space.add_vmas();
    vma.set_start(0x10000), vma.set_end(0x14000), vma.set_pgoff(0), vma.set_shmid(id), vma.set_prot(3);
    vma.set_flags(1), vma.set_status(1 | 1 << 11), vma.set_fd(-1);
    change(vma);
    for (int i = space.vmas_size() - 1; i > 0; --i) space.mutable_vmas()->SwapElements(i, i - 1);
    auto writer = theirs->create(mm);
    EXPECT_TRUE(writer && writer->append(space) && writer->finish());
    auto error = good();
    std::ofstream(root_ / "theirs" / mm, std::ios::binary) << before;
    return error;
  };
  EXPECT_EQ(with_mapping([](auto&) {}), "none");
  EXPECT_EQ(with_mapping([](auto& v) { v.set_flags(2); }), "none");
  EXPECT_THAT(with_mapping([](auto& v) { v.set_end(0x13000); }), HasSubstr("field shmid"));
  EXPECT_THAT(with_mapping([](auto& v) { v.set_end(0x15000); }), HasSubstr("field shmid"));
  EXPECT_THAT(with_mapping([](auto& v) { v.set_pgoff(0x1000); }), HasSubstr("field shmid"));
}

TEST_F(Hostile, EveryTruncationIsAnError) {
  const auto files = *theirs->list();
  for (const std::string& file : files) {
    if (file.starts_with("pages-")) continue;
    const std::string whole = bytes("theirs/" + file);
    for (size_t size = 0; size < whole.size(); size += 1 + size / 16) {
      std::ofstream(root_ / "theirs" / file, std::ios::binary) << whole.substr(0, size);
      const auto application = decode(*theirs);
      // What ends between two records cannot be told from a shorter file; everything else must be noticed.
      if (!application) {
        EXPECT_FALSE(application.error().message().empty());
      }
    }
    std::ofstream(root_ / "theirs" / file, std::ios::binary) << whole;
  }
  EXPECT_EQ(decoded(), "none");
}

}  // namespace
}  // namespace stasis::resource
