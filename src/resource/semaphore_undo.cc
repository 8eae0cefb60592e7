#include "resource/semaphore_undo.h"

#include <fmt/format.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/syscall.h>

#include <algorithm>

namespace stasis::resource {
namespace {

constexpr int highest_value = 32767;  // SEMVMX

/// Of one semaphore, over all processes: what they will add and what they will take.
struct Totals {
  int added = 0, taken = 0;
};

Totals totals(const SemaphoreUndo& undo, size_t index) {
  Totals totals;
  for (const auto& [pid, adjustments] : undo) {
    const int by = adjustments.at(index);
    (by > 0 ? totals.added : totals.taken) += std::abs(by);
  }
  return totals;
}

plan::Call operation(int32_t set, size_t index, int by, int flags) {
  const sembuf one{static_cast<unsigned short>(index), static_cast<short>(by), static_cast<short>(flags | IPC_NOWAIT)};
  return plan::call(SYS_semop, set, plan::struct_in(one), 1);
}

/// The threads' list of things to undo; 0: they have none.
Result<uint64_t> list_of(const kernel::KernelMemory& memory, const std::vector<pid_t>& host_tids) {
  uint64_t found = 0;
  for (const pid_t tid : host_tids) {
    const uint64_t field = TRY(memory.address(TRY(memory.task(tid)), "task_struct", "sysvsem"));
    const uint64_t list = TRY(memory.get(field, "sysv_sem", "undo_list"));
    if (list != 0 && found != 0 && list != found)
      return fail(Error::conflict("look at SEM_UNDO", "threads of one process undo different things",
                                  fmt::format("thread {}", tid)));
    if (list != 0) found = list;
  }
  return found;
}

Result<Adjustments> adjustments_at(const kernel::KernelMemory& memory, uint64_t undo, size_t count) {
  // Since Linux 5.19 they are part of the structure, before it pointed to them.
  const bool pointed_to = memory.size("sem_undo", "semadj") == sizeof(uint64_t);
  const uint64_t begin =
      pointed_to ? TRY(memory.get(undo, "sem_undo", "semadj")) : TRY(memory.address(undo, "sem_undo", "semadj"));
  Adjustments adjustments;
  for (size_t index = 0; index < count; ++index)
    adjustments.push_back(static_cast<int16_t>(TRY(memory.word(begin + index * sizeof(int16_t)))));
  return adjustments;
}

}  // namespace

Result<std::map<int32_t, Adjustments>> look_at_undo(const kernel::KernelMemory& memory,
                                                    const std::vector<pid_t>& host_tids,
                                                    const std::map<int32_t, size_t>& sizes) {
  std::map<int32_t, Adjustments> found;
  const uint64_t list = TRY(list_of(memory, host_tids));
  if (list == 0) return found;
  const uint64_t head = TRY(memory.address(list, "sem_undo_list", "list_proc"));
  for (const uint64_t undo : TRY(memory.listed(head, "sem_undo", "list_proc"))) {
    const auto id = static_cast<int32_t>(TRY(memory.get(undo, "sem_undo", "semid")));
    const auto set = sizes.find(id);
    if (set == sizes.end()) continue;
    auto adjustments = TRY(adjustments_at(memory, undo, set->second));
    if (std::ranges::any_of(adjustments, [](int16_t by) { return by != 0; })) found[id] = std::move(adjustments);
  }
  return found;
}

void encode_undo(const SemaphoreUndo& undo, ipc_sem_entry& entry) {
  for (const auto& [pid, adjustments] : undo) {
    auto& one = *entry.add_undo();
    one.set_pid(static_cast<uint32_t>(pid.value));
    for (const int16_t by : adjustments) one.add_values(by);
  }
}

Result<SemaphoreUndo> decode_undo(const ipc_sem_entry& entry, const std::vector<uint16_t>& values,
                                  const std::string& where) {
  const auto reject = [&](std::string_view field, std::string cause) {
    return fail(Error::invalid("read IPC namespace", std::move(cause), fmt::format("{}, field undo.{}", where, field)));
  };
  SemaphoreUndo undo;
  for (const auto& one : entry.undo()) {
    if (one.pid() == 0 || one.pid() > INT32_MAX) return reject("pid", fmt::format("{} is no pid", one.pid()));
    auto& adjustments = undo[Pid{static_cast<int32_t>(one.pid())}];
    if (!adjustments.empty()) return reject("pid", fmt::format("{} occurs twice", one.pid()));
    if (one.values_size() != static_cast<int>(values.size()))
      return reject("values", "they are not as many as the set's");
    for (const int32_t by : one.values()) {
      if (std::abs(int64_t{by}) > highest_value) return reject("values", fmt::format("{} is out of range", by));
      adjustments.push_back(static_cast<int16_t>(by));
    }
  }
  for (size_t index = 0; index < values.size(); ++index) {
    const auto [added, taken] = totals(undo, index);
    if (values[index] + added + taken > highest_value)
      return reject("values", fmt::format("together they are more than semaphore {} can have", index));
  }
  return undo;
}

std::vector<uint16_t> values_before_undo(const std::vector<uint16_t>& values, const SemaphoreUndo& undo) {
  auto before = values;
  for (size_t index = 0; index < before.size(); ++index)
    before[index] = static_cast<uint16_t>(before[index] + totals(undo, index).added);
  return before;
}

plan::Calls undo_calls(int32_t set, const Adjustments& adjustments) {
  plan::Calls calls;
  for (size_t index = 0; index < adjustments.size(); ++index) {
    if (adjustments[index] != 0) calls.push_back(operation(set, index, -adjustments[index], SEM_UNDO));
  }
  return calls;
}

plan::Calls calls_after_undo(int32_t set, const SemaphoreUndo& undo) {
  plan::Calls calls;
  const size_t count = undo.empty() ? 0 : undo.begin()->second.size();
  for (size_t index = 0; index < count; ++index) {
    if (const int taken = totals(undo, index).taken; taken != 0) calls.push_back(operation(set, index, -taken, 0));
  }
  return calls;
}

}  // namespace stasis::resource
