// Live processes to be captured, and a capture without the rooms of stasis: the questions are the tests' own.
#pragma once

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "capture/freezer.h"
#include "capture/interview.h"
#include "capture/release.h"
#include "capture/sleeps.h"
#include "capture/walk.h"
#include "kernel/proc.h"
#include "../eventually.h"

namespace stasis::capture {

using namespace std::chrono_literals;

/// Memory that the test and its specimen share.
template <typename T>
class Shared {
 public:
  Shared()
      : value_(static_cast<T*>(mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    new (value_) T{};
  }
  ~Shared() { munmap(value_, sizeof(T)); }
  Shared(const Shared&) = delete;
  T* operator->() const { return value_; }
  T& operator*() const { return *value_; }

 private:
  T* value_;
};

/// A child that leads its own session and runs `body`; its exit status is what the body returns.
class Specimen {
 public:
  explicit Specimen(const std::function<int()>& body) : pid_(fork()) {
    if (pid_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setsid();
    _exit(body());
  }
  Specimen(const Specimen&) = delete;
  ~Specimen() {
    if (!reaped_) {
      kill(-pid_, SIGKILL);
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, __WALL);
    }
  }
  pid_t pid() const { return pid_; }
  int wait() {
    int status = -1;
    while (waitpid(pid_, &status, __WALL) < 0 && errno == EINTR) {
    }
    reaped_ = true;
    return status;
  }
  void expect_success() {
    const int status = wait();
    EXPECT_TRUE(WIFEXITED(status)) << "wait status " << status;
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
  char state() const {
    const auto stat = kernel::read_stat(pid_);
    return stat ? stat->state : '-';
  }
  bool is_in(int system_call) const {
    const auto text = kernel::read_proc(pid_, "syscall");
    return text && text->starts_with(std::to_string(system_call) + " ");
  }

 private:
  pid_t pid_;
  bool reaped_ = false;
};

/// Asks every thread who it is.
class WhoRoom final : public resource::TaskRoom {
 public:
  struct Seen {
    pid_t pid = 0, tid = 0;
    std::string name;
    uint64_t mask = 0;
  };
  mutable std::vector<Seen> seen;

  std::string_view name() const override { return "who"; }
  Status ask(resource::CaptureContext&, model::Task&, model::Thread&, resource::Inquiry& inquiry) const override {
    const size_t index = seen.size();
    seen.emplace_back();
    using Answer = resource::Inquiry::Answer;
    inquiry.ask(plan::call(SYS_getpid), [this, index](const Answer& answer) -> Status {
      seen[index].pid = static_cast<pid_t>(answer.result);
      return {};
    });
    inquiry.ask(plan::call(SYS_gettid), [this, index](const Answer& answer) -> Status {
      seen[index].tid = static_cast<pid_t>(answer.result);
      return {};
    });
    inquiry.ask(plan::call(SYS_prctl, PR_GET_NAME, plan::Out{16}), [this, index](const Answer& answer) -> Status {
      seen[index].name = reinterpret_cast<const char*>(answer.out.at(0).data());
      return {};
    });
    inquiry.ask(plan::call(SYS_sigaltstack, 0, plan::Out{24}), [](const Answer&) -> Status { return {}; });
    return {};
  }
};

/// A captured tree as SeizedTree has it, without files and memory.
struct Captive {
  resource::CaptureContext context;
  std::vector<LiveProcess> processes;
  WhoRoom who;

  static Result<std::unique_ptr<Captive>> take(
      pid_t root, const AtPoint& at_point = [](std::string_view) {}, bool ask = true) {
    auto captive = std::make_unique<Captive>();
    const auto deadline = Clock::now() + 60s;
    captive->context.policy.shell_job = true;
    auto frozen = TRY(Freezer(captive->context.diagnostics, at_point, deadline).freeze(root));
    auto looks = look_at(frozen);
    captive->processes = TRY(walk(std::move(frozen), std::move(looks), captive->context));
    look_at_namespaces(captive->processes, captive->context);
    TRY(find_sharing(captive->processes, captive->context));
    at_point("walked");
    TRY(measure_sleeps(captive->processes, captive->context, at_point, deadline));
    if (!ask || captive->context.diagnostics.refused()) return captive;
    const resource::TaskRoom* rooms[] = {&captive->who};
    Interview interview(captive->processes, captive->context, at_point, deadline);
    TRY(interview.hold(rooms));
    at_point("captured");
    return captive;
  }
  Status release(AfterDump after) { return capture::release(processes, after); }
};

inline size_t mappings_of(pid_t pid) {
  const auto maps = kernel::read_maps(pid);
  return maps ? maps->size() : 0;
}

}  // namespace stasis::capture
