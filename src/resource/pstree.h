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

}  // namespace stasis::resource
