// Serving the missing pages of a process of our own: no images, no restore.
#include "memory/lazy_service.h"

#include <fcntl.h>
#include <poll.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include <fmt/format.h>

#include "kernel/process.h"
#include "kernel/proc.h"
#include "memory/lazy_guard.h"
#include "memory/page_sender.h"
#include "scratch.h"

namespace stasis::memory {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr uint64_t count = 512;

uint8_t value_of(uint64_t page) { return static_cast<uint8_t>(page * 7 % 251 + 1); }

/// What the parent and the process whose pages are missing share.
struct Board {
  std::atomic<int> userfaultfd{-1};
  std::atomic<int> may_run{0};
};

class LazyServing : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto possible = kernel::MissingPages::probe(); !possible) GTEST_SKIP() << possible.error().message();
    void* shared = mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    board_ = new (shared) Board;
    void* area = mmap(nullptr, count * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    area_ = {reinterpret_cast<uint64_t>(area), reinterpret_cast<uint64_t>(area) + count * page_size};
  }
  ~LazyServing() override {
    for (const pid_t pid : {application_, daemon_}) {
      if (pid > 0) kill(pid, SIGKILL);
    }
    while (waitpid(-1, nullptr, 0) > 0) {
    }
  }

  uint8_t last_byte_of(uint64_t page) const {
    return *reinterpret_cast<volatile uint8_t*>(area_.begin + (page + 1) * page_size - 1);
  }
  uint8_t expected(uint64_t page) const { return value_of(area_.begin / page_size + page); }

  /// A process that runs `life` when its tree is complete; its exit status.
  void begin_application(const std::function<int()>& life) {
    application_ = fork();
    if (application_ != 0) return;
    board_->userfaultfd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
    while (board_->may_run == 0) usleep(1000);
    close(board_->userfaultfd);
    _exit(life());
  }
  /// The daemon; what it says goes into a pipe.
  void begin_daemon(bool only_faults = false, std::function<Status()> on_read = {}) {
    auto listener = LazyListener::open(scratch_.root().string());
    ASSERT_TRUE(listener) << listener.error().message();
    ASSERT_EQ(pipe2(said_, O_CLOEXEC | O_NONBLOCK), 0);
    daemon_ = fork();
    if (daemon_ != 0) return;
    struct Pages : FakePages {
      using FakePages::FakePages;
      std::function<Status()> on_read;
      Status read(uint64_t address, std::span<uint8_t> buffer) override {
        if (on_read) TRY(on_read());
        return FakePages::read(address, buffer);
      }
    };
    std::optional<PageFetcher> fetcher;
    if (page_server_ >= 0) fetcher.emplace(plain_stream(UniqueFd(page_server_)));
    auto* fetches = fetcher ? &*fetcher : nullptr;
    const auto source = [&](pid_t task) -> Result<LazySource> {
      auto pages = std::make_shared<Pages>(value_of);
      pages->on_read = on_read;
      return LazySource{task, pages, elsewhere_, fetches};
    };
    const auto tell = [&](const Error& error) {
      (void)!write(said_[1], error.message().data(), error.message().size());
    };
    const auto guard = LazyGuard::start(tell);
    const auto served =
        LazyService(std::move(*listener), -1, {source, fetches, [](const std::string&) {}, only_faults}).run();
    const std::string text = served ? "served" : served.error().message();
    _exit(write(said_[1], text.data(), text.size()) > 0 ? 0 : 1);
  }
  /// The restore, as far as it goes while the tree is built.
  Result<LazyDaemon> hand_over_memory() {
    auto link = TRY(LazyDaemon::connect(scratch_.root().string()));
    while (board_->userfaultfd < 0) usleep(1000);
    const auto process = TRY(kernel::pidfd_open(application_));
    const kernel::MissingPages descriptor(TRY(kernel::pidfd_getfd(process.get(), board_->userfaultfd)));
    TRY(descriptor.begin());
    TRY(descriptor.watch(area_));
    const std::vector<uint64_t> runs{area_.begin, area_.size()};
    TRY(link.hand_over(application_, descriptor.fd(), runs));
    return link;
  }
  /// The service has the memory and does not know the process.
  Result<LazyDaemon> begin_under_guard() {
    begin_application([] { return 0; });
    begin_daemon();
    guard();
    auto link = TRY(hand_over_memory());
    await_userfaultfd();
    return link;
  }
  Status commit(LazyDaemon& link) const {
    TRY(link.add_process(TRY(kernel::pidfd_open(application_)).get()));
    return link.commit();
  }
  void hand_over() {
    auto link = hand_over_memory();
    ASSERT_TRUE(link) << link.error().message();
    const auto committed = commit(*link);
    ASSERT_TRUE(committed) << committed.error().message();
    board_->may_run = 1;
    EXPECT_TRUE(link->complete());
  }
  std::string refused_hand_over() {
    auto link = hand_over_memory();
    const auto committed = link ? commit(*link) : Status(fail(link.error()));
    return committed ? "accepted" : committed.error().message();
  }
  /// Somebody else has three quarters of the pages, and does this with a stream to whoever wants them.
  void begin_page_server(const std::function<void(std::unique_ptr<Stream>)>& life) {
    elsewhere_ = {{area_.begin, area_.begin + count / 4 * page_size}, {area_.begin + count / 2 * page_size, area_.end}};
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    page_server_ = ends[0];
    if (fork() == 0) {
      close(ends[0]);
      life(plain_stream(UniqueFd(ends[1])));
      _exit(0);
    }
    close(ends[1]);
  }
  /// The answer is that the client gets all, or why it does not.
  void begin_honest_page_server() {
    begin_page_server([this](std::unique_ptr<Stream> stream) {
      PageSender sender([this](pid_t) { return GivenPages{std::make_shared<FakePages>(value_of), elsewhere_}; });
      if (sender.serve(*stream)) (void)stream->finish();
    });
  }
  int status_of(pid_t& pid) {
    int status = -1;
    waitpid(std::exchange(pid, 0), &status, 0);
    return status;
  }
  std::string said() {
    status_of(daemon_);
    pollfd wanted{said_[0], POLLIN, 0};
    poll(&wanted, 1, 10'000);
    char text[4096]{};
    const ssize_t size = read(said_[0], text, sizeof text);
    return {text, size > 0 ? static_cast<size_t>(size) : 0};
  }
  pid_t guard() const {
    for (;;) {
      if (const auto children = kernel::list_children(daemon_); children && children->size() == 1)
        return children->front();
      usleep(1000);
    }
  }
  /// Until the daemon has the memory that was handed over.
  void await_userfaultfd() const {
    const auto fds = std::filesystem::path(fmt::format("/proc/{}/fd", daemon_));
    const auto has_it = [&] {
      std::error_code gone;
      for (const auto& fd : std::filesystem::directory_iterator(fds)) {
        if (std::filesystem::read_symlink(fd, gone) == "anon_inode:[userfaultfd]") return true;
      }
      return false;
    };
    while (!has_it()) usleep(1000);
  }
  int check_all() const {
    for (uint64_t i = 0; i < count; ++i) {
      if (const uint64_t page = i * 389 % count; last_byte_of(page) != expected(page)) return 1;
    }
    return 0;
  }

  Scratch scratch_;
  Board* board_ = nullptr;
  AddressRange area_;
  pid_t application_ = 0, daemon_ = 0;
  int said_[2] = {-1, -1}, page_server_ = -1;
  std::vector<AddressRange> elsewhere_;
};

