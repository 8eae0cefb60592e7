// pstree.img: which tasks there are and how they hang together.
#pragma once

#include <map>
#include <vector>

#include "base/result.h"
#include "image/directory.h"
#include "model/application.h"

namespace stasis::resource {

Status encode_pstree(const model::Application&, const image::Directory&);

struct DecodedTree {
  std::vector<model::Task> tasks;
  std::map<Pid, model::DeadLeader> dead_leaders;
};

/// Tasks with their ids and threads, a parent before its children, otherwise in the order of the image. There is
/// exactly one root, every id is in range and used once, nobody is his own ancestor. Whether nested ids fit together
/// cannot be told before those of threads are known.
Result<DecodedTree> decode_pstree(const image::Directory&);

/// Thread::childrens_namespace in records, where it is left out if it is the thread's own: 0 is one that is empty.
inline uint32_t childrens_namespace_field(const model::Thread& thread) {
  const Pid space = thread.childrens_namespace;
  return space == model::empty_namespace ? 0 : static_cast<uint32_t>(space.value);
}
inline Pid childrens_namespace_of(pid_t field) { return field == 0 ? model::empty_namespace : Pid{field}; }

}  // namespace stasis::resource
