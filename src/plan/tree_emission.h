// The commands that build a creation tree.
#pragma once

#include <functional>
#include <set>
#include <vector>

#include "plan/emission.h"
#include "plan/tree.h"
#include "plan/tree_groups.h"

namespace stasis::plan {

struct TreeHooks {
  /// The process has just been created and has created nobody yet. `creator` is the process whose copy it is (0:
  /// stasis).
  std::function<Status(Pid pid, Pid creator)> born;
};

class TreeEmission {
 public:
  TreeEmission(Emission& out, const CreationTree& tree, TreeHooks hooks);

  /// FORK … of every process and all reparenting.
  Status create();
  /// Groups, then what terminals have in their foreground and whom they do not control, then the ends of dead leaders
  /// and zombies.
  void groups();
  void terminals();
  void finish();

 private:
  /// A process that has been born and creates others.
  struct Growing {
    Pid pid;
    Pid copy_of = {};  ///< who created it, or whose relay did
    Pid relay = {};    ///< 0: there is none
    const std::vector<Pid>* children = nullptr;
    size_t next = 0;  ///< of these
    bool is_past_setsid = false;
    std::vector<Pid> born = {};  ///< its children so far, but for those of relays
  };
  Status begin(std::vector<Growing>& line, Growing born);
  void lead(Growing&);
  Status spawn(std::vector<Growing>& line, Pid child);
  Pid fork_through_relay(Pid creator, Pid child);
  void lift(const Growing&);
  static const std::vector<Pid>& listed(const std::map<Pid, std::vector<Pid>>& children_of, Pid);
  Fork fork_of(Pid giver, Pid child) const;
  bool is_reaper(Pid pid, Pid creator) const;
  void enter_birth_group(Pid creator, Pid relay, Pid group);
  void hold_group(Pid leader);
  Result<Pid> giver_of(Pid creator, Pid child, const std::vector<Pid>& siblings) const;
  void note_objects(Pid pid);
  void set_foreground(uint64_t terminal, const model::Terminal& about);
  void end_dead_leaders();

  Emission& out_;
  const CreationTree& tree_;
  TreeHooks hooks_;
  HeldGroups held_groups_;
  std::map<Pid, uint64_t> terminals_;  ///< by the session that they control
  std::string last_lift_;              ///< event: the lift before is over
  unsigned lifts_ = 0;
  std::array<std::set<ObjectId>, 4> born_objects_;  ///< tables, fs contexts, memories, handlers of those born so far
};

}  // namespace stasis::plan
