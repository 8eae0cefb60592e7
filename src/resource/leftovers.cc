#include "resource/leftovers.h"

#include "resource/registry.h"

namespace stasis::resource {

std::vector<Leftover> leftovers(const model::Application& application) {
  std::vector<Leftover> found;
  for (const auto* room : file_rooms_in_use(application)) room->leftovers(application, found);
  for (const auto* room : task_rooms()) room->leftovers(application, found);
  return found;
}

}  // namespace stasis::resource