TEST_F(LazyServing, everything_comes) {
  begin_application([this] { return check_all(); });
  begin_daemon();
  hand_over();
  EXPECT_EQ(status_of(application_), 0);
  EXPECT_EQ(said(), "served");
}

TEST_F(LazyServing, the_rest_comes_from_elsewhere) {
  for (const bool only_faults : {false, true}) {
    begin_honest_page_server();
    begin_application([this] { return check_all(); });
    begin_daemon(only_faults);
    close(page_server_);
    hand_over();
    EXPECT_EQ(status_of(application_), 0);
    EXPECT_EQ(said(), "served");
    board_->may_run = 0, board_->userfaultfd = -1;
  }
}

TEST_F(LazyServing, a_page_server_that_goes_away_is_the_end_of_the_application) {
  begin_page_server([this](std::unique_ptr<Stream> stream) {
    int given = 0;
    PageSender sender([this](pid_t) { return GivenPages{std::make_shared<FakePages>(value_of), elsewhere_}; });
    (void)sender.serve(*stream, [&]() -> Status {
      if (given++ < 2) return {};
      return fail(Error::conflict("serve", "enough"));
    });
  });
  begin_application([this] { return check_all(); });
  begin_daemon(true);
  close(page_server_);
  hand_over();
  EXPECT_EQ(status_of(application_), SIGKILL);
  EXPECT_THAT(said(), AllOf(HasSubstr("the page server has ended the connection"), HasSubstr("has been ended")));
}

