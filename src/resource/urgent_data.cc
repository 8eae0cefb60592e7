#include "resource/urgent_data.h"

namespace stasis::resource {
namespace {

constexpr uint32_t was_read = 0x0400;  // net/tcp.h, TCP_URG_READ

Result<uint32_t> word(const kernel::KernelMemory& memory, uint64_t socket, const char* name) {
  return static_cast<uint32_t>(TRY(memory.get(socket, "tcp_sock", name)));
}

}  // namespace

Result<bool> add_urgent_data(const kernel::KernelMemory& memory, int fd, bool has_received_fin,
                             kernel::TcpStream& stream) {
  const uint64_t socket = TRY(memory.socket(fd));
  // As long as nothing is urgent it goes along with what is acknowledged (net/ipv4/tcp_input.c, tcp_clean_rtx_queue).
  const uint32_t behind = TRY(word(memory, socket, "snd_up")) - TRY(word(memory, socket, "snd_una"));
  if (behind != 0 && behind <= stream.written.size()) stream.urgent_written = behind - 1;
  if (stream.mark || has_received_fin) return true;
  const uint32_t state = TRY(word(memory, socket, "urg_data"));
  const uint32_t ahead = TRY(word(memory, socket, "urg_seq")) - stream.receive_sequence;
  const bool is_passed = static_cast<int32_t>(ahead) < 0;
  if (state == 0 || is_passed) return true;
  // A byte that has come before others counts as lost, as all such bytes: the peer sends it again.
  stream.mark = {static_cast<uint32_t>(stream.received.size()) + ahead, false};
  return state != was_read;
}

}  // namespace stasis::resource
