// Multicast groups that sockets have joined. The kernel tells of each device which groups somebody has joined, and of a
// socket, asked for one of them, whether it has.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "base/diagnostics.h"
#include "base/result.h"
#include "plan/call.h"
#include "sockets_more.pb.h"

namespace stasis::kernel {
class KernelMemory;
}

namespace stasis::resource {

/// The number of the device by which a socket sends to IPv4 groups, whether it was chosen by number or by address
/// (IP_MULTICAST_IF, which tells addresses only); 0: none was chosen. `fd` is a descriptor of ours.
Result<uint32_t> multicast_device(const kernel::KernelMemory&, int fd);

struct Membership {
  std::array<uint8_t, 16> group{};  ///< of AF_INET the first four bytes; the same for sources
  std::string device;
  bool only_from = false;  ///< packets of these sources are received; otherwise: of all but these
  std::vector<std::array<uint8_t, 16>> sources;
  uint32_t device_index = 0;  ///< here and now; 0: there is no such device. Not compared

  friend bool operator==(const Membership& a, const Membership& b) {
    return a.group == b.group && a.device == b.device && a.only_from == b.only_from && a.sources == b.sources;
  }
};

/// Which groups there are is read once.
class MembershipReader {
 public:
  Result<std::vector<Membership>> read(int fd, int family);

 private:
  struct Known {
    int family = 0;
    uint32_t device_index = 0;
    std::string device;
    std::array<uint8_t, 16> group{};
  };
  Status list();
  std::vector<Known> known_;
  bool listed_ = false;
};

void encode_memberships(const std::vector<Membership>&, int family, socket_more_entry&);
Result<std::vector<Membership>> decode_memberships(const socket_more_entry&, int family, const std::string& where);
void check_memberships(const std::vector<Membership>&, const std::string& subject, Diagnostics&);
void add_memberships(const std::vector<Membership>&, int family, int fd, plan::Calls&);

}  // namespace stasis::resource