TEST_F(LazyServing, a_page_server_that_goes_away_ends_the_waiting) {
  begin_page_server([](std::unique_ptr<Stream>) {});
  begin_daemon();
  close(page_server_);
  EXPECT_THAT(said(), HasSubstr("the page server has ended the connection"));
}

TEST_F(LazyServing, a_tree_is_not_let_run_before_its_other_half_knows) {
  begin_page_server([](std::unique_ptr<Stream> stream) { (void)wire::next_header(*stream); });
  begin_application([] { return 0; });
  begin_daemon();
  close(page_server_);
  EXPECT_THAT(refused_hand_over(), HasSubstr("the page server has ended the connection"));
  kill(application_, SIGKILL);
  EXPECT_THAT(said(), HasSubstr("the page server has ended the connection"));
}

TEST_F(LazyServing, nothing_comes_but_what_is_used) {
  begin_application([this] {
    if (last_byte_of(5) != expected(5)) return 1;
    std::vector<unsigned char> present(count);
    if (mincore(reinterpret_cast<void*>(area_.begin), area_.size(), present.data()) != 0) return 2;
    return std::ranges::count_if(present, [](unsigned char one) { return (one & 1) != 0; }) == 1 ? 0 : 3;
  });
  begin_daemon(true);
  hand_over();
  EXPECT_EQ(status_of(application_), 0);
  EXPECT_EQ(said(), "served");
}

TEST_F(LazyServing, an_application_without_its_pages_is_ended) {
  begin_application([this] {
    if (last_byte_of(5) != expected(5)) return 1;
    for (;;) pause();
  });
  begin_daemon(true);
  guard();
  hand_over();
  kill(daemon_, SIGKILL);
  EXPECT_EQ(status_of(application_), SIGKILL);
  EXPECT_THAT(said(), AllOf(HasSubstr("lazy-pages was killed"), HasSubstr("its 1 processes have been ended")));
}

TEST_F(LazyServing, a_restore_hears_of_the_death_of_its_service) {
  auto link = begin_under_guard();
  ASSERT_TRUE(link) << link.error().message();
  kill(daemon_, SIGKILL);
  const auto committed = link->commit();
  ASSERT_FALSE(committed);
  EXPECT_EQ(committed.error().code(), ErrorCode::gone);
  EXPECT_THAT(committed.error().message(), HasSubstr("leave missing pages to lazy-pages: it has ended"));
  kill(application_, SIGKILL);  // as the restore does: nobody else knows of it
  EXPECT_THAT(said(), HasSubstr("lazy-pages was killed"));
}

