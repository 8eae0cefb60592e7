// Bare process trees: an Application of which only the tree matters, its JSON form, and Programs that build it.
//
//   {"processes": [{"pid": 7, "ppid": 1, "pgid": 7, "sid": 7, "state": "alive", "subreaper": true, "threads": [8, 9]},
//                  {"pid": 10, "ppid": 7, "pgid": 7, "sid": 7, "state": "zombie", "exit_code": 3}]}
//
// pid, ppid, pgid and sid are required. `state` is "alive" (which it is without it), "stopped" or "zombie"; a zombie
// has `exit_code` (0 to 255) or `exit_signal`. `threads` are those beside the first, which has ended alone if there is
// a `leader_exit_code`. Exactly one process, the root, has a parent that is not in the tree. A root with pid 1 is the
// init of a pid namespace. Where the root does not lead its session, session and group come from outside.
//
// A process in pid namespaces below the root's has `nested_pids`, its ids there, outermost first; all other ids are as
// the root's namespace has them. One whose last nested id is 1 is the init of a namespace; any other lives where its
// parent does, unless `pid_namespace`, the pid of an init, says where it has come by setns. Its own namespace lies in
// its parent's, unless `outer_namespace` says in which it has been begun by a sibling. `nested_tids` are the
// nested ids of each of `threads`. `childrens_namespace` is the pid of the init of the one that the children of its
// first living thread are born in, where unshare or setns have made that another; 0: one that is still empty. Dead
// leaders of sessions and groups are listed where they have nested ids:
//
//   {"processes": [{"pid": 9, "ppid": 1, "pgid": 9, "sid": 9, "nested_pids": [1], "threads": [11], "nested_tids":
//   [[4]]},
//                  {"pid": 10, "ppid": 9, "pgid": 12, "sid": 12, "nested_pids": [2]}],
//    "dead_leaders": [{"pid": 12, "nested_pids": [5], "pid_namespace": 9}]}
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/application.h"
#include "plan/program.h"
#include "plan/tree.h"

namespace stasis::plan {

/// Errors name the process by its index, and the field. Parents come to stand before their children.
Result<model::Application> tree_from_json(std::string_view text);
/// One process a line, pids ascending, as are the threads of each.
std::string tree_to_json(const model::Application&);

/// FORK … READY. Errors as of plan_tree.
Result<Program> make_tree_program(const model::Application&, const TreeLimits& = {}, const Births& likely = {});

/// What programs in the published language leave open: the root is there without anybody forking it, and MREMAP and
/// MUNMAP mean the whole mapping that begins at their address. Then a FORK and the lengths are put in.
Program completed(Program program);

/// Of every process that has any, its children by ascending pid.
std::map<Pid, std::vector<const model::Task*>> children_in(const model::Application&);

/// The ids of its threads, with those in nested namespaces.
std::map<Tid, std::vector<pid_t>> threads_of(const model::Task&);

/// What differs between two trees with the same pids, one sentence each; nothing: they are equal. States of stopped
/// processes count only if `with_stops`.
std::vector<std::string> tree_differences(const model::Application& wanted, const model::Application& found,
                                          bool with_stops = true);

}  // namespace stasis::plan
