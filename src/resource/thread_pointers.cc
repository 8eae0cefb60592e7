// Addresses in the thread's memory that the kernel remembers: robust futex list, rseq area, clear_child_tid.
#include "resource/thread_pointers.h"

#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "kernel/ptrace.h"

namespace stasis::resource {
namespace {

using plan::call;

constexpr int get_tid_address = 40;  // PR_GET_TID_ADDRESS (CONFIG_CHECKPOINT_RESTORE)

class ThreadPointersRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "thread pointers"; }

  Status capture(CaptureContext&, const ProcessView& view, model::Task& task) const override {
    for (size_t i = 0; i < task.threads.size(); ++i) {
      auto& thread = task.threads[i];
      if (thread.has_ended()) continue;
      if (syscall(SYS_get_robust_list, view.host_tids[i], &thread.robust_list, &thread.robust_list_length) != 0) {
        return fail_errno("get_robust_list", fmt::format("thread {}", thread.tid));
      }
      const auto rseq = TRY(kernel::ptrace_get_rseq(view.host_tids[i]));
      thread.rseq = {rseq.address, rseq.size, rseq.signature, rseq.flags};
    }
    return {};
  }

  Status ask(CaptureContext&, model::Task&, model::Thread& thread, Inquiry& inquiry) const override {
    inquiry.ask(call(SYS_prctl, get_tid_address, plan::Out{sizeof(uint64_t)}),
                [&thread](const Inquiry::Answer& answer) -> Status {
                  std::memcpy(&thread.clear_child_tid, answer.out.at(0).data(), sizeof thread.clear_child_tid);
                  return {};
                });
    return {};
  }

  Status encode(const model::Application&, const model::Task& task, image::TaskRecords& records) const override {
    for (size_t i = 0; i < task.threads.size(); ++i) {
      const auto& thread = task.threads[i];
      if (!thread.has_ended()) records.cores.at(i).mutable_thread_info()->set_clear_tid_addr(thread.clear_child_tid);
      auto& core = *records.cores.at(i).mutable_thread_core();
      core.set_futex_rla(thread.robust_list);
      core.set_futex_rla_len(static_cast<uint32_t>(thread.robust_list_length));
      if (thread.rseq.address == 0) continue;
      auto& rseq = *core.mutable_rseq_entry();
      rseq.set_rseq_abi_pointer(thread.rseq.address), rseq.set_rseq_abi_size(thread.rseq.size),
          rseq.set_signature(thread.rseq.signature);
    }
    return {};
  }

  Status decode(const image::TaskRecords& records, model::Application&, model::Task& task) const override {
    for (size_t i = 0; i < task.threads.size(); ++i) {
      const auto& core = records.cores.at(i);
      auto& thread = task.threads[i];
      thread.clear_child_tid = core.thread_info().clear_tid_addr();
      thread.robust_list = core.thread_core().futex_rla();
      thread.robust_list_length = core.thread_core().futex_rla_len();
      if (!core.thread_core().has_rseq_entry()) continue;
      const auto& rseq = core.thread_core().rseq_entry();
      thread.rseq = {rseq.rseq_abi_pointer(), rseq.rseq_abi_size(), rseq.signature(), 0};
    }
    return {};
  }

  void contribute(plan::Stage stage, const model::Application&, const model::Task&, const model::Thread& thread,
                  plan::Sink& sink) const override {
    if (stage == plan::Stage::thread) {
      plan::Calls calls{
          plan::expecting(call(SYS_set_tid_address, thread.clear_child_tid), plan::Expectation::Kind::anything)};
      if (thread.robust_list != 0)
        calls.push_back(call(SYS_set_robust_list, thread.robust_list, thread.robust_list_length));
      sink.perform("futex addresses", "threads.pointers", std::move(calls));
    }
    // The kernel writes to the area from the moment it is registered.
    if (stage == plan::Stage::memory && thread.rseq.address != 0) {
      sink.perform("restartable sequences", "threads.rseq",
                   {call(SYS_rseq, thread.rseq.address, thread.rseq.size, thread.rseq.flags, thread.rseq.signature)});
    }
  }
};

}  // namespace

const TaskRoom& thread_pointers_room() {
  static const ThreadPointersRoom room;
  return room;
}

}  // namespace stasis::resource
