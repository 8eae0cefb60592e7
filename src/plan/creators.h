// Who creates whom among those who are born in one session.
#pragma once

#include <expected>
#include <map>
#include <set>
#include <vector>

#include "base/types.h"

namespace stasis::plan {

/// Who must be born before whom, and be among his creators.
using Before = std::map<Pid, std::set<Pid>>;

/// Who must be above whom anyway: whose place is lower. Of processes that live in one pid namespace all are equal.
using Places = std::map<Pid, std::pair<size_t, size_t>>;

/// The creator of each member: the nearest possible below `top`, who creates all who need nobody else. Or a member who
/// would have to be born before himself.
std::expected<std::map<Pid, Pid>, Pid> creators_of(const std::vector<Pid>& members, Pid top, const Before&,
                                                   const Places& = {});

}  // namespace stasis::plan
