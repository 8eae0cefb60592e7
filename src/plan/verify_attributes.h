// The verifier's view of PERFORM: which attributes of the Application have been established, by whom, and whether that
// is what it demands.
//
// A command's system calls are a room's own business. What they make true is declared by name (Perform::attribute);
// here stands, for each name, what of model::Task and model::Thread demands it, and who has to establish it. The table
// is derived from the model alone, not from the rooms: a room that forgets its command, or runs it in the wrong
// thread, twice, or after the right to do so is gone, is found out.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>

#include "model/application.h"
#include "plan/command.h"

namespace stasis::plan {

class AttributeLedger {
 public:
  explicit AttributeLedger(const model::Application& wanted);

  /// The rule that this command breaks; nothing: it is in order.
  std::optional<std::string> record(Pid pid, Tid tid, const Perform& perform);
  /// Why a thread may not do any more what needs these capabilities; nothing: it may. `unfiltered`: no seccomp filter
  /// that a thread is given forbids it.
  std::optional<std::string> check_rights(Tid tid, std::span<const std::string> needs, bool unfiltered = false) const;
  /// What the task, which is no zombie, lacks. `keeps_huge_pages_out`: its mappings need no advice for that.
  std::optional<std::string> compare(const model::Task& task, bool keeps_huge_pages_out);

  static constexpr size_t most_attributes = 32;

 private:
  using Counts = std::array<uint8_t, most_attributes>;
  struct Known {
    const model::Task* task = nullptr;
    const model::Thread* thread = nullptr;
  };

  Counts& counts_of(const Known& who, size_t rule);

  const model::Application& wanted_;
  std::unordered_map<pid_t, Known> threads_;  ///< by tid
  std::unordered_map<pid_t, Counts> by_thread_, by_process_;
  std::unordered_map<ObjectId, Counts> by_space_, by_fs_;
};

}  // namespace stasis::plan
