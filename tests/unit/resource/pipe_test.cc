// Pipes and FIFOs: content, packets, sizes, ends and flags, through a capture, images and a new process.
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "kernel/process.h"
#include "file_cycle.h"

namespace stasis::resource {
namespace {

using testing::Contains;
using testing::HasSubstr;

class Pipes : public FileCycle {};

/// What is in a pipe, one read after the other, without waiting for more.
std::vector<std::string> reads_of(pid_t pid, int fd) {
  std::vector<std::string> parts;
  const UniqueFd end(open(fd_path(pid, fd).c_str(), O_RDONLY | O_NONBLOCK));
  std::string buffer(1 << 20, 0);
  for (;;) {
    const ssize_t count = read(end.get(), buffer.data(), buffer.size());
    if (count <= 0) return parts;
    parts.push_back(buffer.substr(0, static_cast<size_t>(count)));
  }
}

void make_pipe(int flags = 0) {
  int ends[2];
  REQUIRE(pipe2(ends, flags) == 0);
}

TEST_F(Pipes, ContentSizeAndEnds) {
  std::string content;
  for (int i = 0; i < 50'000; ++i) content += static_cast<char>('a' + i * 7 % 26);
  cycle(
      [&] {
        make_pipe(O_CLOEXEC);
        REQUIRE(fcntl(4, F_SETPIPE_SZ, 1 << 18) == 1 << 18);
        REQUIRE(write(4, content.data(), content.size()) == 50'000);
        REQUIRE(open("/proc/self/fd/3", O_RDONLY | O_NONBLOCK) == 5);  // another description of the same end
        REQUIRE(open("/proc/self/fd/4", O_WRONLY | O_APPEND) == 6 && dup2(6, 20) == 20);
        REQUIRE(open("/proc/self/fd/4", O_RDWR) == 7);
        make_pipe(O_NONBLOCK);  // an empty one
      },
      [&](pid_t pid) {
        using kernel::KcmpType;
        EXPECT_NE(*kernel::kcmp(pid, pid, KcmpType::file, 3, 5), std::strong_ordering::equal);
        EXPECT_EQ(*kernel::kcmp(pid, pid, KcmpType::file, 6, 20), std::strong_ordering::equal);
        EXPECT_EQ(reads_of(pid, 3), std::vector{content});
      });
}

TEST_F(Pipes, CaptureConsumesNothing) {
  Holder holder([] {
    make_pipe();
    REQUIRE(write(4, "still here", 10) == 10);
  });
  capture(holder.pid());
  capture(holder.pid());
  EXPECT_EQ(reads_of(holder.pid(), 3), std::vector<std::string>{"still here"});
}

TEST_F(Pipes, PacketsKeepTheirBoundaries) {
  const std::string large(4096, 'L');
  cycle(
      [&] {
        make_pipe(O_DIRECT | O_NONBLOCK);
        for (const auto& packet : {std::string("first"), std::string("2"), large, std::string("last")}) {
          REQUIRE(write(4, packet.data(), packet.size()) == static_cast<ssize_t>(packet.size()));
        }
      },
      [&](pid_t pid) { EXPECT_EQ(reads_of(pid, 3), (std::vector<std::string>{"first", "2", large, "last"})); });
}

TEST_F(Pipes, ASinglePacketIsNotJoinedByTheNext) {
  cycle(
      [] {
        make_pipe(O_DIRECT);
        REQUIRE(write(4, "one", 3) == 3);
      },
      [](pid_t pid) {
        const auto pidfd = *kernel::pidfd_open(pid);
        const auto end = *kernel::pidfd_getfd(pidfd.get(), 4);
        ASSERT_EQ(write(end.get(), "two", 3), 3);
        EXPECT_EQ(reads_of(pid, 3), (std::vector<std::string>{"one", "two"}));
      });
}

TEST_F(Pipes, PlainBytesStayAStream) {
  cycle(
      [] {
        make_pipe();
        REQUIRE(write(4, "one", 3) == 3);
      },
      [](pid_t pid) {
        const auto pidfd = *kernel::pidfd_open(pid);
        const auto end = *kernel::pidfd_getfd(pidfd.get(), 4);
        ASSERT_EQ(write(end.get(), "two", 3), 3);
        EXPECT_EQ(reads_of(pid, 3), std::vector<std::string>{"onetwo"});
      });
}

TEST_F(Pipes, OneEndAlone) {
  cycle(
      [] {
        make_pipe();
        REQUIRE(write(4, "left behind", 11) == 11 && close(4) == 0);  // 3 reads on, nobody writes
        make_pipe();                                                  // 4 reads, 5 writes
        REQUIRE(close(4) == 0);                                       // 5 writes, nobody reads
      },
      [](pid_t pid) {
        const auto pidfd = *kernel::pidfd_open(pid);
        const auto reader = *kernel::pidfd_getfd(pidfd.get(), 3), writer = *kernel::pidfd_getfd(pidfd.get(), 5);
        char bytes[32];
        EXPECT_EQ(read(reader.get(), bytes, sizeof bytes), 11);
        EXPECT_EQ(read(reader.get(), bytes, sizeof bytes), 0) << "the end, not a wait";
        signal(SIGPIPE, SIG_IGN);
        EXPECT_EQ(write(writer.get(), "x", 1), -1);
        EXPECT_EQ(errno, EPIPE);
      });
}

TEST_F(Pipes, EndsThatLeadOutsideAreNamed) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const int read_end = ends[0], write_end = ends[1];
  const pid_t self = getpid();
  Holder reader([&] { REQUIRE(open(fmt::format("/proc/{}/fd/{}", self, read_end).c_str(), O_RDONLY) == 3); });
  EXPECT_THAT(refusals(*capture(reader.pid())),
              Contains(HasSubstr("the write end of this pipe is held by a process outside")));
  reader.end();
  Holder writer([&] { REQUIRE(open(fmt::format("/proc/{}/fd/{}", self, write_end).c_str(), O_WRONLY) == 3); });
  EXPECT_THAT(refusals(*capture(writer.pid())),
              Contains(HasSubstr("the read end of this pipe is held by a process outside")));
  close(read_end);
  EXPECT_THAT(refusals(*capture(writer.pid())), testing::IsEmpty()) << "now nobody reads it at all";
  close(write_end);
}

TEST_F(Pipes, Fifos) {
  ASSERT_EQ(mkfifo(work("fifo").c_str(), 0600), 0);
  cycle(
      [&] {
        REQUIRE(open(work("fifo").c_str(), O_RDONLY | O_NONBLOCK) == 3);
        REQUIRE(open(work("fifo").c_str(), O_WRONLY | O_CLOEXEC) == 4);
        REQUIRE(open(work("fifo").c_str(), O_RDWR) == 5);
        REQUIRE(write(4, "through the fifo", 16) == 16);
      },
      [&](pid_t pid) {
        EXPECT_EQ(*kernel::read_link(fd_path(pid, 4)), work("fifo"));
        EXPECT_EQ(reads_of(pid, 3), std::vector<std::string>{"through the fifo"});
      });
}

TEST_F(Pipes, UnlinkedFifosAreMadeAgain) {
  ASSERT_EQ(mkfifo(work("fifo").c_str(), 0600), 0);
  Holder holder([&] { REQUIRE(open(work("fifo").c_str(), O_RDWR) == 3 && unlink(work("fifo").c_str()) == 0); });
  EXPECT_THAT(refusals(*capture(holder.pid())), testing::IsEmpty());
}

TEST_F(Pipes, FifosWithAnotherNameOnlyAreRefused) {
  ASSERT_EQ(mkfifo(work("fifo").c_str(), 0600), 0);
  ASSERT_EQ(link(work("fifo").c_str(), work("other").c_str()), 0);
  Holder holder([&] { REQUIRE(open(work("fifo").c_str(), O_RDWR) == 3 && unlink(work("fifo").c_str()) == 0); });
  EXPECT_THAT(refusals(*capture(holder.pid())), Contains(HasSubstr("not reached by its name")));
}

TEST_F(Pipes, HostileRecordsAreRejected) {
  const auto images = *image::Directory::open((directory_ / "images").string());
  const auto with = [&](const std::function<void(pipe_entry&, pipe_data_entry&)>& change) {
    image::FileRecord record;
    record.set_type(PIPE), record.set_id(1);
    auto& pipe = *record.mutable_pipe();
    pipe.set_id(1), pipe.set_pipe_id(7), pipe.set_flags(O_RDONLY);
    encode_owner({}, *pipe.mutable_fown());
    pipe_data_entry data;
    data.set_pipe_id(7), data.set_bytes(10), data.set_size(4096);
    change(pipe, data);
    auto writer = *images.create("pipes-data.img");
    EXPECT_TRUE(writer.append(data));
    EXPECT_TRUE(writer.append_raw(Bytes(10)));
    EXPECT_TRUE(writer.finish());
    const image::FileRecords records(images);
    model::Application application;
    return file_room("pipe")->decode(records, record, application).has_value();
  };
  EXPECT_TRUE(with([](auto&, auto&) {}));
  EXPECT_FALSE(with([](auto& pipe, auto&) { pipe.set_pipe_id(0); }));
  EXPECT_FALSE(with([](auto&, auto& data) { data.set_bytes(4'000'000'000); }));
  EXPECT_FALSE(with([](auto&, auto& data) { data.set_size(9); }));
  EXPECT_FALSE(with([](auto&, auto& data) { data.set_size(~0u); }));
  EXPECT_FALSE(with([](auto&, auto& data) { data.add_packets(11); }));
  EXPECT_FALSE(with([](auto&, auto& data) { data.add_packets(~0u), data.add_packets(11); }));
}

}  // namespace
}  // namespace stasis::resource
