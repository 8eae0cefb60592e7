// The search for the sessions that session leaders were born in.
//
// Each time the leader with the fewest sessions left is chosen for. Every choice is checked against what it leaves to
// those whom it concerns: a parent must still be able to be among the creators, whoever is between it and its child
// live in its pid namespace, and nobody have to be born before himself. What each choice changes is noted, and taken
// back with it; nothing else is looked at anew. If nothing is left for somebody, the search goes back to the last of
// the choices that have to do with that (conflict-directed backjumping): those between, which concern other parts of
// the tree, would all be tried in vain. Now and then it begins anew with the leaders for whom nothing was left: in
// large trees those that are hard are a handful.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "plan/birth_lines.h"
#include "plan/namespace_births.h"

namespace stasis::plan {

class BirthSearch {
 public:
  /// Chooses CreationTree::born_session. `complete`: whether the births, when all are chosen, lead to a creation tree.
  BirthSearch(CreationTree& tree, const BirthLines& lines, const NamespaceBirths& spaces, TreeLimits limits,
              std::function<bool()> complete);

  /// Births that are known from somewhere, if they fit.
  bool take_over(const Births& likely);
  /// false: there are none, or the search was given up.
  bool run();
  bool gave_up() const { return steps_ >= limits_.search_steps; }
  size_t steps() const { return steps_; }
  size_t leaders() const { return leaders_.size(); }

 private:
  /// Of a parent and a child: the one was born in the session of the other, or in one above it. Whoever leads a session
  /// between them is in the pid namespace that the parent lives in.
  struct Demand {
    Birth above, below;
    Pid space;
    auto operator<=>(const Demand&) const = default;
  };
  struct Leader {
    Pid pid;
    std::vector<Pid> all;   ///< sessions that it may have been born in, likely ones first
    std::vector<Pid> left;  ///< as far as it has been looked at since
    bool decided = false;
    size_t dead_ends = 0;  ///< how often nothing was left for it
  };
  struct Urgency {
    size_t dead_ends, left, leader;
    bool operator<(const Urgency& other) const {
      return std::tie(other.dead_ends, left, leader) < std::tie(dead_ends, other.left, other.leader);
    }
  };
  /// A leader who is chosen for, and how far the logs reached before.
  struct Decision {
    size_t leader = 0;
    std::vector<Pid> untried = {};  ///< the likeliest last
    bool chosen = false;
    std::set<Pid> conflict = {};  ///< other leaders whose births are among the reasons why choices have failed
    size_t demands = 0, orders = 0, waits = 0, domains = 0;
  };

  void list_demands();
  void list_related();
  std::vector<Pid> candidates(Pid leader, bool any_session) const;
  bool attempt(size_t bound, bool any_session);
  bool search(size_t bound, bool any_session);
  Urgency urgency_of(size_t leader) const { return {leaders_[leader].dead_ends, leaders_[leader].left.size(), leader}; }
  bool begin(bool any_session);
  void decide();
  void blame_everybody();
  bool advance();
  bool choose(Decision&, Pid session);
  void retract(Decision&);
  bool is_plausible(const Demand&) const;
  bool is_met(const Demand&) const;
  bool leads_through(const Demand&, std::set<Pid>* conflict = nullptr) const;
  bool fits(Pid leader, Pid session);
  bool narrow(Pid leader, std::set<Pid>& conflict);
  void explain(Pid leader, Pid session, std::set<Pid>& conflict);
  void explain_all(const Leader&, std::set<Pid>& conflict);
  void add_way(Pid session, Pid until, std::set<Pid>& conflict) const;
  void take_back_last();
  void set_left(size_t leader, std::vector<Pid> left);
  Pid open_end(const Birth&) const;
  std::optional<std::pair<Pid, Pid>> file_order(const Node&);
  bool orders_are_possible() const;
  bool comes_before(Pid earlier, Pid later, std::set<Pid>& conflict) const;
  void explain_order(const Node&, std::set<Pid>& conflict) const;

  CreationTree& tree_;
  const BirthLines& lines_;
  const NamespaceBirths& spaces_;
  TreeLimits limits_;
  std::function<bool()> complete_;
  std::set<Pid> sessions_;
  std::vector<Leader> leaders_;
  std::map<Pid, size_t> index_;
  std::vector<Demand> demands_;
  std::map<Pid, std::set<Pid>> related_;
  std::map<Pid, std::vector<Pid>> foreign_children_;  ///< of whoever has any: their sessions

  std::set<Urgency> undecided_;                             ///< the most urgent first
  std::map<Pid, std::vector<const Demand*>> open_demands_;  ///< by the leaders on whose births they depend
  std::map<Pid, std::vector<const Node*>> waiting_;         ///< whose order is known with this leader's birth
  /// Who must be born before whom, and create him, in one session: because of whose parent.
  std::map<Pid, std::map<Pid, const Node*>> before_;
  std::vector<Decision> decisions_;
  std::vector<Pid> moved_demands_, moved_waits_;               ///< logs: where one has been added
  std::vector<std::pair<Pid, Pid>> added_orders_;              ///< log: of `before_`
  std::vector<std::pair<size_t, std::vector<Pid>>> narrowed_;  ///< log: what was left before
  size_t steps_ = 0;
  bool exhausted_ = false;  ///< the last search has tried everything
};

}  // namespace stasis::plan
