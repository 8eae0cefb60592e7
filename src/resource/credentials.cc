// Credentials of each thread: ids, groups, capability sets, securebits, no_new_privs.
//
// Order matters at restore (credentials(7), security/commoncap.c): ids change while SECBIT_NO_SETUID_FIXUP keeps the
// capabilities; inheritable capabilities are raised before the bounding set shrinks, because they cannot exceed it
// afterwards; ambient ones before the securebits may forbid raising them; securebits before CAP_SETPCAP goes. The
// permitted and effective sets come last, as a room of their own: what needs the capabilities (dumpable, death signal,
// seccomp without no_new_privs) stands between the two. Taking capabilities away resets neither dumpable nor the
// death signal (kernel/cred.c, commit_creds), changing ids does.
#include "resource/credentials.h"

#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "kernel/landlock.h"
#include "kernel/proc.h"
#include "resource/kernel_access.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::expecting;
using Expected = plan::Expectation::Kind;

constexpr int last_capability = 63;
constexpr uint64_t bit(int capability) { return 1ull << capability; }

void save_set(uint64_t set, google::protobuf::RepeatedField<uint32_t>* words) {
  words->Add(static_cast<uint32_t>(set));
  words->Add(static_cast<uint32_t>(set >> 32));
}
uint64_t load_set(const google::protobuf::RepeatedField<uint32_t>& words) {
  uint64_t set = 0;
  for (int i = 0; i < words.size() && i < 2; ++i) set |= uint64_t{words.Get(i)} << (32 * i);
  return set;
}

plan::Call capset(uint64_t effective, uint64_t permitted, uint64_t inheritable) {
  const __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2];
  for (int i = 0; i < 2; ++i) {
    data[i] = {static_cast<uint32_t>(effective >> (32 * i)), static_cast<uint32_t>(permitted >> (32 * i)),
               static_cast<uint32_t>(inheritable >> (32 * i))};
  }
  return call(SYS_capset, plan::struct_in(header), plan::struct_in(data));
}

plan::Calls identity_calls(const model::Credentials& wanted) {
  plan::In groups;
  const auto* first = reinterpret_cast<const uint8_t*>(wanted.groups.data());
  groups.bytes.assign(first, first + wanted.groups.size() * sizeof(uint32_t));
  plan::Calls calls;
  calls.push_back(call(SYS_setgroups, wanted.groups.size(), std::move(groups)));
  calls.push_back(call(SYS_prctl, PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP));
  calls.push_back(call(SYS_setresgid, wanted.gid, wanted.egid, wanted.sgid));
  calls.push_back(expecting(call(SYS_setfsgid, wanted.fsgid), Expected::anything));  // returns the old id, always
  calls.push_back(call(SYS_setresuid, wanted.uid, wanted.euid, wanted.suid));
  calls.push_back(expecting(call(SYS_setfsuid, wanted.fsuid), Expected::anything));
  return calls;
}

