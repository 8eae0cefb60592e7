// The commands that build a creation tree.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <set>
#include <vector>

#include "plan/emission.h"
#include "plan/shareable.h"
#include "plan/tree.h"
#include "plan/tree_groups.h"

namespace stasis::plan {

/// Whose descriptor table and memory a process has been born with: a copy, or together with him if the Application says
/// so. 0: stasis.
struct Origin {
  Pid table, memory;
};

Clone as_clone(const Fork&);

struct TreeHooks {
  /// The process has just been created and has created nobody yet.
  std::function<Status(Pid pid, Origin)> born;
  /// It has created everybody, and has a copy of this table, which it has had in common with others, for itself.
  std::function<void(Pid pid, ObjectId table)> unshared = [](Pid, ObjectId) {};
};

class TreeEmission {
 public:
  TreeEmission(Emission& out, const CreationTree& tree, TreeHooks hooks);

  /// FORK … of every process and all reparenting.
  Status create();
  /// Groups, then what terminals have in their foreground and whom they do not control, then the ends of dead leaders
  /// and zombies.
  /// Somebody who cannot be given what he shares with others, of some kind.
  struct Apart {
    Pid pid;
    size_t kind;
    ObjectId object;
  };
  /// Instead of create(): all of these. What has been emitted is good for nothing if there are any.
  std::vector<Apart> all_apart();
  void groups();
  void terminals();
  void finish();

 private:
  /// A process that has been born and creates others.
  struct Growing {
    Pid pid;
    Pid creator = {};  ///< who created it, or whose relay did
    Origin origin = {};
    Pid relay = {};     ///< 0: there is none
    Pid relay_of = {};  ///< who has created the relay: the creator, a porter or a holder
    const std::vector<Pid>* children = nullptr;
    size_t next = 0;  ///< of these
    bool is_past_setsid = false;
    std::vector<Pid> born = {};  ///< its children so far, but for those of relays
  };
  Status begin(std::vector<Growing>& line, Growing born);
  void lead(Growing&);
  Status spawn(std::vector<Growing>& line, Pid listed);
  Status spawn_sibling(std::vector<Growing>& line, Pid elder, Pid child);
  Status begin_sibling(std::vector<Growing>& line, Pid elder, Pid child);
  Pid fork_through_relay(Pid giver, const Fork& born);
  void lift(const Growing&);
  /// Event.
  static std::string began(Pid space) { return fmt::format("the pid namespace of {} has begun", space); }
  static const std::vector<Pid>& listed(const std::map<Pid, std::vector<Pid>>& children_of, Pid);
  Tid thread_for(Pid creator, Pid child) const;
  void note_parent_thread(Pid child);
  bool adopts_anyway(Pid pid) const;
  Status await_entry(Pid creator, Pid child);
  Status enter(std::vector<Growing>& line, Pid child);
  void enter_space(Pid runner, Pid space);
  Status grow(std::vector<Growing>& line);
  void stand_in(Pid creator, Pid group);
  void found_by(Pid parent, Pid group);
  void found_early(Pid group);
  Pid porter_of(Pid creator, Pid child);
  void join_early(Pid porter, Pid creator, Pid child);
  Pid fork_inside(Pid porter, const Fork& born);
  /// A transient process that has in common with the runner what the one that is to be born will have.
  template <typename Birth>
  Birth transient_like(Birth birth, Pid space);
  /// Whoever has entered a pid namespace to create somebody cannot begin one there (kernel/pid_namespace.c,
  /// copy_pid_ns): a founder is born in it, and begins it for a sibling. Who that is, still living, is returned; 0:
  /// none.
  template <typename Birth>
  Pid create_in_its_space(Pid runner, Pid runners_space, const Birth& birth);
  void end_sibling(Pid porter, Pid elder);
  bool knows(Pid pid, Pid group) const { return out_.spaces.contains(out_.spaces.of(pid), out_.spaces.of(group)); }
  void put_into(Pid pid, Pid group);
  void put_creator(Pid creator, Pid child);
  Status settle();
  Result<Pid> giver_of(Pid creator, Pid child, const std::vector<Pid>& siblings);
  ObjectId own(Pid pid, size_t kind) const;
  ObjectId current(Pid pid, size_t kind) const;
  bool share_at_birth(Pid a, Pid b, size_t kind) const;
  template <typename Birth>
  Birth birth_of(Pid giver, Pid child) const;
  ObjectId carried_by(Pid pid, size_t kind) const;
  Status unshare(Pid, bool files, bool fs);
  Status unshare_for(Pid creator, Pid child);
  Status leave_apart(const Apart&);
  void note_objects(Pid pid);
  struct Holder;
  struct Family;
  using SharedObject = std::pair<size_t, ObjectId>;  ///< with its kind
  using Sharers = std::map<SharedObject, std::vector<Pid>>;
  void find_families(Pid creator, const std::vector<Pid>& children);
  Sharers sharers_among(Pid creator, const std::vector<Pid>& children) const;
  bool comes_from(Pid creator, Pid child, size_t kind) const;
  std::vector<Pid> followed_from(std::vector<Pid> order, const Sharers&) const;
  bool needs_holder(Pid creator, const std::vector<Pid>& family, const Sharers&) const;
  bool are_of_one_time(Pid creator, const std::vector<Pid>& family) const;
  std::vector<Pid> order_of_births(Pid creator, const std::vector<Pid>& family, const Sharers&) const;
  Pid next_born(Pid child) const;
  Status spawn_from_holder(std::vector<Growing>& line, Pid child);
  bool is_new_with(Pid child, size_t kind) const;
  Result<size_t> holder_for(Family&, Pid child);
  size_t new_holder(Family&, size_t base, Pid child);
  std::vector<Pid> done_with(const Growing& lifted);
  void set_foreground(uint64_t terminal, const model::Terminal& about);
  void end_dead_leaders();

