// Pictures (SVG) of bare trees, and of Programs.
#pragma once

#include <string>

#include "model/application.h"
#include "plan/program.h"

namespace stasis::plan {

/// Parents above their children. A process is filled with the colour of its session and framed with that of its group;
/// who leads his session has a double frame. Zombies are dashed; stopped processes, subreapers and threads are marked,
/// as are controlling terminals, with a star for those in the foreground.
std::string draw(const model::Application& tree);

/// A row for each process, in the order of their births; from left to right the commands. Transient processes are
/// dashed.
std::string draw(const Program&);

}  // namespace stasis::plan