/// Everything but the permitted and effective sets. `held`: what the thread has while it is built.
plan::Calls capability_calls(const model::Credentials& wanted, uint64_t held) {
  plan::Calls calls;
  calls.push_back(capset(held, held, wanted.inheritable));
  calls.push_back(call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
  for (int capability = 0; capability <= last_capability; ++capability) {
    if ((wanted.ambient & bit(capability)) == 0) continue;
    calls.push_back(call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0));
  }
  for (int capability = 0; capability <= last_capability; ++capability) {
    // Numbers past the kernel's last one are answered with EINVAL: dropped by nature.
    if ((wanted.bounding & bit(capability)) == 0) {
      calls.push_back(expecting(call(SYS_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0), Expected::success_or, -EINVAL));
    }
    if (capability > CAP_LAST_CAP && (wanted.bounding >> capability) == 0) break;
  }
  calls.push_back(call(SYS_prctl, PR_SET_SECUREBITS, wanted.securebits));
  if (wanted.no_new_privs) calls.push_back(call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  return calls;
}

model::Credentials from_status(const kernel::StatusInfo& status) {
  model::Credentials c;
  c.uid = status.uids[0], c.euid = status.uids[1], c.suid = status.uids[2], c.fsuid = status.uids[3];
  c.gid = status.gids[0], c.egid = status.gids[1], c.sgid = status.gids[2], c.fsgid = status.gids[3];
  c.groups = status.groups;
  c.inheritable = status.cap_inheritable, c.permitted = status.cap_permitted, c.effective = status.cap_effective;
  c.bounding = status.cap_bounding, c.ambient = status.cap_ambient;
  c.no_new_privs = status.no_new_privs;
  return c;
}

/// What every process that stasis creates is born with.
std::optional<model::Credentials> our_own() {
  const auto status = kernel::read_status(getpid());
  if (!status) return std::nullopt;
  auto own = from_status(*status);
  own.securebits = static_cast<uint32_t>(prctl(PR_GET_SECUREBITS));
  return own;
}

/// Landlock's domains, learnt once for a tree.
struct Sandboxes {
  bool are_possible = kernel::LandlockDomains::are_possible();
  bool has_warned = false;
  std::optional<Result<kernel::LandlockDomains>> known;
};

/// A sandbox whose rules nobody is told. Who goes into one gives up new privileges first, or has CAP_SYS_ADMIN; of the
/// latter none is known to do without the former, and all threads would have to be looked at.
Status refuse_sandboxed(CaptureContext& context, pid_t tid, const model::Task& task) {
  auto& sandboxes = context.kept<Sandboxes>();
  if (!sandboxes.are_possible) return {};
  const auto& memory = context.kept<KernelAccess>().memory;
  if (memory && !sandboxes.known) sandboxes.known = kernel::LandlockDomains::learn(*memory);
  const auto subject = fmt::format("task {} '{}'", task.pid, task.name);
  if (!memory || !*sandboxes.known) {
    if (!std::exchange(sandboxes.has_warned, true)) {
      context.diagnostics.warn(subject,
                               told_by_memory_alone("whether it is in a sandbox of Landlock",
                                                    memory ? sandboxes.known->error() : memory.error()),
                               "it is in none after a restore");
    }
  } else if (TRY((*sandboxes.known)->contain(*memory, tid))) {
    context.diagnostics.refuse(subject,
                               "it is in a sandbox of Landlock, whose rules the kernel tells nobody: it would be free "
                               "of them after a restore",
                               "run it without, if that is acceptable");
  }
  return {};
}

class CredentialsRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "credentials"; }

  Status capture(CaptureContext& context, const ProcessView& view, model::Task& task) const override {
    for (size_t i = 0; i < task.threads.size(); ++i) {
      task.threads[i].credentials = from_status(*TRY(view.status(i)));
      if (task.threads[i].credentials.no_new_privs) TRY(refuse_sandboxed(context, view.host_tids[i], task));
    }
    return {};
  }

  Status ask(CaptureContext&, model::Task&, model::Thread& thread, Inquiry& inquiry) const override {
    inquiry.ask(call(SYS_prctl, PR_GET_SECUREBITS), [&thread](const Inquiry::Answer& answer) -> Status {
      thread.credentials.securebits = static_cast<uint32_t>(answer.result);
      return {};
    });
    return {};
  }

  Status encode(const model::Application&, const model::Task& task, image::TaskRecords& records) const override {
    for (size_t i = 0; i < task.threads.size(); ++i) {
      const auto& c = task.threads[i].credentials;
      auto& out = *records.cores.at(i).mutable_thread_core()->mutable_creds();
      out.set_uid(c.uid), out.set_euid(c.euid), out.set_suid(c.suid), out.set_fsuid(c.fsuid);
      out.set_gid(c.gid), out.set_egid(c.egid), out.set_sgid(c.sgid), out.set_fsgid(c.fsgid);
      for (const uint32_t group : c.groups) out.add_groups(group);
      save_set(c.inheritable, out.mutable_cap_inh());
      save_set(c.permitted, out.mutable_cap_prm());
      save_set(c.effective, out.mutable_cap_eff());
      save_set(c.bounding, out.mutable_cap_bnd());
      save_set(c.ambient, out.mutable_cap_amb());
      out.set_secbits(c.securebits);
      out.set_no_new_privs(c.no_new_privs);
    }
    return {};
  }

  Status decode(const image::TaskRecords& records, model::Application&, model::Task& task) const override {
    for (size_t i = 0; i < task.threads.size(); ++i) {
      const auto& in = records.cores.at(i).thread_core().creds();
      auto& c = task.threads[i].credentials;
      c.uid = in.uid(), c.euid = in.euid(), c.suid = in.suid(), c.fsuid = in.fsuid();
      c.gid = in.gid(), c.egid = in.egid(), c.sgid = in.sgid(), c.fsgid = in.fsgid();
      c.groups.assign(in.groups().begin(), in.groups().end());
      c.inheritable = load_set(in.cap_inh()), c.permitted = load_set(in.cap_prm()),
      c.effective = load_set(in.cap_eff());
      c.bounding = load_set(in.cap_bnd()), c.ambient = load_set(in.cap_amb());
      c.securebits = in.secbits();
      c.no_new_privs = in.no_new_privs() != 0;
    }
    return {};
  }

  void validate(const model::Application&, const model::Task& task, Diagnostics& diagnostics) const override {
    for (const auto& thread : task.threads) {
      if (born_with(thread.credentials)) continue;
      const auto subject = fmt::format("task {} '{}', thread {}", task.pid, task.name, thread.tid);
      if (const auto problem = obstacle(thread.credentials); !problem.empty()) {
        diagnostics.refuse(subject, problem, "Run stasis as root, outside of containers that take rights away");
      } else if (const auto lost = thread.credentials.bounding & ~own_->bounding; lost != 0) {
        diagnostics.warn(subject, fmt::format("its bounding set loses capabilities {:#x}, which ours lacks", lost),
                         "Programs that it executes later cannot gain them");
      }
    }
  }

  void contribute(plan::Stage stage, const model::Application&, const model::Task&, const model::Thread& thread,
                  plan::Sink& sink) const override {
    if (stage != plan::Stage::privileges) return;
    // Nothing to do is also the only thing that an ordinary user may do.
    if (born_with(thread.credentials)) return sink.perform("credentials, by birth", "credentials", {});
    auto calls = identity_calls(thread.credentials);
    std::ranges::move(capability_calls(thread.credentials, held()), std::back_inserter(calls));
    sink.perform("credentials", "credentials", std::move(calls), {"CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"});
  }

  bool born_with(const model::Credentials& wanted) const { return own_ == wanted; }

 private:
  uint64_t held() const { return own_ ? own_->permitted : 0; }

  /// Why these credentials cannot be had here; empty: they can.
  std::string obstacle(const model::Credentials& wanted) const {
    if (!own_) return "our own credentials cannot be read from /proc";
    constexpr uint64_t needed = bit(CAP_SETUID) | bit(CAP_SETGID) | bit(CAP_SETPCAP);
    constexpr uint32_t all_locks = SECURE_ALL_LOCKS;
    const uint32_t locked = (own_->securebits & all_locks) >> 1;  // a lock stands one bit above what it locks
    const uint64_t missing = (wanted.permitted | wanted.effective | wanted.ambient) & ~held();
    const uint64_t not_inheritable = wanted.inheritable & ~(own_->inheritable | own_->bounding);
    if ((held() & needed) != needed) return "setting its credentials needs CAP_SETUID, CAP_SETGID and CAP_SETPCAP";
    if (missing != 0) return fmt::format("it holds capabilities {:#x} that stasis does not hold here", missing);
    if (not_inheritable != 0) {
      return fmt::format("its inheritable capabilities {:#x} are outside of our bounding set", not_inheritable);
    }
    if ((own_->securebits & ~wanted.securebits & all_locks) != 0 ||
        ((own_->securebits ^ (wanted.securebits | SECBIT_NO_SETUID_FIXUP)) & locked) != 0) {
      return fmt::format("securebits {:#x} are locked in stasis", own_->securebits & all_locks);
    }
    if (own_->no_new_privs && !wanted.no_new_privs) return "it may gain privileges, stasis may not (no_new_privs)";
    return {};
  }

  std::optional<model::Credentials> own_ = our_own();
};

