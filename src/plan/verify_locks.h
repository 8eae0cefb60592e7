// The verifier's model of locks and leases of files.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>

#include "model/application.h"
#include "plan/command.h"

namespace stasis::plan {

class LockLedger {
 public:
  /// A LOCK through a descriptor of this description by a process whose table, in the Application, is `table`. The rule
  /// that it breaks, if any.
  std::optional<std::string> record(const model::Application& wanted, const Lock&, ObjectId description, ObjectId table,
                                    Pid runner);
  /// Whether posix locks are held by the table: nothing of it can be closed any more without losing some, as far as a
  /// plan can know which descriptors are of the same file.
  bool has_posix_locks(ObjectId table) const { return tables_.contains(table); }
  /// What is still missing in the end.
  std::optional<std::string> compare(const model::Application& wanted) const;

 private:
  std::map<ObjectId, std::set<model::FileLock>> tables_, descriptions_;
};

}  // namespace stasis::plan
