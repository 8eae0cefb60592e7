// Seccomp of each thread: strict mode, or a chain of filters.
//
// Filters run from the newest to the oldest; PTRACE_SECCOMP_GET_FILTER numbers them in the order of installation
// (kernel/seccomp.c, get_nth_filter).
// In the images a chain is a linked list in seccomp.img: threads that share a beginning share its records.
//
// Installing a filter needs CAP_SYS_ADMIN or no_new_privs (seccomp(2)). A thread that ends with neither must have
// installed its filters before it gave up the capability: so do we, before its credentials change.
#include "resource/seccomp.h"

#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstddef>

#include "kernel/ptrace.h"

namespace stasis::resource {
namespace {

using plan::call;

constexpr size_t most_filters = 32768 / 4;  ///< MAX_INSNS_PER_PATH bounds the chain
constexpr size_t most_instructions = BPF_MAXINSNS;

bool may_install_at_the_end(const model::Credentials& credentials) {
  return credentials.no_new_privs || ((credentials.effective >> CAP_SYS_ADMIN) & 1) != 0;
}

/// Calls that install what a thread has. The last one may forbid everything that follows.
plan::Calls installing(const model::Seccomp& seccomp) {
  plan::Calls calls;
  if (seccomp.mode == model::Seccomp::Mode::strict) {
    calls.push_back(call(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0));
  }
  for (const auto& filter : seccomp.filters) {
    const sock_fprog program{static_cast<unsigned short>(filter.program.size() / sizeof(sock_filter)), nullptr};
    calls.push_back(call(SYS_seccomp, SECCOMP_SET_MODE_FILTER, filter.flags,
                         plan::struct_pointing_to(program, offsetof(sock_fprog, filter), filter.program)));
  }
  return calls;
}

class SeccompRoom final : public TaskRoom {
 public:
  /// Two of them stand in the registry: before the credentials' room and after it.
  explicit SeccompRoom(bool before_credentials) : before_credentials_(before_credentials) {}
  std::string_view name() const override { return "seccomp"; }

  Status capture(CaptureContext& context, const ProcessView& view, model::Task& task) const override {
    if (before_credentials_) return {};
    for (size_t i = 0; i < task.threads.size(); ++i) {
      auto& seccomp = task.threads[i].seccomp;
      const auto& status = *TRY(view.status(i));
      seccomp.mode = static_cast<model::Seccomp::Mode>(status.seccomp);
      if (seccomp.mode != model::Seccomp::Mode::filter) continue;
      const auto chain = read_chain(view.host_tids[i]);
      if (!chain) {
        context.diagnostics.refuse(fmt::format("task {} '{}', thread {}", task.pid, task.name, task.threads[i].tid),
                                   "its seccomp filters cannot be read: " + chain.error().message(),
                                   "run stasis with CAP_SYS_ADMIN, and not under seccomp itself");
        continue;
      }
      seccomp.filters = *chain;
    }
    return {};
  }

  Status encode(const model::Application&, const model::Task& task, image::TaskRecords& records) const override {
    if (before_credentials_) return {};
    for (size_t i = 0; i < task.threads.size(); ++i) {
      const auto& seccomp = task.threads[i].seccomp;
      auto& core = *records.cores.at(i).mutable_thread_core();
      core.set_seccomp_mode(static_cast<seccomp_state::mode>(seccomp.mode));
      if (!seccomp.filters.empty()) core.set_seccomp_filter(chain_index(seccomp.filters, *records.seccomp));
    }
    return {};
  }

  Status decode(const image::TaskRecords& records, model::Application&, model::Task& task) const override {
    if (before_credentials_) return {};
    for (size_t i = 0; i < task.threads.size(); ++i) {
      const auto& core = records.cores.at(i).thread_core();
      auto& seccomp = task.threads[i].seccomp;
      seccomp.mode = static_cast<model::Seccomp::Mode>(core.seccomp_mode());
      if (seccomp.mode != model::Seccomp::Mode::filter) continue;
      seccomp.filters =
          TRY(load_chain(records, core.seccomp_filter(), fmt::format("core-{}.img", task.threads[i].tid)));
    }
    return {};
  }

