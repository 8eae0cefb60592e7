#include "cli/rounds.h"

#include <CLI/CLI.hpp>

#include "cli/options.h"
#include "resource/inventory.h"

namespace stasis::cli {

void add_rounds_options(CLI::App& app, RoundsOptions& options) {
  add_switch(app, "--track-mem", options.track, "Begin a round of tracking, for an increment to come");
  app.add_option("--prev-images-dir", options.previous,
                 "Images of the round before, relative to the images directory: what has not changed stays there")
      ->type_name("DIR");
}

Result<Rounds> Rounds::open(const Session& session, const image::Directory& images, pid_t root,
                            const RoundsOptions& options) {
  Rounds rounds;
  rounds.previous_ = options.previous;
  if (!options.previous.empty()) rounds.parent_ = TRY(memory::ParentImages::open(images, options.previous));
  rounds.keeper_ = TRY(memory::Keeper::find(root));
  if (rounds.keeper_) rounds.kept_ = TRY(rounds.keeper_->fetch());
  const auto leave_aside = [&](std::string_view reason) {
    session.log().warn("{}: {}. Everything is stored", options.previous, reason);
    rounds.parent_.reset();
  };
  if (rounds.parent_) {
    const auto theirs = TRY_IN("read the parent images", resource::round_of(rounds.parent_->directory()));
    if (rounds.kept_.round.empty())
      leave_aside(
          fmt::format("nobody has tracked the memory of task {} since that was written, or the tracking was "
                      "lost",
                      root));
    else if (theirs != rounds.kept_.round)
      leave_aside(fmt::format("it is not the last round of task {}", root));
  }
  if (rounds.parent_) TRY(rounds.parent_->read_all());
  if (options.track && !rounds.keeper_) {
    rounds.keeper_ = TRY(memory::Keeper::start(root));
    rounds.kept_ = TRY(rounds.keeper_->fetch());
    session.log().info("Process {} keeps the trackers of task {}, until that ends or `stasis dirty --stop -t {}`",
                       rounds.keeper_->pid(), root, root);
  }
  return rounds;
}

Status Rounds::begin() {
  name_ = TRY(memory::new_round());
  return keeper_->begin();
}

void Rounds::complete(const Session& session) {
  if (name_.empty()) return;
  const Status kept = keeper_->commit(name_, kept_.trackers);
  if (!kept) session.log().warn("The next round will store everything: {}", kept.error().message());
}

}  // namespace stasis::cli
