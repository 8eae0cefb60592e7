// inventory.img: the version of the images and the namespaces that tasks share with the one who restores.
#pragma once

#include <string>

#include "base/result.h"
#include "ids.pb.h"
#include "image/directory.h"
#include "inventory.pb.h"
#include "model/application.h"

namespace stasis::resource {

/// Checks that this is a checkpoint, complete and of a version that can be read.
Result<inventory_entry> read_inventory(const image::Directory&);
inventory_entry make_inventory(const model::Application&);
/// Writes down how the images of the directory are stored: CRIU refuses those that it would misread.
void set_storage(const image::Directory&, inventory_entry&);
/// Names the images that are in the directory: one that is lost later is missed, though CRIU's format takes its absence
/// for emptiness (no pages, no descriptors, empty pipes).
Status set_images(const image::Directory&, inventory_entry&);
Status check_images(const image::Directory&, const inventory_entry&);

/// Notes the round of tracking that the images end ("": none), and when: CRIU takes a process that is younger than the
/// parent images for another with the same pid.
void set_round(inventory_entry&, const std::string& round);
/// Makes the images of a pre-dump valid. They are memory alone: read_inventory refuses them.
Status commit_pre_dump(const image::Directory&, uint32_t mode, const std::string& round);
/// The round that images end, of a pre-dump or a dump; "": none, or they do not say.
Result<std::string> round_of(const image::Directory&);

/// What the clocks say at the dump, in timens-0.img: CRIU lets them go on from there (time_namespaces(7)). A restore by
/// stasis leaves the tree in the time namespace of stasis, as it was at the dump.
Status write_clocks(const image::Directory&);

/// The namespace ids of every task of the tree: all inherited, but for the pid and IPC namespaces of a tree that owns
/// them.
void set_namespaces(const model::Application&, const model::Task&, task_kobj_ids_entry&);
/// Among the ids of a task, that of the namespace of this kind ("net", "pid" …); 0: there is none.
uint32_t namespace_id(const task_kobj_ids_entry&, std::string_view kind);
/// Whether the tree owns its IPC namespace.
bool owns_ipc_namespace(const inventory_entry&, const task_kobj_ids_entry& root);
/// Whether the tree owns its pid namespace; any other namespace of its own is refused.
Result<bool> owns_pid_namespace(const inventory_entry&, const task_kobj_ids_entry& root, const std::string& where);

}  // namespace stasis::resource
