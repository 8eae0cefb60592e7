// Who makes which open file description, under which number, and who takes it from there.
#pragma once

#include "plan/emission.h"
#include "plan/memory.h"

namespace stasis::plan {

class DescriptorPlan {
 public:
  explicit DescriptorPlan(Emission& out);

  /// Every description is made once, by the first process that holds it; the numbers are final wherever possible.
  Status make(Pid);
  /// The process takes what others made, and fills the rest of its table.
  void take(Pid);
  /// Descriptors that were open only for others.
  void close_temporaries(Pid);
  /// Numbers under which descriptions are open in the process once `make` and `take` have run, those that it only maps
  /// and that cannot be opened a second time included.
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
    Pid owner;
    int fd = -1;  ///< the number the owner makes it at
    bool temporary = false;
    const DescriptionMaker* maker = nullptr;
    std::vector<Use> uses;
    std::map<Pid, int> mapped_at;  ///< processes that only map it → the passing number it has there, -1: not yet
  };

  Made& known(ObjectId, Pid, int fd);
  void add_mapped_files();
  Status make_group(Pid, const std::vector<ObjectId>& group);
  void set_state(Pid, const model::OpenDescription&, const Made&);
  void set_owner_outside(Pid, int fd, const model::FileOwner&);
  void duplicate_here(Pid, const Made&);

  Emission& out_;
  std::map<ObjectId, Pid> table_worker_;  ///< descriptor table → process
  std::map<ObjectId, Made> made_;
  std::map<Pid, std::vector<std::pair<ObjectId, Use>>> used_by_;  ///< by the process that works on the table
  std::map<Pid, std::vector<ObjectId>> mapped_by_;                ///< likewise
  std::map<Pid, std::vector<std::vector<ObjectId>>> groups_;      ///< by owner, in order of making
  std::map<ObjectId, std::pair<Pid, size_t>> group_of_;  ///< "made together" object → owner and index in its groups
};

}  // namespace stasis::plan