  Emission& out_;
  const CreationTree& tree_;
  TreeHooks hooks_;
  HeldGroups held_groups_;
  std::set<Pid> founded_early_;
  struct Entry {
    Pid porter;
    Fork birth;  ///< with what it is to have in common with its creator as he was then
  };
  std::map<Pid, Entry> entries_;  ///< of those whose births are deferred: each has a porter that waits for its time
  std::set<Pid> entered_;         ///< pid namespaces that somebody enters
  std::map<Pid, Pid> relays_;     ///< of those who have not come to their final parents yet
  std::map<Pid, std::vector<Pid>> siblings_at_;  ///< by relays, beside those whom these are for
  std::map<Pid, Pid> groups_of_moved_;
  std::set<Pid> led_;  ///< groups that others than their leaders are in
  unsigned puts_ = 0;
  /// Who has grown, and comes to its final parent only when all others have been born: as long as it is to be moved, or
  /// creates any of them.
  std::map<Pid, Growing> pending_;
  std::set<Pid> above_deferred_;
  /// A transient child of the creator that has what some of a family have in common, and gives it to each: it leads no
  /// session and stays nobody's parent.
  struct Holder {
    Pid pid;
    std::array<ObjectId, shareable.size()> has = {};  ///< by kind; 0: what nobody else has
    std::array<Pid, shareable.size()> source = {};    ///< of the tree: who has it, too, or a copy of whose it is
  };
  /// Siblings that share what their creator does not.
  struct Family {
    Pid creator;
    std::vector<Pid> members;  ///< as they are born
    std::map<SharedObject, size_t> users;
    std::vector<Holder> holders = {};  ///< first the creator himself
    size_t born = 0, lifted = 0;
  };
  std::vector<Family> families_;
  std::map<Pid, size_t> family_of_;
  std::map<Pid, uint64_t> terminals_;        ///< by the session that they control
  std::optional<std::vector<Apart>> apart_;  ///< nothing: the first is an error
  std::string last_lift_;                    ///< event: the lift before is over
  unsigned lifts_ = 0;
  std::array<std::set<ObjectId>, shareable.size()>
      born_objects_;  ///< tables, fs contexts, memories, handlers of those born so far
};

}  // namespace stasis::plan
