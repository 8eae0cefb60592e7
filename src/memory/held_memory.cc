#include "memory/held_memory.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>

#include <fmt/format.h>

#include "base/patience.h"

namespace stasis::memory {
namespace {

Result<UniqueFd> open_of(pid_t pid, const char* file) {
  const auto path = fmt::format("/proc/{}/{}", pid, file);
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid() && errno == ENOENT) return fail(Error::gone("open " + path, fmt::format("task {}", pid)));
  if (!fd.valid()) return fail_errno("open", path);
  return fd;
}

Result<UniqueFd> open_userfaultfd() {
  UniqueFd fd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (fd.valid()) return fd;
  return fail(
      Error::system("userfaultfd", errno).advise("it needs CAP_SYS_PTRACE, or the sysctl vm.unprivileged_userfaultfd"));
}

}  // namespace

Result<std::shared_ptr<HeldMemory>> HeldMemory::hold(pid_t pid, RemoteAddress readable) {
  std::shared_ptr<HeldMemory> held(new HeldMemory);
  held->mem_ = TRY(open_of(pid, "mem"));
  held->pagemap_ = TRY(open_of(pid, "pagemap"));
  TRY(held->catch_fault(readable));
  return held;
}

Status HeldMemory::is_possible() {
  TRY(open_userfaultfd());
  return {};
}

Status HeldMemory::catch_fault(RemoteAddress readable) {
  fault_ = TRY(open_userfaultfd());
  uffdio_api api{};
  api.api = UFFD_API;
  if (ioctl(fault_.get(), UFFDIO_API, &api) != 0) return fail_errno("UFFDIO_API");
  void* page = mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return fail_errno("mmap");
  page_ = static_cast<uint8_t*>(page);
  uffdio_register wanted{};
  wanted.range = {reinterpret_cast<uint64_t>(page_), page_size};
  wanted.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (ioctl(fault_.get(), UFFDIO_REGISTER, &wanted) != 0) return fail_errno("UFFDIO_REGISTER");
  // Signals are for those threads that wait for them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  reader_ = std::thread([this, readable] {
    (void)!pread(mem_.get(), page_, 1, static_cast<off_t>(readable.value));
    read_ended_ = true;
  });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return wait_for_fault();
}

/// The fault is reported when the read has the memory in its hands.
Status HeldMemory::wait_for_fault() {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  pollfd fault{fault_.get(), POLLIN, 0};
  while (!read_ended_ && std::chrono::steady_clock::now() < deadline) {
    constexpr int moment_ms = 1;
    if (poll(&fault, 1, moment_ms) > 0) return {};
  }
  return fail(Error::conflict("hold the memory of a process", "it cannot be read"));
}

HeldMemory::~HeldMemory() {
  if (reader_.joinable()) {
    // Also one that comes to its fault only now is answered.
    uffdio_zeropage answer{};
    answer.range = {reinterpret_cast<uint64_t>(page_), page_size};
    ioctl(fault_.get(), UFFDIO_ZEROPAGE, &answer);
    reader_.join();
  }
  if (page_ != nullptr) munmap(page_, page_size);
}

void HeldMemory::abandon(std::string reason) {
  if (abandoned_) return;
  reason_ = std::move(reason);
  abandoned_ = true;
}

Status HeldMemory::read(uint64_t address, std::span<uint8_t> buffer) const {
  while (!buffer.empty()) {
    if (abandoned_) return fail(Error::conflict("go on with the snapshot", reason_));
    const ssize_t got = pread(mem_.get(), buffer.data(), buffer.size(), static_cast<off_t>(address));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("read memory", fmt::format("held for the snapshot, address {:#x}", address));
    if (got == 0) return fail(Error::internal("read memory", "what was held for the snapshot is gone"));
    buffer = buffer.subspan(static_cast<size_t>(got));
    address += static_cast<uint64_t>(got);
  }
  return {};
}

}  // namespace stasis::memory
