// Program → agent programs: one slot for every thread that runs commands, slot 0 for the supervisor.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "agent/area.h"
#include "base/result.h"
#include "model/application.h"
#include "plan/program.h"

namespace stasis::execute {

using Runner = std::pair<Pid, Tid>;
Runner runner_of(const plan::Command&);

struct LowerOptions {
  bool sibling = false;  ///< the root is created with CLONE_PARENT
  int fail_at_command = -1;
  std::vector<int> ignored_signals;  ///< by stasis itself
  AddressRange rseq_area;  ///< of the thread that creates the root: unregistered by the child before it unmaps it
};

/// A command whose runner waits for stasis to do something for it: it posts one counter and awaits the other.
struct Request {
  uint32_t command = 0;
  uint32_t asked = 0, done = 0;
};
/// Those of one kind, and the counter that is posted with each.
struct Requests {
  std::vector<Request> all;
  uint32_t asked = 0;
};

/// The instruction that creates whoever runs a slot.
struct Birth {
  uint32_t creator = 0;  ///< slot
  uint32_t instruction = 0;
};

struct Lowered {
  std::vector<agent::SlotProgram> slots;
  std::map<Runner, uint32_t> slot_of;
  std::map<uint32_t, Birth> births;  ///< by slot
  uint32_t counter_count = 1;        ///< counter 0 counts threads that are READY, or about to end as they are to
  uint32_t ready_threads = 0;
  Requests decodings;                 ///< execute/decoding.h
  Requests owings;                    ///< execute/owing.h
  uint32_t root_spawn = 0;            ///< instruction of slot 0 that creates the root: its result is the root's pid
  std::optional<uint32_t> last_wait;  ///< of slot 0: while the tree is built
};

Result<Lowered> lower(const plan::Program&, const model::Application&, const LowerOptions&);

}  // namespace stasis::execute
