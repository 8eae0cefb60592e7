#include "resource/host.h"

#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <utility>

#include "kernel/proc.h"

namespace stasis::resource {
namespace {

bool protection_keys() {
  const int key = pkey_alloc(0, 0);
  if (key < 0) return false;
  pkey_free(key);
  return true;
}

bool kernel_is_at_least(int major, int minor) {
  utsname names{};
  int ours[2]{};
  if (uname(&names) != 0 || sscanf(names.release, "%d.%d", &ours[0], &ours[1]) != 2) return false;
  return std::pair(ours[0], ours[1]) >= std::pair(major, minor);
}

Host look() {
  Host host;
  if (const long configured = sysconf(_SC_NPROCESSORS_CONF); configured > 0)
    host.processors = static_cast<uint32_t>(configured);
  for (size_t i = 0; i < host.limits.size(); ++i) {
    rlimit limit{};
    if (getrlimit(static_cast<__rlimit_resource>(i), &limit) == 0) host.limits[i] = {limit.rlim_cur, limit.rlim_max};
  }
  host.personality = static_cast<uint32_t>(personality(ask_personality));
  host.thp_disabled = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) > 0;
  constexpr uint64_t sys_resource = 24;
  const auto status = kernel::read_status(getpid());
  host.can_raise_limits = status && ((status->cap_effective >> sys_resource) & 1) != 0;
  if (const auto score = kernel::read_proc(getpid(), "oom_score_adj"))
    std::from_chars(score->data(), score->data() + score->size(), host.oom_score_adj);
  if (const auto filter = kernel::read_proc(getpid(), "coredump_filter"))
    std::from_chars(filter->data(), filter->data() + filter->size(), host.coredump_filter, 16);
  host.has_protection_keys = protection_keys();
  host.stacks_are_never_huge = kernel_is_at_least(6, 7);
  if (const auto maps = kernel::read_maps(getpid())) {
    for (const auto& vma : *maps) {
      if (vma.path == "[vdso]") host.vdso.code_size += vma.range.size();
      if (vma.path.starts_with("[vvar")) host.vdso.data_size += vma.range.size();
    }
  }
  return host;
}

}  // namespace

const Host& host() {
  static const Host known = look();
  return known;
}

}  // namespace stasis::resource
