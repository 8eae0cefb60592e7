// --plan-cache: programs for trees of known shapes.
//
// DIR/HASH.json is the program that builds the canonical tree with that hash (plan/shape.h). What is hard to find of a
// tree, where its sessions were born, is taken from there with pids renamed; all else follows from it. Nothing in the
// cache is trusted: births that do not fit are searched for anew, and every program is verified before it runs.
#pragma once

#include <string>

#include "base/result.h"
#include "model/application.h"
#include "plan/shape.h"
#include "plan/tree.h"

namespace stasis::cli {

class PlanCache {
 public:
  /// The directory is made if need be.
  static Result<PlanCache> open(const std::string& directory, const model::Application& tree);

  /// Of the tree's session leaders; empty: its shape is new here.
  const plan::Births& births() const { return births_; }
  /// A new shape is kept, with births as in the program that was planned. A sentence for the log.
  std::string keep(const plan::Program& planned) const;

 private:
  PlanCache(std::string path, plan::Shape shape, Pid root_session)
      : path_(std::move(path)), shape_(std::move(shape)), root_session_(root_session) {}
  Result<bool> look_up();
  Status write(const plan::Program& planned) const;

  std::string path_;
  plan::Shape shape_;
  Pid root_session_;  ///< of the tree
  plan::Births births_;
  bool is_known_ = false;
};

}  // namespace stasis::cli
