// Runs the commands of a plan in the calling process, with plain system calls: what the agent does, without the agent.
// Commands that create processes or wait for others are not known here: a test runs each process's own list.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <list>
#include <string>
#include <variant>
#include <vector>

#include <fmt/format.h>

#include "base/result.h"
#include "base/unique_fd.h"
#include "model/application.h"
#include "plan/command.h"

namespace stasis::resource {

class DirectRunner {
 public:
  /// `supervisor`: whose descriptors "/proc/supervisor/" means.
  explicit DirectRunner(pid_t supervisor) : supervisor_(supervisor) {}

  Status run(const plan::Action& action) {
    return std::visit([this](const auto& one) { return this->apply(one); }, action);
  }

  Status run(const plan::Calls& calls) {
    results_.clear();
    outputs_.clear();
    memory_.clear();
    for (const auto& call : calls) {
      outputs_.emplace_back(nullptr);
      long arguments[6] = {};
      for (size_t i = 0; i < call.arguments.size() && i < 6; ++i) arguments[i] = value_of(call.arguments[i]);
      const int64_t result = invoke(call.number, arguments);
      if (!expected(call.expect, result)) {
        return fail(Error::conflict(plan::call_name(call.number), fmt::format("it returned {}", result)));
      }
      results_.push_back(result);
    }
    return {};
  }

 private:
  long value_of(const plan::Argument& argument) {
    if (const auto* plain = std::get_if<uint64_t>(&argument)) return static_cast<long>(*plain);
    if (const auto* in = std::get_if<plan::In>(&argument)) return address_of(in->bytes, in->pointers, false);
    if (const auto* out = std::get_if<plan::Out>(&argument)) return address_of(Bytes(out->size), {}, true);
    if (const auto* both = std::get_if<plan::InOut>(&argument)) return address_of(both->bytes, {}, true);
    if (const auto* result = std::get_if<plan::ResultOf>(&argument)) return results_.at(earlier(result->relative));
    const auto& word = std::get<plan::WordOf>(argument);
    int32_t value = 0;
    std::memcpy(&value, outputs_.at(earlier(word.relative)) + word.offset, sizeof value);
    return value;
  }
  size_t earlier(int relative) const { return static_cast<size_t>(static_cast<int>(results_.size()) + relative); }

  long address_of(Bytes bytes, const std::vector<std::pair<uint32_t, uint32_t>>& pointers, bool output) {
    auto& kept = memory_.emplace_back(std::move(bytes));
    for (const auto& [at, target] : pointers) {
      const auto address = reinterpret_cast<uint64_t>(kept.data() + target);
      std::memcpy(kept.data() + at, &address, sizeof address);
    }
    if (output && outputs_.back() == nullptr) outputs_.back() = kept.data();
    return reinterpret_cast<long>(kept.data());
  }

  static int64_t raw(long result) { return result == -1 ? -errno : result; }

