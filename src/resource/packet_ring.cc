#include "resource/packet_ring.h"

#include <fmt/format.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "memory/increments.h"
#include "resource/anonymous_room.h"
#include "resource/kernel_access.h"
#include "resource/mapped_memory.h"
#include "resource/stored_file.h"

namespace stasis::resource {
namespace {

using Ring = PacketRings::Ring;
using plan::call;

constexpr int sol_packet = 263;
constexpr uint64_t largest_ring = 4ull << 30;
constexpr const char* name_of_rings = "rings of a packet socket";

uint64_t size_of(const std::optional<Ring>& ring) { return ring ? uint64_t{ring->block_size} * ring->blocks : 0; }

/// As the kernel checks it (net/packet/af_packet.c, packet_set_ring), as far as it does not depend on the machine.
std::string_view problem_of(const Ring& ring) {
  if (ring.block_size == 0 || ring.block_size % page_size != 0) return "block_size";
  if (ring.frame_size == 0 || ring.frame_size % TPACKET_ALIGNMENT != 0 || ring.frame_size > ring.block_size)
    return "frame_size";
  if (ring.blocks == 0 || uint64_t{ring.block_size} * ring.blocks > largest_ring) return "block_nr";
  if (uint64_t{ring.block_size / ring.frame_size} * ring.blocks != ring.frames) return "frame_nr";
  return {};
}

// ---- dump

/// How far the kernel has come, which goes on meanwhile: nobody stops the network.
struct Progress {
  uint32_t receive_head = 0, send_head = 0;
  bool is_receiving = false;  ///< a packet is being written into its frame
  friend bool operator==(const Progress&, const Progress&) = default;
};

Result<Progress> progress_of(const kernel::KernelMemory& memory, uint64_t socket, const PacketRings& rings) {
  Progress progress;
  const uint64_t receive = TRY(memory.address(socket, "packet_sock", "rx_ring"));
  const uint64_t send = TRY(memory.address(socket, "packet_sock", "tx_ring"));
  if (rings.send) progress.send_head = static_cast<uint32_t>(TRY(memory.get(send, "packet_ring_buffer", "head")));
  if (!rings.receive) return progress;
  progress.receive_head = static_cast<uint32_t>(TRY(memory.get(receive, "packet_ring_buffer", "head")));
  // Before Linux 5.6 there is no such map, and two processors could write into one frame.
  if (!memory.has("packet_ring_buffer", "rx_owner_map")) return progress;
  const uint64_t map = TRY(memory.get(receive, "packet_ring_buffer", "rx_owner_map"));
  for (uint64_t frame = 0; frame < rings.receive->frames && !progress.is_receiving; frame += 64)
    progress.is_receiving = TRY(memory.word(map + frame / 8)) != 0;
  return progress;
}

bool is_zero(ByteView page) {
  return std::ranges::all_of(page, [](uint8_t byte) { return byte == 0; });
}

/// A file of it, with holes where there are zeros.
Result<std::shared_ptr<UniqueFd>> copy_of(ByteView content) {
  auto copy = std::make_shared<UniqueFd>(memfd_create(name_of_rings, MFD_CLOEXEC));
  if (!copy->valid() || ftruncate(copy->get(), static_cast<off_t>(content.size())) != 0)
    return fail_errno("make a file for the rings of a packet socket");
  for (uint64_t at = 0; at < content.size(); at += page_size) {
    const auto page = content.subspan(at, page_size);
    if (is_zero(page)) continue;
    if (pwrite(copy->get(), page.data(), page.size(), static_cast<off_t>(at)) != static_cast<ssize_t>(page.size()))
      return fail_errno("copy the rings of a packet socket");
  }
  return copy;
}

/// The device has a frame, and tells when it has sent it.
bool is_sending(const MappedMemory& mapped, const PacketRings& rings, const PacketFrames& frames) {
  if (!rings.send) return false;
  const uint64_t begin = size_of(rings.receive),
                 where = frames.version == TPACKET_V3 ? offsetof(tpacket3_hdr, tp_status) : 0;
  const uint32_t in_block = rings.send->block_size / rings.send->frame_size;
  for (uint32_t i = 0; i < rings.send->frames; ++i) {
    const uint64_t frame =
        begin + uint64_t{i / in_block} * rings.send->block_size + uint64_t{i % in_block} * rings.send->frame_size;
    if ((mapped.word(frame + where) & TP_STATUS_SENDING) != 0) return true;
  }
  return false;
}

/// The program stands still, so that sooner or later its ring is full, and the kernel at rest.
Result<std::optional<PacketRings::Problem>> copy_rings(const kernel::KernelMemory& memory, int fd,
                                                       const PacketFrames& frames, PacketRings& rings) {
  using Problem = PacketRings::Problem;
  const uint64_t socket = TRY(memory.socket(fd));
  const auto mapped = TRY(MappedMemory::of(fd, rings.size(), 0, "map the rings of a packet socket"));
  constexpr int attempts = 10;
  for (int attempt = 0; attempt < attempts; ++attempt) {
    const auto before = TRY(progress_of(memory, socket, rings));
    auto copy = TRY(copy_of(mapped.bytes()));
    const bool sends = is_sending(mapped, rings, frames);
    const auto after = TRY(progress_of(memory, socket, rings));
    if (before != after || before.is_receiving) continue;
    if (sends) return Problem{"frames are being sent", true};
    rings.receive_head = before.receive_head, rings.send_head = before.send_head;
    rings.content = std::move(copy);
    return std::nullopt;
  }
  return Problem{"packets come faster than they can be copied", true};
}

// ---- images

void encode_ring(const Ring& ring, uint32_t head, ::packet_ring& entry) {
  entry.set_block_size(ring.block_size), entry.set_block_nr(ring.blocks);
  entry.set_frame_size(ring.frame_size), entry.set_frame_nr(ring.frames);
  entry.set_retire_tmo(ring.retire_ms), entry.set_sizeof_priv(ring.private_size), entry.set_features(ring.features);
  if (head != 0) entry.set_head(head);
}

class RingDecoder {
 public:
  RingDecoder(std::string_view kind, const image::FileRecord& record) : kind_(kind), record_(record) {}

