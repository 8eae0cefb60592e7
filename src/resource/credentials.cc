// Credentials of each thread: ids, groups, capability sets, securebits.
//
// Order matters at restore (credentials(7), security/commoncap.c): ids change while SECBIT_NO_SETUID_FIXUP keeps the
// capabilities; inheritable capabilities are raised before the bounding set shrinks, because they cannot exceed it
// afterwards; ambient ones before the securebits may forbid raising them; securebits before CAP_SETPCAP goes; the
// permitted and effective sets come last.
#include "resource/credentials.h"

#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel/proc.h"

namespace stasis::resource {
namespace {

using plan::call;
using plan::expecting;
using Expected = plan::Expectation::Kind;

constexpr int last_known_capability = 63;

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

/// `held`: what the thread has while it is built: everything that this kernel knows and stasis holds.
plan::Calls capability_calls(const model::Credentials& wanted, uint64_t held) {
  plan::Calls calls;
  calls.push_back(capset(held, held, wanted.inheritable));
  calls.push_back(call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
  for (int capability = 0; capability <= last_known_capability; ++capability) {
    if ((wanted.ambient >> capability) & 1)
      calls.push_back(call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0));
  }
  for (int capability = 0; capability <= last_known_capability; ++capability) {
    // Numbers past the kernel's last one are answered with EINVAL: dropped by nature.
    if (((wanted.bounding >> capability) & 1) == 0) {
      calls.push_back(expecting(call(SYS_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0), Expected::success_or, -EINVAL));
    }
    if (capability > 40 && (wanted.bounding >> capability) == 0) break;
  }
  calls.push_back(call(SYS_prctl, PR_SET_SECUREBITS, wanted.securebits));
  calls.push_back(capset(wanted.effective, wanted.permitted, wanted.inheritable));
  if (wanted.no_new_privs) calls.push_back(call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  return calls;
}

model::Credentials credentials_of(const kernel::StatusInfo& status) {
  model::Credentials c;
  c.uid = status.uids[0], c.euid = status.uids[1], c.suid = status.uids[2], c.fsuid = status.uids[3];
  c.gid = status.gids[0], c.egid = status.gids[1], c.sgid = status.gids[2], c.fsgid = status.gids[3];
  c.groups = status.groups;
  c.inheritable = status.cap_inheritable, c.permitted = status.cap_permitted, c.effective = status.cap_effective;
  c.bounding = status.cap_bounding, c.ambient = status.cap_ambient;
  c.no_new_privs = status.no_new_privs;
  return c;
}

/// Those of stasis, asked once.
const model::Credentials& own() {
  static const model::Credentials known = [] {
    model::Credentials c;
    if (const auto status = kernel::read_status(getpid())) c = credentials_of(*status);
    c.securebits = static_cast<uint32_t>(prctl(PR_GET_SECUREBITS));
    return c;
  }();
  return known;
}

class CredentialsRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "credentials"; }

  Status capture(CaptureContext&, const ProcessView& view, model::Task& task) const override {
    for (size_t i = 0; i < task.threads.size(); ++i) {
      task.threads[i].credentials = credentials_of(*TRY(view.status(i)));
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
    const uint64_t held = own().permitted;
    for (const auto& thread : task.threads) {
      const auto& c = thread.credentials;
      const uint64_t missing = (c.permitted | c.effective | c.ambient) & ~held;
      if (missing != 0) {
        diagnostics.refuse(fmt::format("task {} '{}', thread {}", task.pid, task.name, thread.tid),
                           fmt::format("it holds capabilities {:#x} that stasis does not hold here", missing),
                           "run stasis with these capabilities");
      }
    }
  }

  void contribute(plan::Stage stage, const model::Application&, const model::Task&, const model::Thread& thread,
                  plan::Sink& sink) const override {
    if (stage != plan::Stage::privileges) return;
    // Who has what stasis itself has got it by being forked. That is also all that stasis can give without privileges.
    if (has_inherited_credentials(thread)) {
      sink.perform("credentials, as stasis has them", "credentials", {});
      return;
    }
    auto calls = identity_calls(thread.credentials);
    for (auto& one : capability_calls(thread.credentials, own().permitted)) calls.push_back(std::move(one));
    sink.perform("credentials", "credentials", std::move(calls), {"CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"});
  }
};

}  // namespace

bool has_inherited_credentials(const model::Thread& thread) { return thread.credentials == own(); }

const TaskRoom& credentials_room() {
  static const CredentialsRoom room;
  return room;
}

}  // namespace stasis::resource
