// Rings of packet sockets (PACKET_RX_RING, PACKET_TX_RING): memory of the kernel's that programs map, as a whole.
//
// What is in them everybody sees, but not in which frame the kernel goes on: that is read in its memory
// (kernel/kernel_memory.h). A restore leads it there by as many packets (agent/packet_rings.h).
//
// Rings of blocks for receiving (TPACKET_V3) are not led: blocks have numbers that go up with each one which is filled,
// however many there ever were, and a timer hands over those that are not full.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "image/file_records.h"
#include "kernel/sock_diag.h"
#include "memory/pages.h"
#include "plan/contributor.h"
#include "resource/capture_context.h"
#include "sockets.pb.h"

namespace stasis::resource {

/// Those of one socket.
struct PacketRings {
  using Ring = kernel::PacketSocketInfo::Ring;
  struct Problem {
    std::string what;
    bool passes = false;  ///< in a moment
  };
  std::optional<Ring> receive, send;
  uint32_t receive_head = 0, send_head = 0;              ///< the frames in which the kernel goes on
  std::shared_ptr<UniqueFd> content;                     ///< dump: a copy; nothing: nobody knows how they stand
  std::optional<Problem> problem;                        ///< dump: why not. It matters if somebody has them mapped
  std::optional<std::vector<memory::StoredRun>> stored;  ///< restore: where the copy lies; nothing: they begin anew

  /// Of a mapping, in bytes: the ring for receiving comes first.
  uint64_t size() const;
  bool is_led() const { return stored && (receive_head != 0 || send_head != 0 || !stored->empty()); }
  friend bool operator==(const PacketRings& a, const PacketRings& b) {
    return a.receive == b.receive && a.send == b.send && a.receive_head == b.receive_head && a.send_head == b.send_head;
  }
};

/// What a frame is like depends on the socket.
struct PacketFrames {
  uint32_t version = 0;                          ///< TPACKET_V*
  bool has_header = false, passes_over = false;  ///< SOCK_RAW, PACKET_LOSS
  uint32_t more_header_size = 0;                 ///< of PACKET_VNET_HDR
};

/// Once `receive` and `send` are known: how they stand, and what is in them. Why that cannot be told is their problem.
Status look_at_rings(CaptureContext&, int fd, const std::string& subject, const PacketFrames&, PacketRings&);

/// `id` is that of the description.
Status encode_rings(const PacketRings&, uint32_t id, packet_sock_entry&, image::FileRecords&);
Result<PacketRings> decode_rings(std::string_view kind, const image::FileRecords&, const image::FileRecord&);

/// Commands that make the file which `add_rings` fills them from, under the passing number `file`.
void add_ring_content(const PacketRings&, int file, plan::Sink&);
/// The socket has its version, and what else may only be set before there is a ring. Where frames have been received it
/// is left bound, with a filter that lets nothing pass.
void add_rings(const PacketRings&, const PacketFrames&, int fd, int file, plan::Calls&);
/// What is needed here to lead them; empty: it is there.
std::string problem_of_leading(const PacketRings&);

}  // namespace stasis::resource