  static int64_t invoke(uint32_t number, const long* a) {
    if (number == plan::Call::move_fd) {
      const int from = static_cast<int>(a[0]), to = static_cast<int>(a[1]);
      if (from == to) return raw(fcntl(to, F_SETFD, (a[2] & O_CLOEXEC) != 0 ? FD_CLOEXEC : 0));
      if (dup3(from, to, static_cast<int>(a[2])) < 0) return -errno;
      return raw(close(from));
    }
    if (number == plan::Call::hold_directory) {
      const int opened = ::open(reinterpret_cast<const char*>(a[0]), O_DIRECTORY | O_CLOEXEC);
      if (opened >= 0) flock(opened, LOCK_EX);
      return raw(opened);
    }
    if (number == plan::Call::open_terminal) return open_terminal(static_cast<int>(a[0]), static_cast<int>(a[1]));
    if (number == plan::Call::read_fully || number == plan::Call::write_fully) {
      const bool reads = number == plan::Call::read_fully, at_position = a[3] == -1;
      for (long done = 0; done < a[2];) {
        const long to = a[1] + done, left = a[2] - done;
        const long count = reads ? (at_position ? syscall(SYS_read, a[0], to, left)
                                                : syscall(SYS_pread64, a[0], to, left, a[3] + done))
                                 : (at_position ? syscall(SYS_write, a[0], to, left)
                                                : syscall(SYS_pwrite64, a[0], to, left, a[3] + done));
        if (count < 0) return -errno;
        if (count == 0) return -EIO;
        done += count;
      }
      return a[2];
    }
    return raw(syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]));
  }

  static int64_t open_terminal(int index, int flags) {
    for (std::vector<UniqueFd> lower;;) {
      UniqueFd master(::open("/dev/ptmx", flags));
      int got = -1;
      if (ioctl(master.get(), TIOCGPTN, &got) != 0) return -errno;
      if (got == index) return master.release();
      if (got > index) return -EBUSY;
      lower.push_back(std::move(master));
    }
  }

  static bool expected(const plan::Expectation& expect, int64_t result) {
    switch (expect.kind) {
      case plan::Expectation::Kind::success:
        return result >= 0 || result < -4095;
      case plan::Expectation::Kind::anything:
        return true;
      case plan::Expectation::Kind::exactly:
        return result == expect.value;
      case plan::Expectation::Kind::success_or:
        return result >= 0 || result == expect.value;
    }
    return false;
  }

  Status apply(const plan::Perform& perform) { return run(perform.calls); }
  Status apply(const plan::Open& open) {
    std::string path = open.path;
    if (path.starts_with(plan::supervisor_directory)) {
      path.replace(0, plan::supervisor_directory.size(), fmt::format("/proc/{}/", supervisor_));
    }
    const plan::Calls calls = {plan::call(SYS_openat, AT_FDCWD, plan::text(path), open.flags, open.mode),
                               plan::call(plan::Call::move_fd, plan::ResultOf{-1}, open.fd, open.flags & O_CLOEXEC)};
    TRY_IN("open " + path, run(calls));
    return {};
  }
  Status apply(const plan::OpenTerminal& open) {
    const uint32_t index = model::index_of_terminal(open.terminal);
    plan::Calls calls = {plan::call(plan::Call::open_terminal, index, open.flags, plan::Out{4ull * index}),
                         plan::call(plan::Call::move_fd, plan::ResultOf{-1}, open.master_fd, O_CLOEXEC),
                         plan::call(SYS_ioctl, open.master_fd, TIOCSPTLCK, plan::struct_in(0))};
    if (open.slave_fd >= 0) {
      calls.push_back(plan::call(SYS_ioctl, open.master_fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_NONBLOCK));
      calls.push_back(plan::call(plan::Call::move_fd, plan::ResultOf{-1}, open.slave_fd, O_CLOEXEC));
    }
    TRY_IN("open a terminal", run(calls));
    return {};
  }
  Status apply(const plan::Close& close) { return run({plan::call(SYS_close, close.fd)}); }
  Status apply(const plan::Dup2& dup) {
    return run({plan::call(SYS_dup3, dup.old_fd, dup.new_fd, dup.close_on_exec ? O_CLOEXEC : 0)});
  }
  Status apply(const plan::SetCloseOnExec& set) {
    return run({plan::call(SYS_fcntl, set.fd, F_SETFD, set.value ? FD_CLOEXEC : 0)});
  }
  Status apply(const plan::Lseek& seek) { return run({plan::call(SYS_lseek, seek.fd, seek.offset, SEEK_SET)}); }
  template <typename Other>
  Status apply(const Other&) {
    return fail(Error::internal("run a command", fmt::format("{} is not known here", Other::name)));
  }

  pid_t supervisor_;
  std::vector<int64_t> results_;
  std::vector<uint8_t*> outputs_;  // of each call, its first output
  std::list<Bytes> memory_;
};

}  // namespace stasis::resource
