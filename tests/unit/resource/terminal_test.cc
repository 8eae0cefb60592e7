// Terminals: those of the tree made again, those of the machine opened again, those of shell jobs refused without the
// option and replaced by our own with it.
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "file_cycle.h"
#include "kernel/process.h"
#include "resource/terminal_device.h"

namespace stasis::resource {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

class Terminals : public FileCycle {
 protected:
  struct Pty {
    UniqueFd master, slave;
    std::string path;
  };
  static Pty make_pty() {
    Pty pty;
    char name[128];
    int master = -1, slave = -1;
    EXPECT_EQ(openpty(&master, &slave, name, nullptr, nullptr), 0);
    fcntl(master, F_SETFD, FD_CLOEXEC), fcntl(slave, F_SETFD, FD_CLOEXEC);
    pty.master = UniqueFd(master), pty.slave = UniqueFd(slave), pty.path = name;
    return pty;
  }

  /// While it lives, our standard input is this terminal.
  class AsInput {
   public:
    explicit AsInput(const Pty& pty) : before_(fcntl(0, F_DUPFD_CLOEXEC, 100)) { dup2(pty.slave.get(), 0); }
    ~AsInput() { dup2(before_.get(), 0); }

   private:
    UniqueFd before_;
  };
};

TEST_F(Terminals, AreRefusedWithoutShellJob) {
  const auto pty = make_pty();
  Holder holder([&] { REQUIRE(open(pty.path.c_str(), O_RDWR | O_NOCTTY) == 3); });
  EXPECT_THAT(refusals(*capture(holder.pid())), Contains(HasSubstr("pass --shell-job")));
}

/// They are named in images by their number: several of one kind are kept apart.
TEST_F(Terminals, OfTheMachineAreOpenedAgain) {
  if (access("/dev/tty44", F_OK) != 0) GTEST_SKIP() << "there are no virtual terminals here";
  cycle(
      [] {
        REQUIRE(open("/dev/tty44", O_RDWR | O_NOCTTY) == 3 && open("/dev/tty43", O_RDONLY | O_NOCTTY) == 4);
        REQUIRE(open("/dev/tty44", O_WRONLY | O_NOCTTY | O_NONBLOCK) == 5);
        termios modes{};
        REQUIRE(tcgetattr(3, &modes) == 0);
        modes.c_cc[VMIN] = 7;
        REQUIRE(tcsetattr(3, TCSANOW, &modes) == 0);
      },
      [](pid_t pid) {
        EXPECT_EQ(*kernel::read_link(fd_path(pid, 3)), "/dev/tty44");
        EXPECT_EQ(*kernel::read_link(fd_path(pid, 4)), "/dev/tty43");
        const auto pidfd = *kernel::pidfd_open(pid);
        const auto waiting = *kernel::pidfd_getfd(pidfd.get(), 3), other = *kernel::pidfd_getfd(pidfd.get(), 4);
        const auto never = *kernel::pidfd_getfd(pidfd.get(), 5);
        EXPECT_EQ(fcntl(waiting.get(), F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDWR);
        EXPECT_EQ(fcntl(other.get(), F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY);
        EXPECT_EQ(fcntl(never.get(), F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_WRONLY | O_NONBLOCK);
        termios modes{};
        EXPECT_EQ(tcgetattr(waiting.get(), &modes), 0);
        EXPECT_EQ(modes.c_cc[VMIN], 7);
        EXPECT_EQ(tcgetattr(other.get(), &modes), 0);
        EXPECT_NE(modes.c_cc[VMIN], 7);
      });
}

/// It is another one here, or there is none of that number.
TEST_F(Terminals, OfTheMachineAreRefusedWhereTheyAreNot) {
  if (access("/dev/tty44", F_OK) != 0) GTEST_SKIP() << "there are no virtual terminals here";
  Holder holder([&] { REQUIRE(open("/dev/tty44", O_RDWR | O_NOCTTY) == 3); });
  const auto captured = capture(holder.pid());
  EXPECT_THAT(refusals(*captured), IsEmpty());
  auto decoded = through_images(captured->application);
  ASSERT_TRUE(decoded) << decoded.error().message();
  EXPECT_THAT(validated(*decoded), IsEmpty());
  for (auto& [id, description] : decoded->descriptions) {
    const auto* terminal = description.state.as<Terminal>();
    if (terminal == nullptr) continue;
    auto device = std::make_shared<TerminalDevice>(*terminal->known);
    device->device = (4u << 8) | 255;  // /dev/ttyS191
    auto moved = std::make_shared<Terminal>(*terminal);
    moved->known = device;
    description.state = {std::move(moved)};
  }
  ASSERT_EQ(validated(*decoded).size(), 1u);
  EXPECT_THAT(validated(*decoded)[0].text(), HasSubstr("/dev/ttyS191 is not this terminal here"));
}

TEST_F(Terminals, OfTheTreeAreMadeAgain) {
  cycle(
      [] {
        REQUIRE(open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK) == 3 && unlockpt(3) == 0);
        REQUIRE(open(ptsname(3), O_RDWR | O_NOCTTY) == 4 && open(ptsname(3), O_RDONLY | O_NOCTTY) == 5);
        REQUIRE(dup2(3, 9) == 9);
        termios modes{};
        REQUIRE(tcgetattr(3, &modes) == 0);
        modes.c_lflag &= ~static_cast<tcflag_t>(ECHO);
        REQUIRE(tcsetattr(3, TCSANOW, &modes) == 0);
        const winsize window{11, 22, 33, 44};
        REQUIRE(ioctl(4, TIOCSWINSZ, &window) == 0);
        REQUIRE(write(3, "line\n", 5) == 5 && write(4, "text", 4) == 4);
        pollfd readable[] = {{3, POLLIN, 0}, {4, POLLIN, 0}};
        while (poll(readable, 2, -1) < 2) {
        }
      },
      [&](pid_t pid) {
        const auto pidfd = *kernel::pidfd_open(pid);
        const auto master = *kernel::pidfd_getfd(pidfd.get(), 9), slave = *kernel::pidfd_getfd(pidfd.get(), 4);
        winsize window{};
        EXPECT_EQ(ioctl(master.get(), TIOCGWINSZ, &window), 0);
        EXPECT_EQ(window.ws_row, 11);
        EXPECT_EQ(window.ws_ypixel, 44);
        char text[16] = {};
        EXPECT_EQ(read(slave.get(), text, sizeof text), 5);
        EXPECT_STREQ(text, "line\n");
        EXPECT_EQ(read(master.get(), text, sizeof text), 4);
        EXPECT_EQ(std::string(text, 4), "text");
      });
}

TEST_F(Terminals, ThatHaveHungUpComeBackAsSuch) {
  cycle(
      [] {
        REQUIRE(open("/dev/ptmx", O_RDWR | O_NOCTTY) == 3 && unlockpt(3) == 0);
        REQUIRE(open(ptsname(3), O_RDWR | O_NOCTTY) == 4 && open(ptsname(3), O_WRONLY | O_NOCTTY) == 5);
        REQUIRE(close(3) == 0 && open("/dev/null", O_RDONLY) == 3);
      },
      [](pid_t pid) {
        const auto pidfd = *kernel::pidfd_open(pid);
        for (const int fd : {4, 5}) {
          const auto end = *kernel::pidfd_getfd(pidfd.get(), fd);
          EXPECT_TRUE(write(end.get(), "x", 1) == -1 && errno == EIO);
        }
      });
}

TEST_F(Terminals, OfAnIndexThatIsTakenAreRefused) {
  const auto pty = make_pty();
  Holder holder([&] { REQUIRE(open("/dev/ptmx", O_RDWR | O_NOCTTY) == 3); });
  auto captured = capture(holder.pid());
  EXPECT_THAT(refusals(*captured), IsEmpty());
  const auto decoded = through_images(captured->application);
  ASSERT_TRUE(decoded) << decoded.error().message();
  ASSERT_EQ(validated(*decoded).size(), 1u);
  EXPECT_THAT(validated(*decoded)[0].text(), HasSubstr("in use by somebody else"));
}

TEST_F(Terminals, AreInheritedByShellJobs) {
  policy.shell_job = true;
  const auto theirs = make_pty(), ours = make_pty();
  const AsInput input(ours);
  cycle(
      [&] {
        REQUIRE(open(theirs.path.c_str(), O_RDWR | O_NOCTTY) == 3);
        REQUIRE(open(theirs.path.c_str(), O_WRONLY | O_NOCTTY | O_NONBLOCK | O_APPEND) == 4 && dup2(3, 9) == 9);
        termios modes{};
        REQUIRE(tcgetattr(3, &modes) == 0);
        cfmakeraw(&modes);
        modes.c_cc[VMIN] = 3;
        REQUIRE(tcsetattr(3, TCSANOW, &modes) == 0);
      },
      [&](pid_t pid) {
        EXPECT_EQ(*kernel::read_link(fd_path(pid, 3)), ours.path);
        const auto pidfd = *kernel::pidfd_open(pid);
        const auto end = *kernel::pidfd_getfd(pidfd.get(), 4);
        ASSERT_EQ(write(end.get(), "hello", 5), 5);
        char text[16];
        EXPECT_EQ(read(ours.master.get(), text, sizeof text), 5);
        termios modes{};
        EXPECT_EQ(tcgetattr(ours.slave.get(), &modes), 0);
        EXPECT_EQ(modes.c_lflag & (ICANON | ECHO), 0u) << "raw, as the job had it";
        EXPECT_EQ(modes.c_cc[VMIN], 3);
      });
}

TEST_F(Terminals, NeedATerminalAndTheOptionAtRestore) {
  policy.shell_job = true;
  const auto theirs = make_pty();
  Holder holder([&] { REQUIRE(open(theirs.path.c_str(), O_RDWR | O_NOCTTY) == 3); });
  const auto captured = capture(holder.pid());
  EXPECT_THAT(refusals(*captured), IsEmpty());
  auto decoded = through_images(captured->application);
  ASSERT_TRUE(decoded) << decoded.error().message();
  decoded->shell_job = false;
  ASSERT_EQ(validated(*decoded).size(), 1u);
  EXPECT_THAT(validated(*decoded)[0].text(), HasSubstr("pass --shell-job"));
}

TEST_F(Terminals, OfASessionInsideTheTreeAreRefused) {
  policy.shell_job = true;
  const auto pty = make_pty();
  Holder holder([&] { REQUIRE(open(pty.path.c_str(), O_RDWR | O_NOCTTY) == 3); });
  struct stat about{};
  ASSERT_EQ(fstat(pty.slave.get(), &about), 0);
  CaptureContext context;
  context.policy = policy;
  model::Task task;
  task.pid = task.session = Pid{tree_pid}, task.descriptors = table, task.fs = fs_id;
  task.controlling_terminal = about.st_rdev;
  context.application.tasks.push_back(task);
  ProcessView view;
  view.host_pid = holder.pid(), view.host_tids = {holder.pid()};
  const DescriptorHolder one{&view, &context.application.tasks.back()};
  const Status done = capture_descriptors(context, {&one, 1});
  ASSERT_TRUE(done) << done.error().message();
  EXPECT_THAT(refusals(context), Contains(HasSubstr("belongs to its session, which is part of the tree")));
}

}  // namespace
}  // namespace stasis::resource
