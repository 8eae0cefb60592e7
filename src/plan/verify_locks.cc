#include "plan/verify_locks.h"

#include <fmt/format.h>

#include <algorithm>

namespace stasis::plan {
namespace {

bool is_same(const Lock& made, const model::FileLock& wanted) {
  return made.kind == name_of(wanted.kind) && made.type == name_of(wanted.type) && made.breaking == wanted.breaking &&
         made.start == wanted.start && made.length == wanted.length;
}

std::optional<std::string> missing(const std::vector<model::FileLock>& wanted, const std::set<model::FileLock>* taken) {
  for (const auto& lock : wanted) {
    if (taken == nullptr || !taken->contains(lock))
      return fmt::format("nothing takes the lock {} on {}", describe(lock), lock.description);
  }
  return {};
}

const std::set<model::FileLock>* find(const std::map<ObjectId, std::set<model::FileLock>>& all, ObjectId id) {
  const auto found = all.find(id);
  return found == all.end() ? nullptr : &found->second;
}

}  // namespace

std::optional<std::string> LockLedger::record(const model::Application& wanted, const Lock& lock, ObjectId description,
                                              ObjectId table, Pid runner) {
  const bool posix = lock.kind == name_of(model::FileLock::Kind::posix);
  const auto described = wanted.descriptions.find(description);
  const auto known_table = wanted.descriptor_tables.find(table);
  if (described == wanted.descriptions.end() || (posix && known_table == wanted.descriptor_tables.end()))
    return fmt::format("descriptor {} refers to nothing of the application", lock.fd);
  const auto& locks = posix ? known_table->second.locks : described->second.locks;
  const auto same = std::ranges::find_if(
      locks, [&](const auto& one) { return one.description == description && is_same(lock, one); });
  if (same == locks.end()) return fmt::format("there is no such {} lock on {}", lock.kind, description);
  const bool reads_only = (described->second.flags & 3) == 0;
  if (lock.read_only != reads_only)
    return fmt::format("{} is open for {}", description, reads_only ? "reading only" : "writing");
  if (posix && same->holder.value != 0 && same->holder != runner)
    return fmt::format("the lock on {} is one of task {}, not of its own", description, same->holder);
  if (!(posix ? tables_[table] : descriptions_[description]).insert(*same).second)
    return fmt::format("it has the lock on {} already", description);
  return {};
}

std::optional<std::string> LockLedger::compare(const model::Application& wanted) const {
  for (const auto& [id, table] : wanted.descriptor_tables) {
    if (auto problem = missing(table.locks, find(tables_, id))) return problem;
  }
  for (const auto& [id, description] : wanted.descriptions) {
    if (auto problem = missing(description.locks, find(descriptions_, id))) return problem;
  }
  return {};
}

}  // namespace stasis::plan
