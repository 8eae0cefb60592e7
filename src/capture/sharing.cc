// What tasks share with each other beyond the tree. CLONE_FILES, CLONE_FS, CLONE_SIGHAND and CLONE_VM may hold between
// any two tasks. kcmp(2) orders kernel objects, so each kind is a sorted list of the objects seen so far.
#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <optional>

#include <fmt/format.h>

#include "base/parallel.h"
#include "capture/walk.h"
#include "kernel/process.h"
#include "kernel/thread_objects.h"

namespace stasis::capture {
namespace {

using kernel::KcmpType;

/// For each process the first one that has the same object. `candidates` are indexes of processes.
class Kind {
 public:
  Kind(const std::vector<LiveProcess>& processes, KcmpType type)
      : processes_(processes), type_(type), first_of_(processes.size()) {}

  Status sort(const std::vector<size_t>& candidates) {
    kernel::OrderedObjects known;
    for (const size_t index : candidates) {
      first_of_[index] = TRY(known.first_like(index, [&](size_t a, size_t b) {
        return kernel::kcmp(processes_[a].view.witness(), processes_[b].view.witness(), type_);
      }));
    }
    return {};
  }
  size_t first_of(size_t index) const { return first_of_[index]; }

 private:
  const std::vector<LiveProcess>& processes_;
  KcmpType type_;
  std::vector<size_t> first_of_;
};

/// unshare(2) in one thread of many. Address space and handlers are common by the rules of clone(2).
Status check_threads(const LiveProcess& process, resource::CaptureContext& context) {
  constexpr std::pair<KcmpType, const char*> kinds[] = {{KcmpType::files, "descriptor table"},
                                                        {KcmpType::fs, "working directory"}};
  if (process.threads_agree) return {};
  const auto& tids = process.view.host_tids;
  const pid_t witness = process.view.witness();
  std::vector<std::array<bool, std::size(kinds)>> own(tids.size());
  TRY(parallel_for(tids.size(), [&](size_t index) -> Status {
    const bool has_none = index == 0 && process.frozen.leader_ended;
    for (size_t kind = 0; kind < std::size(kinds) && tids[index] != witness && !has_none; ++kind) {
      const auto order = TRY(kernel::kcmp(witness, tids[index], kinds[kind].first));
      own[index][kind] = order != std::strong_ordering::equal;
    }
    return {};
  }));
  for (size_t index = 0; index < tids.size(); ++index) {
    for (size_t kind = 0; kind < std::size(kinds); ++kind) {
      if (!own[index][kind]) continue;
      context.diagnostics.refuse(fmt::format("{}, thread {}", subject_of(process), tids[index]),
                                 fmt::format("has a {} of its own (unshare)", kinds[kind].second),
                                 "Threads with objects of their own cannot be dumped");
    }
  }
  return {};
}

}  // namespace

void compare_threads(std::vector<LiveProcess>& processes) {
  constexpr size_t many = 64;  // for fewer the iterator is not worth its making
  std::optional<Result<kernel::ThreadIterator>> iterator;
  for (auto& process : processes) {
    const size_t count = process.view.host_tids.size();
    if (count < many || process.frozen.leader_ended) continue;
    if (!iterator) iterator = kernel::ThreadIterator::open();
    if (!*iterator) return;
    const auto objects = (*iterator)->objects(process.view.host_pid);
    process.threads_agree = objects && objects->size() == count &&
                            std::ranges::adjacent_find(*objects, std::not_equal_to{}) == objects->end();
  }
}

Status find_sharing(const std::vector<LiveProcess>& processes, resource::CaptureContext& context) {
  std::vector<size_t> live;
  for (size_t index = 0; index < processes.size(); ++index) {
    if (!processes[index].frozen.zombie) live.push_back(index);
  }
  Kind files(processes, KcmpType::files), fs(processes, KcmpType::fs), memory(processes, KcmpType::vm),
      handlers(processes, KcmpType::sighand);
  Kind* const kinds[] = {&files, &fs, &memory};
  TRY(parallel_for(
      std::size(kinds), [&](size_t kind) { return kinds[kind]->sort(live); }, live.size() >= 32 ? 2 : ~size_t{0}));
  // Handlers can be shared only where memory is (clone(2), CLONE_SIGHAND), and execve leaves both.
  std::map<size_t, std::vector<size_t>> by_memory;
  for (const size_t index : live) by_memory[memory.first_of(index)].push_back(index);
  for (const auto& [first, users] : by_memory) TRY(handlers.sort(users));

  for (const size_t index : live) {
    auto* task = context.application.find(processes[index].pid);
    const auto share = [&](const Kind& kind, ObjectId model::Task::* id) {
      const size_t first = kind.first_of(index);
      task->*id = first == index ? context.new_id() : context.application.find(processes[first].pid)->*id;
    };
    share(memory, &model::Task::address_space);
    share(files, &model::Task::descriptors);
    share(fs, &model::Task::fs);
    share(handlers, &model::Task::handlers);
    TRY(check_threads(processes[index], context));
  }
  return {};
}

}  // namespace stasis::capture
