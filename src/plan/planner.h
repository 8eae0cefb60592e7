// Application → Program. Pure: the same Application gives the same Program, no system calls, no privileges.
//
// The shape of every Program:
//   supervisor   PREPARE
//   tree         processes are created down the creation tree (plan/tree.h); a process whose children share memory
//                copy-on-write with it maps and fills its memory first, all others after the tree stands
//   each process memory, descriptors, process state, threads, thread state
//   barrier      everybody complete
//   supervisor   SETTLE
//   each thread  FINAL, PRIVILEGES, READY
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/application.h"
#include "plan/contributor.h"
#include "plan/program.h"
#include "plan/tree.h"

namespace stasis::plan {

/// Where the bytes of a stretch of pages lie.
struct PageLocation {
  AddressRange range;
  bool shared_with_parent = false;  ///< inherited copy-on-write from the parent task when it is forked in time
  std::string file;                 ///< relative to the image directory: "pages-1.img", "parent/pages-2.img"; or empty
  uint64_t offset = 0;              ///< of the first page in it
  bool through_stasis = false;      ///< only stasis can read them: the offset counts them as they were

  /// They are in no image: they can only come later.
  bool is_elsewhere() const { return file.empty(); }
};

struct PlanOptions {
  std::map<ObjectId, std::vector<PageLocation>> pages;  ///< of address spaces and shared memory segments, ascending
  bool lazy = false;                                    ///< pages that can come later do: OWE_PAGES
  std::vector<AddressRange> occupied;  ///< addresses the agent area must avoid besides the images' (stasis' own)
  uint64_t agent_area_size = 1 << 20;
  pid_t first_transient_pid =
      0;  ///< processes that live only while the tree is built take pids from here on; 0: next to the tree's
  /// Memory mapped with MAP_STACK gets no huge pages, without being advised so.
  bool stacks_are_never_huge = false;
  Births likely_births;      ///< of session leaders: what was right for a tree of this shape
  int first_free_fd = 0;     ///< lowest number usable for service descriptors (0: above all in use)
  int descriptor_limit = 0;  ///< numbers are below this one (RLIMIT_NOFILE); 0: not known
};

/// Gives a program that was not made from a whole Application its agent_area: a range that is free in `occupied`, and
/// large enough.
Status place_agent(Program&, std::vector<AddressRange> occupied);

/// Where a description first appears and who takes it from there: chosen by the planner, shown by `stasis plan`.
Result<Program> make_program(const model::Application&, const Contributors&, const PlanOptions&);

}  // namespace stasis::plan
