#include "resource/file_room.h"

namespace stasis::resource {

void FileRoom::validate_all(const model::Application& application, Diagnostics& diagnostics) const {
  for (const auto& [id, description] : application.descriptions) {
    if (description.given < 0 && description.state.value && description.state.value->kind() == kind()) {
      validate(application, description, diagnostics);
    }
  }
}

}  // namespace stasis::resource
