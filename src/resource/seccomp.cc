// Seccomp of each thread: strict mode, or a chain of filters.
//
// Filters run from the newest to the oldest; PTRACE_SECCOMP_GET_FILTER numbers them in the order of installation
// (kernel/seccomp.c, get_nth_filter). In the images a chain is a linked list in seccomp.img: threads that share a
// beginning share its records.
//
// Installing a filter needs CAP_SYS_ADMIN or no_new_privs (seccomp(2)). A thread that ends with neither installed its
// filters before it gave up the capability: so do we, when nothing is left to do but to give up capabilities.
//
// A filter judges the calls that install the next ones. Where it forbids seccomp(2) but allows prctl(2), the next one
// came by prctl, and comes again that way; what each filter allows is found out by simulation.
//
// Threads of a process that have the same chain share its kernel objects, which SECCOMP_FILTER_FLAG_TSYNC depends on:
// the last thread installs it for all. The others tell it that they make no further call but the futex call of their
// telling, which may come after the filter is in force and must be allowed by it. After that they wait for the end of
// the restore without any call, as every thread under seccomp does; the last call of the restore is made with seccomp
// suspended.
#include "resource/seccomp.h"

#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <ranges>
#include <span>

#include "kernel/ptrace.h"
#include "resource/seccomp_simulation.h"

namespace stasis::resource {
namespace {

using plan::call;

using Chain = std::vector<model::SeccompFilter>;
using ChainView = std::span<const model::SeccompFilter>;
using Expected = plan::Expectation::Kind;

/// Instructions of a chain, each filter counting four more: MAX_INSNS_PER_PATH (kernel/seccomp.c).
constexpr size_t most_instructions_of_chain = 32768, penalty_of_filter = 4;
constexpr size_t most_filters = most_instructions_of_chain / penalty_of_filter;
/// Flags that last. The others act at installation only, and NEW_LISTENER makes a descriptor.
constexpr uint32_t lasting_flags = SECCOMP_FILTER_FLAG_LOG | SECCOMP_FILTER_FLAG_SPEC_ALLOW;

bool has_filters(const model::Thread& thread) { return thread.seccomp.mode == model::Seccomp::Mode::filter; }

bool may_install_at_the_end(const model::Credentials& credentials) {
  return credentials.no_new_privs || ((credentials.effective >> CAP_SYS_ADMIN) & 1) != 0;
}

bool allows_seccomp(ChainView installed, uint32_t flags) {
  return seccomp_allows(installed, SYS_seccomp, {SECCOMP_SET_MODE_FILTER, flags});
}
bool allows_prctl(ChainView installed) {
  return seccomp_allows(installed, SYS_prctl, {PR_SET_SECCOMP, SECCOMP_MODE_FILTER});
}

/// The call that installs filter `index` when those before it are in force; nothing if they forbid it.
std::optional<plan::Call> install(const Chain& chain, size_t index, uint32_t more_flags) {
  const auto& filter = chain[index];
  const auto installed = ChainView(chain).first(index);
  const sock_fprog head{static_cast<unsigned short>(filter.program.size() / sizeof(sock_filter)), nullptr};
  auto program = plan::struct_pointing_to(head, offsetof(sock_fprog, filter), filter.program);
  const uint32_t flags = filter.flags | more_flags;
  // With TSYNC the call answers with the id of a thread that cannot follow.
  if (allows_seccomp(installed, flags)) {
    return expecting(call(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, std::move(program)), Expected::exactly, 0);
  }
  if (flags == 0 && allows_prctl(installed)) {
    return call(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, std::move(program));
  }
  return std::nullopt;
}

/// Nothing if the chain forbids its own installation.
std::optional<plan::Calls> install_all(const Chain& chain, uint32_t more_flags) {
  plan::Calls calls;
  for (size_t i = 0; i < chain.size(); ++i) {
    auto one = install(chain, i, more_flags);
    if (!one) return std::nullopt;
    calls.push_back(std::move(*one));
  }
  return calls;
}

/// Whether the last thread can install the chain for all threads.
bool installs_for_all(const model::Task& task) {
  const auto& last = task.threads.back();
  const size_t living = task.threads.size() - (task.leader_has_ended() ? 1 : 0);
  if (living < 2 || !has_filters(last)) return false;
  const auto& chain = last.seccomp.filters;
  const bool same = std::ranges::all_of(task.threads, [&](const auto& thread) {
    // TSYNC passes no_new_privs on as well.
    return (thread.has_ended() || thread.seccomp == last.seccomp) &&
           (thread.credentials.no_new_privs || !last.credentials.no_new_privs);
  });
  // A leader that is to end may find itself under the chain by then.
  const bool lets_leader_end = !task.leader_has_ended() || seccomp_allows(chain, SYS_exit, {});
  constexpr uint64_t any_address = 0, wake = 1, everybody = 0x7fffffff;  // as the agent posts
  return same && lets_leader_end && seccomp_allows(chain, SYS_futex, {any_address, wake, everybody}) &&
         std::ranges::all_of(std::views::iota(1u, chain.size()), [&](size_t index) {
           return allows_seccomp(ChainView(chain).first(index), chain[index].flags | SECCOMP_FILTER_FLAG_TSYNC);
         });
}

class SeccompRoom final : public TaskRoom {
 public:
  /// Two of them stand in the registry: before the final capabilities and after them.
  enum class Turn { early, late };
  explicit SeccompRoom(Turn turn) : turn_(turn) {}
  std::string_view name() const override { return "seccomp"; }

