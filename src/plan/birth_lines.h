// The sessions that processes were born in, as far as they are known, and the lines of sessions that follow from them:
// a session was begun by its leader, who was born in another, up to the root's.
#pragma once

#include <compare>
#include <optional>

#include "plan/tree.h"

namespace stasis::plan {

/// The session that a process was born in: known, or to be chosen for a leader.
struct Birth {
  bool chosen = false;
  Pid id;  ///< a session, or the leader
  auto operator<=>(const Birth&) const = default;
};

class BirthLines {
 public:
  /// Of what CreationTree::born_session says at the time.
  BirthLines(const CreationTree& tree, const Pid& root_session) : tree_(tree), root_session_(root_session) {}

  Pid root_session() const { return root_session_; }
  Birth birth_of(Pid pid) const {
    const auto& node = tree_.nodes.at(pid);
    if (pid == tree_.root || node.session != pid) return {false, node.session};
    return {true, pid};
  }
  std::optional<Pid> known(const Birth& birth) const {
    if (!birth.chosen) return birth.id;
    const auto found = tree_.born_session.find(birth.id);
    return found == tree_.born_session.end() ? std::nullopt : std::optional(found->second);
  }
  /// Whether its final parent restricts where it can have been born: the root is above everybody, and an init may take
  /// over those whom others have created.
  bool is_restricted(const Node& node) const {
    return node.pid != tree_.root && node.has_parent() && node.parent != tree_.root &&
           !tree_.adopters.contains(node.parent);
  }
  /// From `session` up towards the root's: ends at `until`, at the root's, or at a session whose birth is not known.
  Pid climb(Pid session, Pid until) const {
    for (Pid at = session;;) {
      if (at == until || at == root_session_) return at;
      const auto next = tree_.born_session.find(at);
      if (next == tree_.born_session.end()) return at;
      at = next->second;
    }
  }
  Pid end_of(Pid session) const { return climb(session, nowhere); }
  bool is_on_the_way(Pid wanted, Pid session) const { return climb(session, wanted) == wanted; }
  /// `above` is not on the way from `session` up, and cannot come to be: the way is known to its end, or ends where
  /// `above` itself descends from.
  bool leads_elsewhere(Pid above, Pid session) const {
    const Pid end = climb(session, above);
    return end != above && (end == root_session_ || is_on_the_way(end, above));
  }
  bool closes_cycle(Pid leader) const { return is_on_the_way(leader, tree_.born_session.at(leader)); }

  /// Who of those born in `above` comes first on the way down to a process born in `session`, from which the way up is
  /// known: itself, or the leader of a session between.
  Pid first_below(Pid above, Pid session, Pid pid) const {
    Pid first = pid;
    for (Pid at = session; at != above; at = tree_.born_session.at(at)) first = at;
    return first;
  }

 private:
  static constexpr Pid nowhere{-1};

  const CreationTree& tree_;
  const Pid& root_session_;
};

}  // namespace stasis::plan
