// Descriptors that children get by birth: fork copies the whole table, where taking a descriptor from another process
// is several system calls. Whoever does not want what its creator holds has to close it, so a description is opened
// before its owner creates anybody only where more is gained than lost.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "plan/emission.h"
#include "plan/tree.h"

namespace stasis::plan {

/// Of descriptions that are made in one go.
struct HeldTogether {
  std::set<Pid> users;             ///< who has it in the end; each works on a descriptor table
  bool by_passing_number = false;  ///< all who have it meanwhile have to move or to close it
};

/// Who makes them as soon as it is born, and down which births each member is passed.
struct Bequest {
  Pid owner;
  std::vector<std::set<Pid>> heirs;  ///< by member, without the owner: they keep what they are born with
};

class Inheritance {
 public:
  Inheritance(const Emission& out, const CreationTree& tree);

  /// Whether the process has to close what it is born with and does not want. A zombie that creates nobody has not: its
  /// table goes with it.
  bool closes(Pid) const;
  /// The owner for whom inheritance does the most work; nothing if there is nothing to gain.
  std::optional<Bequest> of(const std::vector<HeldTogether>&) const;

 private:
  struct Birth {
    Pid creator;        ///< 0: of the root
    size_t depth = 0;   ///< births since the root's
    long children = 0;  ///< that would have to close what they are born with
    bool closes = true;
    bool passes = true;  ///< the table is its own, and a copy of its creator's
    bool lives = false;  ///< until the tree runs
  };
  /// The nodes between the users and the root.
  using Line = std::map<Pid, std::vector<Pid>>;  ///< with their children among them

  std::optional<Line> line_of(const std::vector<HeldTogether>&) const;
  std::vector<Pid> deepest_first(const Line&) const;
  std::map<Pid, long> gains(const Line&, const std::vector<Pid>& order, const HeldTogether&) const;
  long worth_keeping(Pid, const HeldTogether&, const std::map<Pid, long>& gains) const;

  std::map<Pid, Birth> births_;
};

}  // namespace stasis::plan