  Result<PacketRings> run(const image::FileRecords& records) const {
    const auto& entry = record_.psk();
    PacketRings rings;
    if (entry.has_rx_ring()) TRY(ring("psk.rx_ring.", entry.rx_ring(), rings.receive, rings.receive_head));
    if (entry.has_tx_ring()) TRY(ring("psk.tx_ring.", entry.tx_ring(), rings.send, rings.send_head));
    if (rings.receive_head != 0 && entry.version() > TPACKET_V2)
      return reject("psk.rx_ring.head", "a ring of blocks (TPACKET_V3) has none");
    if (rings.receive_head != 0 && entry.protocol() == 0)
      return reject("psk.rx_ring.head", "a socket without a protocol receives nothing");
    if (!entry.has_ring_pages()) {
      if (rings.receive_head != 0 || rings.send_head != 0)
        return reject("psk.ring_pages", "what is in its rings is not there");
      return rings;
    }
    if (entry.ring_pages() != record_.id() || rings.size() == 0)
      return reject("psk.ring_pages", fmt::format("{} are not its rings", entry.ring_pages()));
    rings.stored = TRY(memory::read_pagemap(records.directory(), fmt::format("shmem-{}", record_.id())));
    if (!rings.stored->empty() && rings.stored->back().range.end > rings.size())
      return reject("psk.ring_pages", "there are pages beyond the end of its rings");
    return rings;
  }

 private:
  std::unexpected<Error> reject(const std::string& field, std::string problem) const {
    return bad_entry(kind_, record_, field, std::move(problem));
  }

  Status ring(const std::string& where, const ::packet_ring& entry, std::optional<Ring>& ring, uint32_t& head) const {
    ring = Ring{entry.block_size(), entry.block_nr(),    entry.frame_size(), entry.frame_nr(),
                entry.retire_tmo(), entry.sizeof_priv(), entry.features()};
    if (const auto field = problem_of(*ring); !field.empty())
      return reject(where + std::string(field), "no ring is like that");
    head = entry.head();
    if (head >= ring->frames) return reject(where + "head", fmt::format("{} is no frame of it", head));
    return {};
  }

