// Dropping packets by iptables(8): for where nf_tables is not to be had, and for images of CRIU, whose rules these are.
#pragma once

#include "resource/network_lock.h"

namespace stasis::resource {

Result<std::unique_ptr<NetworkLock>> hold_iptables_lock(std::span<const kernel::Connection>);
/// Rules that are not there are no error: on another machine there are none. Whether all of them were there.
Result<bool> remove_iptables_lock(std::span<const kernel::Connection>);

}  // namespace stasis::resource
