#include "plan/inheritance.h"

#include <algorithm>

namespace stasis::plan {
namespace {

/// System calls: to take a descriptor from another process (a pidfd, the descriptor, closing the pidfd), and to close.
constexpr long taking = 3, closing = 1;
/// Trees can be deep. Where users lie further apart than this, on the average, they take descriptors later.
constexpr size_t longest_line = 16, always_looked_at = 4096;

}  // namespace

Inheritance::Inheritance(const Emission& out, const CreationTree& tree) {
  births_[tree.root];
  std::set<Pid> creators;
  for (const auto& [pid, creator] : tree.creator) {
    births_[pid].creator = creator;
    creators.insert(creator);
  }
  for (auto& [pid, birth] : births_) {
    const auto* task = out.tasks.find(pid);
    birth.lives = task != nullptr && task->state != model::TaskState::zombie;
    // Until they end, zombies are like transient processes: what they do not close their children have.
    const bool ends = task == nullptr || (!birth.lives && creators.contains(pid));
    birth.closes = birth.lives || ends;
    birth.passes = !out.carried.files.contains(pid) &&
                   (ends || (birth.lives && task->descriptors.value != 0 && !out.shares_table(pid)));
    if (birth.closes && birth.creator.value != 0) births_.at(birth.creator).children += closing;
    // Every node is counted once: the climb ends where the depth is known.
    std::vector<Birth*> above;
    auto* at = &birth;
    for (; at->depth == 0 && at->creator.value != 0; at = &births_.at(at->creator)) above.push_back(at);
    for (size_t depth = at->depth; !above.empty(); above.pop_back()) above.back()->depth = ++depth;
  }
}

bool Inheritance::closes(Pid pid) const {
  const auto birth = births_.find(pid);
  return birth == births_.end() || birth->second.closes;  // relays are no part of the creation tree
}

std::optional<Inheritance::Line> Inheritance::line_of(const std::vector<HeldTogether>& together) const {
  Line line;
  size_t limit = always_looked_at;
  for (const auto& member : together) limit += longest_line * member.users.size();
  for (const auto& member : together) {
    for (Pid pid : member.users) {
      if (!births_.contains(pid)) return std::nullopt;
      for (bool fresh = line.try_emplace(pid).second; fresh;) {
        const Pid creator = births_.at(pid).creator;
        if (creator.value == 0) break;
        fresh = line.try_emplace(creator).second;
        line.at(creator).push_back(pid);
        pid = creator;
        if (line.size() > limit) return std::nullopt;
      }
    }
  }
  return line;
}

std::vector<Pid> Inheritance::deepest_first(const Line& line) const {
  std::vector<Pid> order;
  for (const auto& [pid, children] : line) order.push_back(pid);
  std::ranges::stable_sort(order, std::greater{}, [&](Pid pid) { return births_.at(pid).depth; });
  return order;
}

/// What is gained if the process keeps what it is born with: calls saved there and below.
long Inheritance::worth_keeping(Pid pid, const HeldTogether& member, const std::map<Pid, long>& gains) const {
  const auto& birth = births_.at(pid);
  const bool uses = member.users.contains(pid);
  const long closes = birth.lives && (!uses || member.by_passing_number) ? closing : 0;
  return (uses ? taking : 0) - closes + gains.at(pid);
}

/// For each node, what is gained below if it has the description before it creates anybody.
std::map<Pid, long> Inheritance::gains(const Line& line, const std::vector<Pid>& order,
                                       const HeldTogether& member) const {
  std::map<Pid, long> gains;
  for (const Pid pid : order) {
    long gain = -births_.at(pid).children;
    for (const Pid child : line.at(pid)) {
      const auto& birth = births_.at(child);
      if (birth.passes) gain += std::max(0l, worth_keeping(child, member, gains) + (birth.closes ? closing : 0));
    }
    gains[pid] = gain;
  }
  return gains;
}

std::optional<Bequest> Inheritance::of(const std::vector<HeldTogether>& together) const {
  const auto line = line_of(together);
  if (!line) return std::nullopt;
  const auto order = deepest_first(*line);
  std::vector<std::map<Pid, long>> gains;
  for (const auto& member : together) gains.push_back(this->gains(*line, order, member));
  long most = 0;
  Bequest bequest;
  for (const Pid pid : order) {
    if (!births_.at(pid).lives || !births_.at(pid).passes) continue;
    long gain = 0;
    for (size_t index = 0; index < gains.size(); ++index) {
      const auto& member = together[index];
      const bool uses = member.users.contains(pid);
      gain += gains[index].at(pid) - (uses ? 0 : taking);  // one of the users would have made it for himself
      if (!uses || member.by_passing_number) gain -= closing;
    }
    if (gain > most) most = gain, bequest.owner = pid;
  }
  if (most == 0) return std::nullopt;
  for (size_t index = 0; index < gains.size(); ++index) {
    auto& heirs = bequest.heirs.emplace_back();
    for (std::vector<Pid> open{bequest.owner}; !open.empty();) {
      const Pid pid = open.back();
      open.pop_back();
      for (const Pid child : line->at(pid)) {
        const auto& birth = births_.at(child);
        const long lost = birth.closes ? -closing : 0;
        if (!birth.passes || worth_keeping(child, together[index], gains[index]) <= lost) continue;
        heirs.insert(child);
        open.push_back(child);
      }
    }
  }
  return bequest;
}

}  // namespace stasis::plan