  std::string_view kind_;
  const image::FileRecord& record_;
};

// ---- restore

void add_ring(const std::optional<Ring>& ring, int option, int fd, plan::Calls& calls) {
  if (!ring) return;
  const tpacket_req3 request{ring->block_size, ring->blocks,       ring->frame_size, ring->frames,
                             ring->retire_ms,  ring->private_size, ring->features};
  calls.push_back(call(SYS_setsockopt, fd, sol_packet, option, plan::struct_in(request), sizeof request));
}

/// agent/abi.h, PacketRings.
struct Lead {
  struct OfRing {
    uint32_t block_size = 0, blocks = 0, frame_size = 0, head = 0;
  } receive, send;
  uint32_t version = 0, has_header = 0, passes_over = 0, more_header_size = 0;
};

Lead::OfRing lead_of(const std::optional<Ring>& ring, uint32_t head) {
  return ring ? Lead::OfRing{ring->block_size, ring->blocks, ring->frame_size, head} : Lead::OfRing{};
}

}  // namespace

uint64_t PacketRings::size() const { return size_of(receive) + size_of(send); }

Status look_at_rings(CaptureContext& context, int fd, const std::string& subject, const PacketFrames& frames,
                     PacketRings& rings) {
  if (rings.size() == 0) return {};
  if (rings.receive && frames.version > TPACKET_V2) {
    rings.problem = {
        "the one for receiving is of blocks (TPACKET_V3), which the kernel numbers for ever and a timer hands over: "
        "it cannot be led to where it was",
        false};
    return {};
  }
  const auto& memory = context.kept<KernelAccess>().memory;
  if (!memory) {
    rings.problem = {told_by_memory_alone("where the kernel goes on in them", memory.error()), false};
    return {};
  }
  rings.problem = TRY_IN("look at the rings of " + subject, copy_rings(*memory, fd, frames, rings));
  return {};
}

Status encode_rings(const PacketRings& rings, uint32_t id, packet_sock_entry& entry, image::FileRecords& records) {
  if (rings.receive) encode_ring(*rings.receive, rings.receive_head, *entry.mutable_rx_ring());
  if (rings.send) encode_ring(*rings.send, rings.send_head, *entry.mutable_tx_ring());
  if (!rings.content) return {};
  entry.set_ring_pages(id);
  return store_file(records, id, rings.content->get(), rings.size(), name_of_rings);
}

Result<PacketRings> decode_rings(std::string_view kind, const image::FileRecords& records,
                                 const image::FileRecord& record) {
  return RingDecoder(kind, record).run(records);
}

void add_ring_content(const PacketRings& rings, int file, plan::Sink& sink) {
  const std::string name = name_of_rings;
  add_stored_file({"what is in the " + name, name, rings.size(), 0, *rings.stored}, file, file + 1, sink);
}

void add_rings(const PacketRings& rings, const PacketFrames& frames, int fd, int file, plan::Calls& calls) {
  add_ring(rings.receive, PACKET_RX_RING, fd, calls);
  add_ring(rings.send, PACKET_TX_RING, fd, calls);
  if (!rings.is_led()) return;
  const Lead lead{lead_of(rings.receive, rings.receive_head),
                  lead_of(rings.send, rings.send_head),
                  frames.version,
                  frames.has_header,
                  frames.passes_over,
                  frames.more_header_size};
  calls.push_back(call(plan::Call::lead_packet_rings, fd, file, plan::struct_in(lead)));
  if (rings.receive_head == 0) return;
  // The packets that have led it there are forgotten: they count until they are asked for.
  constexpr uint32_t room = sizeof(tpacket_stats_v3);
  calls.push_back(
      call(SYS_getsockopt, fd, sol_packet, PACKET_STATISTICS, plan::Out{room}, plan::InOut{bytes_of(room)}));
}

std::string problem_of_leading(const PacketRings& rings) {
  if (rings.receive_head == 0 && rings.send_head == 0) return {};
  const UniqueFd any(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
  ifreq loopback{};
  loopback.ifr_ifindex = 1;
  const bool is_up = any.valid() && ioctl(any.get(), SIOCGIFNAME, &loopback) == 0 &&
                     ioctl(any.get(), SIOCGIFFLAGS, &loopback) == 0 && (loopback.ifr_flags & IFF_UP) != 0;
  if (!any.valid() || is_up) return {};
  return "the kernel is led to where it was in its rings by packets on the loopback device, which is down";
}

}  // namespace stasis::resource
