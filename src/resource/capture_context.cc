#include "resource/capture_context.h"

#include <algorithm>
#include <ranges>

namespace stasis::resource {

ObjectId CaptureContext::object(const std::string& key, bool& fresh) {
  const auto found = objects_.find(key);
  fresh = found == objects_.end();
  if (!fresh) return found->second;
  return objects_[key] = new_id();
}

void CaptureContext::roll_back() {
  for (const auto& undo : std::views::reverse(rollback_)) undo();
  rollback_.clear();
}

Result<const kernel::StatusInfo*> ProcessView::status(size_t thread) const {
  statuses.resize(host_tids.size());
  auto& known = statuses.at(thread);
  if (!known) known = TRY(kernel::read_thread_status(host_pid, host_tids[thread]));
  return &*known;
}

}  // namespace stasis::resource