/// The permitted and effective sets: from here on the thread may do what it could do, and nothing else.
class FinalCapabilitiesRoom final : public TaskRoom {
 public:
  explicit FinalCapabilitiesRoom(const CredentialsRoom& credentials) : credentials_(credentials) {}
  std::string_view name() const override { return "final capabilities"; }

  void contribute(plan::Stage stage, const model::Application&, const model::Task&, const model::Thread& thread,
                  plan::Sink& sink) const override {
    const auto& wanted = thread.credentials;
    if (stage != plan::Stage::privileges) return;
    if (credentials_.born_with(wanted))
      return sink.perform("final capabilities, by birth", "credentials.capabilities", {});
    sink.perform("final capabilities", "credentials.capabilities",
                 {capset(wanted.effective, wanted.permitted, wanted.inheritable)});
  }

 private:
  const CredentialsRoom& credentials_;
};

const CredentialsRoom& the_credentials_room() {
  static const CredentialsRoom room;
  return room;
}

}  // namespace

const TaskRoom& credentials_room() { return the_credentials_room(); }

bool has_inherited_credentials(const model::Thread& thread) {
  return the_credentials_room().born_with(thread.credentials);
}

const TaskRoom& final_capabilities_room() {
  static const FinalCapabilitiesRoom room(the_credentials_room());
  return room;
}

}  // namespace stasis::resource
