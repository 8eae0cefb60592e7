#include "cli/plan_cache.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "kernel/proc.h"
#include "plan/bare_tree.h"
#include "plan/verify.h"

namespace stasis::cli {

namespace {

/// Those ids of which `names` has others.
plan::Births renamed(const plan::Births& births, const std::map<pid_t, pid_t>& names) {
  plan::Births others;
  for (const auto& [leader, session] : births) {
    const auto name = names.find(leader.value), session_name = names.find(session.value);
    if (name != names.end() && session_name != names.end()) others[Pid{name->second}] = Pid{session_name->second};
  }
  return others;
}

}  // namespace

Result<PlanCache> PlanCache::open(const std::string& directory, const model::Application& tree) {
  if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST)
    return fail(Error::system("make the directory for --plan-cache", errno, directory));
  auto shape = TRY(plan::canonical_form(tree));
  auto path = fmt::format("{}/{}.json", directory, shape.hash);
  PlanCache cache(std::move(path), std::move(shape), tree.find(tree.root)->session);
  cache.is_known_ = cache.look_up().value_or(false);
  return cache;
}

/// false, or an error: as if it were not there.
Result<bool> PlanCache::look_up() {
  const auto program = TRY(plan::from_json(TRY(kernel::read_file(path_))));
  if (plan::verify(program, shape_.tree, plan::Extent::tree)) return false;
  const Pid root_session{shape_.renaming.at(root_session_.value)};
  births_ = renamed(plan::births_in(program, root_session), plan::inverted(shape_.renaming));
  return true;
}

std::string PlanCache::keep(const plan::Program& planned) const {
  if (is_known_) return fmt::format("The tree is of a known shape: {}", path_);
  const auto written = write(planned);
  return written ? fmt::format("The tree is of a new shape, which is kept: {}", path_)
                 : fmt::format("The tree is of a new shape, which cannot be kept: {}", written.error().message());
}

Status PlanCache::write(const plan::Program& planned) const {
  const auto births = renamed(plan::births_in(planned, root_session_), shape_.renaming);
  const auto program = plan::to_json(TRY(plan::make_tree_program(shape_.tree, {}, births)));
  const auto passing = fmt::format("{}.{}", path_, getpid());
  {
    std::ofstream file(passing, std::ios::trunc);
    file << program << "\n";
    file.flush();
    if (!file) {
      unlink(passing.c_str());
      return fail(Error::conflict("write the plan cache", "it cannot be written", passing));
    }
  }
  if (rename(passing.c_str(), path_.c_str()) != 0) return fail_errno("put a plan into the cache", path_);
  return {};
}

}  // namespace stasis::cli
