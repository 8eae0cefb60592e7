// Who makes which open file description, under which number, and who takes it from there.
#pragma once

#include <unordered_map>

#include "plan/emission.h"
#include "plan/inheritance.h"
#include "plan/memory.h"

namespace stasis::plan {

class DescriptorPlan {
 public:
  DescriptorPlan(Emission& out, const CreationTree& tree);

  /// Every description is made once, by the first process that holds it; the numbers are final wherever possible.
  Status make(Pid);
  /// The process takes what others made, and fills the rest of its table.
  Status take(Pid);
  /// Puts into descriptions that the process has made what they carry: after `take`.
  Status complete(Pid);
  /// A process of the tree has just been created with a copy of `creator`'s table, or with that table itself: it closes
  /// what neither it nor anybody below it wants, and makes what others are to inherit from it.
  Status born(Pid, Pid creator);
  /// What the process adds to its epolls and does not hold itself comes to it for a while.
  void borrow(Pid);
  /// Epolls get what they wait for, under the numbers it was added under, whatever these are now.
  void watch(Pid);
  /// Starts what starts last, and names owners that come late: every process is complete.
  void start(Pid);
  /// Connections leave repair mode: everybody is READY.
  void end_repairs();
  /// Takes locks and leases: nothing is opened or closed any more, by anybody.
  Status lock(const model::Task&);
  /// Descriptors that were open only for others.
  void close_temporaries(Pid);
  /// Numbers under which descriptions are open in the process's table once `make` and `take` have run, those that are
  /// only needed for a while included.
  OpenNumbers open_in(Pid) const;
  /// The process runs the descriptor work of its table (one of those that share it does).
  bool works_on_table(const model::Task&) const;

 private:
  struct Use {
    Pid pid;
    int fd;
    bool close_on_exec;
  };
  struct Made {
    const model::OpenDescription* description = nullptr;
    ObjectId id;
    Pid owner;
    int fd = -1;  ///< the number the owner makes it at
    bool temporary = false;
    bool given = false;  ///< by the supervisor: everybody has it at `fd`
    int scratch = -1;
    const DescriptionMaker* maker = nullptr;
    bool borrowed = false;  ///< by a process that does not hold it (`borrow`)
    bool early = false;     ///< made when its owner is born
    std::vector<Use> uses;
    std::map<Pid, int> needed_at;  ///< processes that need it for a while → the passing number there, -1: not yet
  };

  /// Made together. They stay where they are in made_.
  using Group = std::vector<Made*>;

  Made& known(const std::pair<const ObjectId, model::OpenDescription>&, Pid, int fd);
  Pid maker_of(const model::OpenDescription&, const DescriptionMaker*, Pid holder) const;
  void add_mapped_files();
  void add_carried();
  void need(ObjectId, Pid);
  void add_watchers();
  void find_inheritance();
  static bool can_be_inherited(const Group&);
  void bequeath(const Group&, const Bequest&);
  std::optional<Bequest> bequest_of(const Group&) const;
  static int common_number(const Made&, const Bequest&, size_t member);
  void inherit(Pid, Pid creator);
  bool is_heir(Pid, ObjectId) const;
  Pid watcher_of(const Made& epoll, const std::vector<model::Watch>&) const;
  static bool holds(Pid, const Made&);
  /// The number under which a process that holds it has it.
  static int number_in(Pid, const Made&);
  bool is_in_place(Pid, const model::Watch&) const;
  void watch_out_of_place(Pid, const model::Watch&, int epoll);
  Status make_group(Pid, const Group&);
  Status adopt(Pid, const Made&);
  Status set_state(Pid, const Made&);
  void set_owner(Pid by, const std::string& purpose, const model::FileOwner& owner, Calls calls);
  void set_owner_outside(Pid, int fd, const model::FileOwner&);
  void add_lockers();
  Status take_lock(Pid, int fd, const model::FileLock&);
  void duplicate_here(Pid, const Made&);

  Emission& out_;
  const Inheritance inheritance_;
  std::map<ObjectId, Pid> table_worker_;                             ///< descriptor table → process
  std::unordered_map<ObjectId, Made> made_;                          ///< never walked: its order is nobody's
  std::map<Pid, std::vector<std::pair<const Made*, Use>>> used_by_;  ///< by the process that works on the table
  std::map<Pid, std::vector<Made*>> needed_by_;                      ///< likewise
  std::map<Pid, std::vector<Group>> groups_;                         ///< by owner, in order of making
  std::map<Pid, std::vector<Group>> bequests_;                       ///< those of them that are made early
  std::map<Pid, std::set<ObjectId>> legacies_;                       ///< what processes are to keep from their birth
  std::map<Pid, std::map<ObjectId, int>> inherited_;    ///< what they have, or have made, so far while the tree grows
  std::map<Pid, std::vector<ObjectId>> watchers_;       ///< epolls, by the process that adds what they wait for
  std::map<Pid, std::map<ObjectId, int>> borrowed_by_;  ///< passing numbers of what `borrow` takes
  std::map<Pid, std::vector<ObjectId>> starters_;       ///< what starts last, by the process that starts it
  std::map<Pid, std::vector<std::pair<const model::FileLock*, int>>>
      lockers_;  ///< locks and numbers, by who takes them
  /// Threads and groups to be sent signals, and numbers, by who says so when all of them are there.
  std::map<Pid, std::vector<std::pair<const model::FileOwner*, int>>> late_owners_;
  std::set<Pid> referred_;  ///< processes that a pidfd refers to
  /// What a maker calls "made together" → owner and index in its groups.
  std::map<std::pair<const DescriptionMaker*, ObjectId>, std::pair<Pid, size_t>> group_of_;
};

}  // namespace stasis::plan
