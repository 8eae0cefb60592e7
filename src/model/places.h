// Where open file descriptions are open.
#pragma once

#include <map>
#include <optional>

#include "model/application.h"

namespace stasis::model {

/// The task's table; nullptr: a zombie has none.
const DescriptorTable* table_of(const Application&, const Task&);

/// The lowest number under which the table has the description.
std::optional<int> number_of(const DescriptorTable&, ObjectId description);

struct Place {
  const Task* task = nullptr;
  int fd = -1;
};
/// Of every description that is in a table the first place: by the order of tasks, then by number.
std::map<ObjectId, Place> first_places(const Application&);

}  // namespace stasis::model
