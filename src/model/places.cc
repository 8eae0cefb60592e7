#include "model/places.h"

#include <algorithm>

namespace stasis::model {

const DescriptorTable* table_of(const Application& application, const Task& task) {
  const auto table = application.descriptor_tables.find(task.descriptors);
  const bool is_there = task.state != TaskState::zombie && table != application.descriptor_tables.end();
  return is_there ? &table->second : nullptr;
}

std::optional<int> number_of(const DescriptorTable& table, ObjectId description) {
  const auto found =
      std::ranges::find(table.slots, description, [](const auto& slot) { return slot.second.description; });
  return found == table.slots.end() ? std::nullopt : std::optional(found->first);
}

std::map<ObjectId, Place> first_places(const Application& application) {
  std::map<ObjectId, Place> places;
  for (const auto& task : application.tasks) {
    const auto* table = table_of(application, task);
    if (table == nullptr) continue;
    for (const auto& [fd, slot] : table->slots) places.try_emplace(slot.description, Place{&task, fd});
  }
  return places;
}

}  // namespace stasis::model