  Status capture(CaptureContext& context, const ProcessView& view, model::Task& task) const override {
    if (turn_ == Turn::early) return {};
    for (size_t i = 0; i < task.threads.size(); ++i) {
      auto& seccomp = task.threads[i].seccomp;
      const auto& status = *TRY(view.status(i));
      if (task.threads[i].has_ended()) continue;  // it has let go of its filters
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
    if (turn_ == Turn::early) return {};
    for (size_t i = 0; i < task.threads.size(); ++i) {
      const auto& seccomp = task.threads[i].seccomp;
      auto& core = *records.cores.at(i).mutable_thread_core();
      core.set_seccomp_mode(static_cast<seccomp_state::mode>(seccomp.mode));
      if (!seccomp.filters.empty()) core.set_seccomp_filter(chain_index(seccomp.filters, *records.seccomp));
    }
    return {};
  }

  Status decode(const image::TaskRecords& records, model::Application&, model::Task& task) const override {
    if (turn_ == Turn::early) return {};
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

  void validate(const model::Application& application, const model::Task& task,
                Diagnostics& diagnostics) const override {
    if (turn_ == Turn::early) return;
    if (task.pid == application.root && prctl(PR_GET_SECCOMP, 0, 0, 0, 0) != 0) {
      diagnostics.warn("stasis", "it is under seccomp itself: what it restores inherits its filters",
                       "Run stasis outside of the sandbox");
    }
    for (const auto& thread : task.threads) {
      if (!has_filters(thread)) continue;
      const auto problem = obstacle(thread);
      if (problem.empty()) continue;
      diagnostics.refuse(fmt::format("task {} '{}', thread {}", task.pid, task.name, thread.tid), problem,
                         "Such a thread cannot be restored");
    }
  }

  void contribute(plan::Stage stage, const model::Application&, const model::Task& task, const model::Thread& thread,
                  plan::Sink& sink) const override {
    if (stage != plan::Stage::privileges) return;
    if (thread.has_ended() && turn_ == Turn::late && installs_for_all(task)) sink.add(plan::Post{event(task)});
    if (thread.seccomp.mode == model::Seccomp::Mode::disabled) return;
    if (thread.seccomp.mode == model::Seccomp::Mode::strict) {
      if (turn_ == Turn::early) return;
      return sink.perform("seccomp", "seccomp", {call(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0)});
    }
    const bool is_last = thread.tid == task.threads.back().tid;
    const bool my_turn = (turn_ == Turn::late) == may_install_at_the_end(thread.credentials);
    if (is_last ? !my_turn : turn_ == Turn::early && !my_turn) return;
    if (!installs_for_all(task)) {
      if (my_turn) install_chain(thread, 0, sink);
    } else if (is_last) {
      sink.add(plan::Await{event(task), static_cast<uint32_t>(task.threads.size() - 1)});
      install_chain(thread, SECCOMP_FILTER_FLAG_TSYNC, sink);
    } else if (turn_ == Turn::late) {
      sink.add(plan::Post{event(task)});
    }
  }

 private:
  static std::string event(const model::Task& task) { return fmt::format("ready for seccomp of {}", task.pid); }

  static void install_chain(const model::Thread& thread, uint32_t more_flags, plan::Sink& sink) {
    auto calls = install_all(thread.seccomp.filters, more_flags);
    if (!calls) return;  // refused by validate
    std::vector<std::string> needs;
    if (!thread.credentials.no_new_privs) needs.emplace_back("CAP_SYS_ADMIN");
    sink.perform("seccomp", "seccomp", std::move(*calls), std::move(needs));
  }

  static std::string obstacle(const model::Thread& thread) {
    const auto& chain = thread.seccomp.filters;
    if (!install_all(chain, 0)) return "one of its seccomp filters forbids installing the next";
    if (!may_install_at_the_end(thread.credentials) && !seccomp_allows(chain, SYS_capset)) {
      return "it gave up its capabilities under seccomp filters that forbid capset";
    }
    return {};
  }

  static Result<Chain> read_chain(pid_t host_tid) {
    Chain chain;
    for (unsigned index = 0; index < most_filters; ++index) {
      auto view = TRY(kernel::ptrace_get_seccomp_filter(host_tid, index));
      if (!view) break;
      chain.push_back({std::move(view->program), static_cast<uint32_t>(view->flags)});
    }
    return chain;
  }

  /// The record of the chain's newest filter; records that are there already are used again.
  static uint32_t chain_index(const Chain& chain, seccomp_entry& records) {
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

  static Result<Chain> load_chain(const image::TaskRecords& records, uint32_t index, const std::string& subject) {
    const auto invalid = [&](std::string cause) {
      return fail(Error::invalid("decode seccomp", std::move(cause), subject + ", field seccomp_filter"));
    };
    Chain chain;
    size_t instructions = 0;
    if (records.seccomp == nullptr) return invalid("seccomp.img is missing");
    for (std::optional<uint32_t> at = index; at;) {
      if (*at >= static_cast<uint32_t>(records.seccomp->seccomp_filters_size())) {
        return invalid(fmt::format("filter {} does not exist in seccomp.img", *at));
      }
      const auto& record = records.seccomp->seccomp_filters(static_cast<int>(*at));
      const size_t size = record.filter().size();
      if (size == 0 || size % sizeof(sock_filter) != 0 || size / sizeof(sock_filter) > BPF_MAXINSNS) {
        return invalid(fmt::format("filter {} in seccomp.img has {} bytes, which is no program", *at, size));
      }
      if ((record.flags() & ~lasting_flags) != 0) {
        return invalid(fmt::format("filter {} in seccomp.img has flags {:#x}", *at, record.flags()));
      }
      instructions += size / sizeof(sock_filter) + penalty_of_filter;
      if (instructions > most_instructions_of_chain) return invalid("the chain is too long, or a cycle");
      chain.push_back({Bytes(record.filter().begin(), record.filter().end()), record.flags()});
      at = record.has_prev() ? std::optional(record.prev()) : std::nullopt;
    }
    std::ranges::reverse(chain);
    return chain;
  }

  Turn turn_;
};

}  // namespace

const TaskRoom& seccomp_room() {
  static const SeccompRoom room(SeccompRoom::Turn::late);
  return room;
}

const TaskRoom& early_seccomp_room() {
  static const SeccompRoom room(SeccompRoom::Turn::early);
  return room;
}

}  // namespace stasis::resource
