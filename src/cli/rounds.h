// What pre-dump and dump have in common: the images of the round before, and who has tracked the tree since.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cli/session.h"
#include "memory/increments.h"
#include "memory/keeper.h"

namespace CLI {
class App;
}

namespace stasis::cli {

struct RoundsOptions {
  bool track = false;    ///< --track-mem: a new round begins
  std::string previous;  ///< --prev-images-dir; empty: none
};
void add_rounds_options(CLI::App&, RoundsOptions&);

class Rounds {
 public:
  /// Before the tree is stopped. Parent images that cannot be those of this tree's last round are refused if they are
  /// no images at all, and otherwise left aside with a warning: then everything is stored.
  static Result<Rounds> open(const Session&, const image::Directory& images, pid_t root, const RoundsOptions&);

  memory::Trackers& trackers() { return kept_.trackers; }
  memory::ParentImages* parent() const { return parent_.get(); }
  /// The link to the parent images. Once the directory is cleared.
  Status link(const image::Directory& images) const { return memory::link_parent(images, parent_ ? previous_ : ""); }

  /// Before the first page is protected: what the images of the round before say of the pages is about to be forgotten.
  Status begin();
  /// "": no round has begun.
  const std::string& name() const { return name_; }
  /// When the images are valid. A keeper that has died meanwhile is worth a warning: the next round stores everything.
  void complete(const Session&);

 private:
  std::string previous_;
  std::unique_ptr<memory::ParentImages> parent_;
  std::optional<memory::Keeper> keeper_;
  memory::Keeper::Kept kept_;
  std::string name_;
};

}  // namespace stasis::cli