TEST_F(LazyServing, a_restore_that_waits_for_room_hears_of_the_death_of_its_service) {
  auto link = begin_under_guard();
  ASSERT_TRUE(link) << link.error().message();
  kill(daemon_, SIGSTOP);  // it does not read any more
  std::atomic<pid_t> talker = 0;
  Status said_all;
  std::thread talks([&] {
    talker = gettid();
    const std::vector<AddressRange> some(2048);
    while (said_all) said_all = link->need(application_, some);
  });
  const auto waits = [&] {
    const auto call = kernel::read_file(fmt::format("/proc/self/task/{}/syscall", talker.load()));
    return call && call->starts_with(fmt::format("{} ", SYS_sendmsg));
  };
  while (talker == 0 || !waits()) usleep(1000);
  kill(daemon_, SIGKILL);
  talks.join();
  EXPECT_EQ(said_all.error().code(), ErrorCode::gone);
  kill(application_, SIGKILL);
  EXPECT_THAT(said(), HasSubstr("lazy-pages was killed"));
}

TEST_F(LazyServing, a_restore_that_waits_for_room_hears_what_has_ended_its_service) {
  int go[2];
  ASSERT_EQ(pipe2(go, O_CLOEXEC), 0);
  begin_page_server([&](std::unique_ptr<Stream>) {
    char byte = 0;
    (void)!read(go[0], &byte, 1);
  });
  begin_application([] { return 0; });
  begin_daemon();
  close(page_server_);
  auto link = hand_over_memory();
  ASSERT_TRUE(link) << link.error().message();
  await_userfaultfd();
  ASSERT_EQ(write(go[1], "", 1), 1);
  Status said_all;
  while (said_all) said_all = link->add_process(0);
  EXPECT_THAT(said_all.error().message(), HasSubstr("the page server has ended the connection"));
  kill(application_, SIGKILL);
  EXPECT_THAT(said(), HasSubstr("the page server has ended the connection"));
}

TEST_F(LazyServing, an_error_of_the_source_ends_the_application) {
  begin_application([this] { return last_byte_of(5) != 0 ? 1 : 2; });
  begin_daemon(true, [] { return fail(Error::invalid("read pages", "they are gone", "pages-1.img")); });
  hand_over();
  EXPECT_EQ(status_of(application_), SIGKILL);
  EXPECT_THAT(said(),
              AllOf(HasSubstr("they are gone"), HasSubstr("the restored application, 1 processes, has been ended")));
}

TEST_F(LazyServing, a_service_goes_on_without_its_guard) {
  begin_application([this] { return check_all(); });
  begin_daemon(true);
  const pid_t killed = guard();
  kill(killed, SIGKILL);
  hand_over();
  EXPECT_EQ(status_of(application_), 0);
  EXPECT_EQ(said(), "served");
}

TEST_F(LazyServing, a_restore_that_goes_away_is_told) {
  begin_daemon();
  {
    const auto link = LazyDaemon::connect(scratch_.root().string());
  }
  EXPECT_THAT(said(), HasSubstr("the restore has ended before its tree ran"));
  const auto late = LazyDaemon::connect(scratch_.root().string());
  ASSERT_FALSE(late);
  EXPECT_THAT(late.error().message(), HasSubstr("start `stasis lazy-pages`"));
}

TEST(LazyListening, of_many_who_begin_at_once_one_listens) {
  constexpr int rounds = 100, many = 4;
  for (int round = 0; round < rounds; ++round) {
    const Scratch scratch;
    const auto directory = scratch.root().string();
    const pid_t killed = fork();  // leaves its socket
    if (killed == 0) {
      const auto listener = LazyListener::open(directory);
      _exit(listener ? 0 : 1);
    }
    int status = -1;
    waitpid(killed, &status, 0);
    ASSERT_EQ(status, 0);
    std::atomic<int> waiting = many;
    std::vector<std::optional<LazyListener>> listeners(many);
    std::vector<std::jthread> threads;
    for (auto& listener : listeners) {
      threads.emplace_back([&] {
        --waiting;
        while (waiting != 0) std::this_thread::yield();
        if (auto opened = LazyListener::open(directory)) listener.emplace(std::move(*opened));
      });
    }
    threads.clear();
    EXPECT_EQ(std::ranges::count_if(listeners, [](const auto& one) { return one.has_value(); }), 1)
        << "round " << round;
    EXPECT_TRUE(LazyDaemon::connect(directory)) << "round " << round;
  }
}

}  // namespace
}  // namespace stasis::memory
