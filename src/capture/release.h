// The end of a seizure.
#pragma once

#include <vector>

#include "base/result.h"
#include "capture/capture.h"
#include "capture/walk.h"

namespace stasis::capture {

/// Lets every task go on, leaves it stopped, or ends it. All tasks are treated, whatever happens to some; the first
/// error is told. Tasks that have died meanwhile are no error. `at_point`: as CaptureOptions::at_point.
Status release(std::vector<LiveProcess>& processes, AfterDump after, const AtPoint& at_point = {});

/// From here on they stop as soon as they are let go, by whatever means.
void stop_when_let_go(const std::vector<LiveProcess>& processes);

}  // namespace stasis::capture
