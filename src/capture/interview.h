// Asking every task what only it can tell: the rooms' questions, answered by the agent in all threads at once.
#pragma once

#include <map>
#include <vector>

#include "base/result.h"
#include "capture/freezer.h"
#include "capture/infection.h"
#include "capture/walk.h"
#include "resource/capture_context.h"
#include "resource/task_room.h"

namespace stasis::capture {

class Interview {
 public:
  Interview(std::vector<LiveProcess>& processes, resource::CaptureContext& context, const AtPoint& at_point,
            Clock::time_point deadline)
      : processes_(processes), context_(context), at_point_(at_point), deadline_(deadline) {}

  /// Collects the questions of these rooms, infects, and hands every answer to the one who asked. Afterwards, and after
  /// any failure, the tasks are as they were.
  Status hold(std::span<const resource::TaskRoom* const> rooms);

 private:
  /// What one thread is asked: question n is instruction n of its slot.
  struct Asked {
    const LiveProcess* process = nullptr;
    pid_t host_tid = 0;
    std::vector<resource::Inquiry::Question> questions;
    size_t infection = 0, slot = 0;
  };
  Status prepare(std::span<const resource::TaskRoom* const> rooms);
  Status prepare_thread(LiveProcess& process, model::Task& task, size_t index, resource::Inquiry inquiry);
  Result<std::vector<Occupied>> occupied(ObjectId address_space, const Patient& patient) const;
  Status run();
  Status answer(const Asked& asked);

  std::vector<LiveProcess>& processes_;
  resource::CaptureContext& context_;
  const AtPoint& at_point_;
  Clock::time_point deadline_;
  std::map<ObjectId, size_t> space_of_;  ///< address space → index into spaces_
  struct Space {
    ObjectId id;
    std::vector<Patient> patients;
  };
  std::vector<Space> spaces_;
  std::vector<Infection> infections_;
  std::vector<Asked> asked_;
};

}  // namespace stasis::capture
