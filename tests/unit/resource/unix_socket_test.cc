// Unix sockets of one process, through a capture, images and a new process; and what is refused.
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "kernel/process.h"
#include "resource/unix_socket.h"
#include "../eventually.h"
#include "file_cycle.h"

namespace stasis::resource {
namespace {

using testing::Contains;
using testing::HasSubstr;

class UnixSockets : public FileCycle {
 protected:
  static void make_pair(int type) {
    int ends[2];
    REQUIRE(socketpair(AF_UNIX, type, 0, ends) == 0);
  }
  static sockaddr_un named(const std::string& path) {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::strncpy(name.sun_path, path.c_str(), sizeof name.sun_path - 1);
    return name;
  }
  static void bind_to(int fd, const std::string& path) {
    const auto name = named(path);
    REQUIRE(bind(fd, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0);
  }
  static void connect_to(int fd, const std::string& path) {
    const auto name = named(path);
    REQUIRE(connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0);
  }
  static UniqueFd taken(pid_t pid, int fd) { return *kernel::pidfd_getfd(kernel::pidfd_open(pid)->get(), fd); }
  /// For its lock, by /proc/locks.
  static bool somebody_waits_for(int directory) {
    struct stat held{};
    REQUIRE(fstat(directory, &held) == 0);
    std::ifstream locks("/proc/locks");
    for (std::string line; std::getline(locks, line);) {
      if (line.find("-> FLOCK") != line.npos && line.find(fmt::format(":{} ", held.st_ino)) != line.npos) return true;
    }
    return false;
  }
  static std::string received(int fd, int flags = 0) {
    std::string text(1 << 16, 0);
    const ssize_t count = recv(fd, text.data(), text.size(), MSG_DONTWAIT | flags);
    text.resize(count > 0 ? static_cast<size_t>(count) : 0);
    return text;
  }
};

TEST_F(UnixSockets, PairsWithQueues) {
  cycle(
      [] {
        make_pair(SOCK_STREAM), make_pair(SOCK_DGRAM | SOCK_NONBLOCK), make_pair(SOCK_SEQPACKET);
        REQUIRE(send(3, "stream", 6, 0) == 6 && send(4, "back", 4, 0) == 4);
        REQUIRE(send(5, "a", 1, 0) == 1 && send(5, "", 0, 0) == 0 && send(5, "bc", 2, 0) == 2);
        REQUIRE(send(7, "packet", 6, 0) == 6 && send(7, "other", 5, 0) == 5);
        REQUIRE(dup2(4, 20) == 20);
      },
      [](pid_t pid) {
        EXPECT_EQ(received(taken(pid, 20).get()), "stream");
        EXPECT_EQ(received(taken(pid, 3).get()), "back");
        EXPECT_EQ(received(taken(pid, 8).get()), "packet");
        EXPECT_EQ(received(taken(pid, 8).get()), "other");
      });
}

/// Each end of a pair may get from the kernel the number that the other is to have.
TEST_F(UnixSockets, NumbersTheOtherWayRound) {
  cycle(
      [] {
        int ends[2];
        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);  // 3, 4
        REQUIRE(dup2(3, 9) == 9 && dup2(4, 3) == 3 && close(4) == 0 && dup2(9, 4) == 4 && close(9) == 0);
        REQUIRE(send(3, "to the lower", 12, 0) == 12);
      },
      [](pid_t pid) { EXPECT_EQ(received(taken(pid, 4).get()), "to the lower"); });
}

TEST_F(UnixSockets, CaptureChangesNothing) {
  Holder holder([] {
    make_pair(SOCK_DGRAM);
    REQUIRE(send(3, "first", 5, 0) == 5 && send(3, "second", 6, 0) == 6);
    const int offset = 5;
    REQUIRE(setsockopt(4, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset) == 0);
  });
  capture(holder.pid()), capture(holder.pid());
  const auto end = taken(holder.pid(), 4);
  EXPECT_EQ(received(end.get(), MSG_PEEK), "second");
  EXPECT_EQ(received(end.get()), "first");
  EXPECT_EQ(received(end.get()), "second");
}

TEST_F(UnixSockets, NamesAndWaitingClients) {
  const auto path = work("server");
  cycle(
      [&] {
        REQUIRE(socket(AF_UNIX, SOCK_STREAM, 0) == 3);
        bind_to(3, path);
        REQUIRE(chmod(path.c_str(), 0600) == 0 && listen(3, 5) == 0);
        REQUIRE(socket(AF_UNIX, SOCK_STREAM, 0) == 4 && socket(AF_UNIX, SOCK_STREAM, 0) == 5);
        connect_to(5, path), connect_to(4, path);
      },
      [&](pid_t pid) {
        const auto server = taken(pid, 3);
        const UniqueFd first(accept(server.get(), nullptr, nullptr));
        EXPECT_EQ(send(first.get(), "first", 5, 0), 5);
        EXPECT_EQ(received(taken(pid, 5).get()), "first");
      });
  EXPECT_EQ(files_in_work(), 1u);
}

TEST_F(UnixSockets, DescriptorsInFlight) {
  cycle(
      [&] {
        make_pair(SOCK_STREAM);  // 3, 4
        REQUIRE(open(work("file").c_str(), O_RDWR | O_CREAT, 0600) == 5);
        for (const char* text : {"before", "with"}) {
          iovec vector{const_cast<char*>(text), strlen(text)};
          alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
          msghdr message{};
          message.msg_iov = &vector, message.msg_iovlen = 1;
          if (text[0] == 'w') message.msg_control = control, message.msg_controllen = sizeof control;
          auto* head = reinterpret_cast<cmsghdr*>(control);
          head->cmsg_len = CMSG_LEN(sizeof(int)), head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS;
          const int sent = 5;
          memcpy(CMSG_DATA(head), &sent, sizeof sent);
          REQUIRE(sendmsg(3, &message, 0) == static_cast<ssize_t>(strlen(text)));
        }
        REQUIRE(close(5) == 0);
      },
      [](pid_t pid) { EXPECT_EQ(received(taken(pid, 4).get()), "beforewith"); });
}

std::vector<std::string> refusals_of(const CaptureContext& context) {
  std::vector<std::string> texts;
  for (const auto& diagnostic : context.diagnostics.all()) texts.push_back(diagnostic.text());
  return texts;
}

TEST_F(UnixSockets, PeersOutsideAreNamed) {
  const UniqueFd server(socket(AF_UNIX, SOCK_STREAM, 0)), log(socket(AF_UNIX, SOCK_DGRAM, 0));
  bind_to(server.get(), work("server")), bind_to(log.get(), work("log"));
  ASSERT_EQ(listen(server.get(), 1), 0);
  Holder holder([&] {
    REQUIRE(socket(AF_UNIX, SOCK_STREAM, 0) == 3 && socket(AF_UNIX, SOCK_DGRAM, 0) == 4);
    connect_to(3, work("server")), connect_to(4, work("log"));
  });
  EXPECT_THAT(refusals_of(*capture(holder.pid())),
              testing::ElementsAre(
                  testing::AllOf(HasSubstr("descriptor 3"), HasSubstr(work("server")), HasSubstr("outside of the tree"),
                                 HasSubstr("--external 'unix[")),
                  testing::AllOf(HasSubstr("descriptor 4"), HasSubstr(work("log")), HasSubstr("--ext-unix-sk"))));
  struct stat stream{};
  ASSERT_EQ(stat(fd_path(holder.pid(), 3).c_str(), &stream), 0);
  policy.external_unix = true;
  policy.external = {fmt::format("unix[{}]", stream.st_ino)};
  const auto allowed = capture(holder.pid());
  EXPECT_THAT(refusals_of(*allowed), testing::IsEmpty());
  const auto decoded = through_images(allowed->application);
  ASSERT_TRUE(decoded) << decoded.error().message();
  expect_equal(allowed->application, *decoded, "after reading the images");
  const UniqueFd accepted(accept(server.get(), nullptr, nullptr));
  holder.end();
  const auto second = restored(*decoded);
  ASSERT_TRUE(second->succeeded());
  const UniqueFd again(accept(server.get(), nullptr, nullptr));
  EXPECT_TRUE(again.valid());
  EXPECT_EQ(send(taken(second->pid(), 4).get(), "line", 4, 0), 4);
  EXPECT_EQ(received(log.get()), "line");
}

TEST_F(UnixSockets, WhatCannotBeSeenIsRefused) {
  Holder holder([&] {
    REQUIRE(socket(AF_UNIX, SOCK_STREAM, 0) == 3);
    bind_to(3, work("server"));
    REQUIRE(listen(3, 5) == 0 && socket(AF_UNIX, SOCK_STREAM, 0) == 4);
    connect_to(4, work("server"));
    REQUIRE(send(4, "too early", 9, 0) == 9);
    make_pair(SOCK_STREAM);
    REQUIRE(send(5, "!", 1, MSG_OOB) == 1);
  });
  EXPECT_THAT(refusals_of(*capture(holder.pid())),
              testing::ElementsAre(testing::AllOf(HasSubstr("descriptor 4"), HasSubstr("not accepted yet")),
                                   testing::AllOf(HasSubstr("descriptor 6"), HasSubstr("urgent data"))));
}

TEST_F(UnixSockets, NamesThatAreTakenAreFoundBefore) {
  const auto path = work("server");
  Holder holder([&] {
    REQUIRE(socket(AF_UNIX, SOCK_STREAM, 0) == 3);
    bind_to(3, path);
    REQUIRE(listen(3, 5) == 0);
  });
  const auto before = capture(holder.pid());
  const auto problem = [&]() -> std::string {
    const auto problems = validated(before->application);
    return problems.empty() ? "none" : problems.front().text();
  };
  EXPECT_THAT(problem(), HasSubstr("another program is bound to its name"));
  holder.end();
  EXPECT_EQ(problem(), "none");
  ASSERT_EQ(unlink(path.c_str()), 0);
  EXPECT_EQ(problem(), "none");
  const UniqueFd file(open(path.c_str(), O_CREAT | O_WRONLY, 0600));
  EXPECT_THAT(problem(), HasSubstr("another file under its name"));
}

/// It has put the service's file aside and has its own in that place when we come.
TEST_F(UnixSockets, ANameIsTakenByOneRestoreAtATime) {
  const auto path = work("service"), aside = path + ".stasis-aside";
  Holder holder([&] {
    REQUIRE(socket(AF_UNIX, SOCK_DGRAM, 0) == 3);
    bind_to(3, path);
    REQUIRE(unlink(path.c_str()) == 0);
  });
  const auto before = capture(holder.pid());
  holder.end();
  const UniqueFd service(socket(AF_UNIX, SOCK_DGRAM, 0)), restored_before(socket(AF_UNIX, SOCK_DGRAM, 0));
  bind_to(service.get(), path);
  struct stat file{}, now{};
  ASSERT_EQ(stat(path.c_str(), &file), 0);

  UniqueFd directory(open(work("").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ASSERT_EQ(flock(directory.get(), LOCK_EX), 0);
  ASSERT_EQ(rename(path.c_str(), aside.c_str()), 0);
  bind_to(restored_before.get(), path);
  std::atomic<bool> over = false;
  std::thread other([&] {
    // The kernel shows who waits.
    eventually([&] { return over || somebody_waits_for(directory.get()); });
    EXPECT_EQ(unlink(path.c_str()), 0);
    EXPECT_EQ(rename(aside.c_str(), path.c_str()), 0);
    directory = UniqueFd();
  });
  const auto again = restored(before->application);
  over = true;
  other.join();
  EXPECT_TRUE(again->succeeded());
  ASSERT_EQ(stat(path.c_str(), &now), 0);
  EXPECT_EQ(now.st_ino, file.st_ino);
  EXPECT_EQ(files_in_work(), 1u);
}

/// As an image may have it: the other end of a pair, or who waits to be accepted, is open nowhere.
TEST(UnixSocketPlan, NeedsAllThatAreMadeTogether) {
  for (const bool pair : {true, false}) {
    model::Application application;
    const auto add = [&](uint32_t id, UnixSocket socket) {
      socket.number = id;
      auto& description = application.descriptions[ObjectId{id}];
      description.id = ObjectId{id}, description.state = {std::make_shared<UnixSocket>(std::move(socket))};
    };
    UnixSocket one, other;
    one.type = other.type = pair ? SOCK_DGRAM : SOCK_STREAM;
    if (pair)
      one.peer = 2;
    else
      one.is_listening = true, one.name.text = std::string("\0x", 2), one.backlog = 1, one.pending = {2};
    other.peer = 1;
    add(1, one), add(2, other);
    ASSERT_TRUE(link_unix_sockets(application));
    plan::Program program;
    plan::Sink sink(program, Pid{7}, Tid{7});
    std::vector<plan::Placement> placements{{&application.descriptions.at(ObjectId{1}), 3, 100}};
    const auto made = make_unix_sockets(placements, sink);
    ASSERT_FALSE(made);
    EXPECT_THAT(made.error().message(), HasSubstr("socket 2, which it is made with, is open in no task"));
    placements.push_back({&application.descriptions.at(ObjectId{2}), 4, 104});
    EXPECT_TRUE(make_unix_sockets(placements, sink));
  }
}

}  // namespace
}  // namespace stasis::resource