  void contribute(plan::Stage stage, const model::Application&, const model::Task&, const model::Thread& thread,
                  plan::Sink& sink) const override {
    if (stage != plan::Stage::privileges || thread.seccomp.mode == model::Seccomp::Mode::disabled) return;
    const bool strict = thread.seccomp.mode == model::Seccomp::Mode::strict;
    if (before_credentials_ == (strict || may_install_at_the_end(thread.credentials))) return;
    sink.perform("seccomp", "seccomp", installing(thread.seccomp),
                 strict ? std::vector<std::string>{} : std::vector<std::string>{"CAP_SYS_ADMIN"});
  }

 private:
  static Result<std::vector<model::SeccompFilter>> read_chain(pid_t host_tid) {
    std::vector<model::SeccompFilter> chain;
    for (unsigned index = 0; index < most_filters; ++index) {
      auto view = TRY(kernel::ptrace_get_seccomp_filter(host_tid, index));
      if (!view) break;
      chain.push_back({std::move(view->program), static_cast<uint32_t>(view->flags)});
    }
    return chain;
  }

  /// The record of the chain's newest filter; records that are there already are used again.
  static uint32_t chain_index(const std::vector<model::SeccompFilter>& chain, seccomp_entry& records) {
    std::optional<uint32_t> previous;
    for (const auto& filter : chain) {
      const std::string program(filter.program.begin(), filter.program.end());
      std::optional<uint32_t> found;
      for (int i = 0; i < records.seccomp_filters_size() && !found; ++i) {
        const auto& record = records.seccomp_filters(i);
        const bool same_previous =
            record.has_prev() == previous.has_value() && (!previous || record.prev() == *previous);
        if (same_previous && record.filter() == program && record.flags() == filter.flags)
          found = static_cast<uint32_t>(i);
      }
      if (!found) {
        found = static_cast<uint32_t>(records.seccomp_filters_size());
        auto& record = *records.add_seccomp_filters();
        record.set_filter(program);
        if (previous) record.set_prev(*previous);
        record.set_flags(filter.flags);
      }
      previous = found;
    }
    return previous.value_or(0);
  }

  static Result<std::vector<model::SeccompFilter>> load_chain(const image::TaskRecords& records, uint32_t index,
                                                              const std::string& subject) {
    std::vector<model::SeccompFilter> chain;
    if (records.seccomp == nullptr) return fail(Error::invalid("decode seccomp", "seccomp.img is missing", subject));
    for (std::optional<uint32_t> at = index; at;) {
      if (*at >= static_cast<uint32_t>(records.seccomp->seccomp_filters_size())) {
        return fail(
            Error::invalid("decode seccomp", fmt::format("filter {} does not exist in seccomp.img", *at), subject));
      }
      const auto& record = records.seccomp->seccomp_filters(static_cast<int>(*at));
      const size_t size = record.filter().size();
      if (size == 0 || size % sizeof(sock_filter) != 0 || size / sizeof(sock_filter) > most_instructions) {
        return fail(Error::invalid("decode seccomp",
                                   fmt::format("filter {} in seccomp.img has {} bytes, which is no program", *at, size),
                                   subject));
      }
      if (chain.size() >= static_cast<size_t>(records.seccomp->seccomp_filters_size())) {
        return fail(Error::invalid("decode seccomp", "the filters in seccomp.img form a cycle", subject));
      }
      chain.push_back({Bytes(record.filter().begin(), record.filter().end()), record.flags()});
      at = record.has_prev() ? std::optional(record.prev()) : std::nullopt;
    }
    std::ranges::reverse(chain);
    return chain;
  }

  bool before_credentials_;
};

}  // namespace

const TaskRoom& seccomp_room() {
  static const SeccompRoom room(false);
  return room;
}

const TaskRoom& early_seccomp_room() {
  static const SeccompRoom room(true);
  return room;
}

}  // namespace stasis::resource
