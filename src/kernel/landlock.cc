#include "kernel/landlock.h"

#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <thread>

#include "base/unique_fd.h"

namespace stasis::kernel {
namespace {

Result<uint64_t> security_of(const KernelMemory& memory, pid_t tid) {
  return memory.get(TRY(memory.get(TRY(memory.task(tid)), "task_struct", "cred")), "cred", "security");
}

/// What the calling thread may not do is of no interest: it ends soon.
Status enter_sandbox() {
  landlock_ruleset_attr rules{};
  rules.handled_access_fs = LANDLOCK_ACCESS_FS_MAKE_BLOCK;
  const UniqueFd ruleset(static_cast<int>(syscall(SYS_landlock_create_ruleset, &rules, sizeof rules, 0)));
  if (!ruleset.valid()) return fail_errno("landlock_create_ruleset");
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return fail_errno("PR_SET_NO_NEW_PRIVS");
  if (syscall(SYS_landlock_restrict_self, ruleset.get(), 0) != 0) return fail_errno("landlock_restrict_self");
  return {};
}

/// Whether a domain of one layer is there, as a thread has that went into its first sandbox.
bool is_first_domain(const KernelMemory& memory, uint64_t pointer) {
  const auto layers = memory.get(pointer, "landlock_ruleset", "num_layers");
  const auto hierarchy = memory.get(pointer, "landlock_ruleset", "hierarchy");
  return layers && *layers == 1 && hierarchy && memory.word(*hierarchy);
}

/// For a thread of its own.
Result<uint64_t> find_place(const KernelMemory& memory) {
  constexpr uint64_t most = 256;  // of all modules together
  TRY(enter_sandbox());
  const uint64_t security = TRY(security_of(memory, static_cast<pid_t>(syscall(SYS_gettid))));
  for (uint64_t place = 0; place < most; place += sizeof(uint64_t)) {
    if (is_first_domain(memory, TRY(memory.word(security + place)))) return place;
  }
  return fail(Error::unsupported("find Landlock's domains", "they are not where they were in other kernels"));
}

}  // namespace

bool LandlockDomains::are_possible() {
  return syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION) > 0;
}

Result<LandlockDomains> LandlockDomains::learn(const KernelMemory& memory) {
  Result<uint64_t> place = uint64_t{0};
  std::thread inside([&] { place = find_place(memory); });
  inside.join();
  LandlockDomains domains;
  domains.place_ = TRY(std::move(place));
  return domains;
}

Result<bool> LandlockDomains::contain(const KernelMemory& memory, pid_t tid) const {
  return TRY(memory.word(TRY(security_of(memory, tid)) + place_)) != 0;
}

}  // namespace stasis::kernel
