// Connections in images: tcp-stream-<number>.img holds a record, what has been received and what has been written.
#include <fmt/format.h>
#include <netinet/tcp.h>

#include <algorithm>

#include "image/names.h"
#include "resource/inet_socket.h"
#include "sockets.pb.h"

namespace stasis::resource {
namespace {

constexpr uint32_t most_scale = 14;  // RFC 7323
constexpr uint32_t known_options = 0xff;
/// How far ahead a mark can be: by the largest window (RFC 7323, 2.3), and what the 16 bits of an urgent pointer add.
constexpr uint32_t furthest_ahead = (1u << 30) + UINT16_MAX;

/// Whether `a` comes after `b`: sequence numbers go round.
bool after(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) > 0; }

/// As the kernel checks it (net/ipv4/tcp.c, tcp_repair_set_window).
std::string_view problem_of(const kernel::TcpWindow& window, uint32_t receive_sequence) {
  if (window.largest_send < window.send) return "max_window";
  if (after(window.update_sequence, receive_sequence + window.receive)) return "snd_wl1";
  if (after(window.receive_update, receive_sequence)) return "rcv_wup";
  return {};
}

/// As no connection can be: what is wrong, and where.
std::pair<std::string_view, std::string> urgent_problem(const tcp_stream_entry& entry) {
  const uint32_t at = entry.urgent_received(), length = entry.inq_len();
  if (entry.has_urgent_received() && at >= length && at - length > furthest_ahead)
    return {"urgent_received", fmt::format("{} is too far ahead of {} bytes", at, length)};
  // CRIU's images had none at first: then the segment that brings the byte might not be taken.
  if (entry.has_urgent_received() && !entry.has_snd_wnd()) return {"urgent_received", "the record tells no window"};
  if (entry.urgent_was_read() && (!entry.has_urgent_received() || at >= length))
    return {"urgent_was_read", "the byte is not there"};
  if (entry.has_urgent_written() && entry.urgent_written() >= entry.outq_len())
    return {"urgent_written", fmt::format("{} is behind what was written", entry.urgent_written())};
  return {};
}

Status check(const tcp_stream_entry& entry, const std::string& where) {
  const auto reject = [&](std::string_view field, std::string cause) {
    return fail(Error::invalid("decode TCP connection", std::move(cause), fmt::format("{}, field {}", where, field)));
  };
  if (entry.unsq_len() > entry.outq_len()) return reject("unsq_len", "more is unsent than was written");
  if (entry.opt_mask() > known_options) return reject("opt_mask", fmt::format("{:#x} is unknown", entry.opt_mask()));
  if (entry.snd_wscale() > most_scale) return reject("snd_wscale", fmt::format("{} is no scale", entry.snd_wscale()));
  if (entry.rcv_wscale() > most_scale) return reject("rcv_wscale", fmt::format("{} is no scale", entry.rcv_wscale()));
  if (entry.mss_clamp() == 0 || entry.mss_clamp() > UINT16_MAX)
    return reject("mss_clamp", fmt::format("{} is no size of a segment", entry.mss_clamp()));
  if (auto [field, cause] = urgent_problem(entry); !field.empty()) return reject(field, std::move(cause));
  return {};
}

/// What both know of, as long as nothing has come since, or gone.
bool is_same_mark(const kernel::TcpStream& a, const kernel::TcpStream& b, size_t received) {
  const auto is_new = [&](const kernel::TcpStream& stream) { return stream.mark && stream.mark->at >= received; };
  return is_new(a) || is_new(b) || a.mark == b.mark;
}
bool is_same_urgent_byte(const kernel::TcpStream& a, const kernel::TcpStream& b, size_t written) {
  const auto from_end = [&](const kernel::TcpStream& stream) -> size_t {
    const size_t left = stream.urgent_written ? stream.written.size() - *stream.urgent_written : 0;
    return left <= written ? left : 0;
  };
  return from_end(a) == from_end(b);
}

}  // namespace

Status encode_stream(uint32_t number, const kernel::TcpStream& stream, const image::Directory& directory) {
  tcp_stream_entry entry;
  entry.set_inq_len(static_cast<uint32_t>(stream.received.size())), entry.set_inq_seq(stream.receive_sequence);
  entry.set_outq_len(static_cast<uint32_t>(stream.written.size())), entry.set_outq_seq(stream.send_sequence);
  entry.set_unsq_len(stream.unsent), entry.set_opt_mask(stream.options), entry.set_mss_clamp(stream.largest_segment);
  const bool scales = (stream.options & TCPI_OPT_WSCALE) != 0;
  entry.set_snd_wscale(scales ? stream.send_scale : 0);
  if (scales) entry.set_rcv_wscale(stream.receive_scale);
  if ((stream.options & TCPI_OPT_TIMESTAMPS) != 0) entry.set_timestamp(stream.timestamp);
  if (const auto& window = stream.window) {
    entry.set_snd_wl1(window->update_sequence), entry.set_snd_wnd(window->send);
    entry.set_max_window(window->largest_send);
    entry.set_rcv_wnd(window->receive), entry.set_rcv_wup(window->receive_update);
  }
  if (stream.mark) entry.set_urgent_received(stream.mark->at);
  if (stream.mark && stream.mark->was_read) entry.set_urgent_was_read(true);
  if (stream.urgent_written) entry.set_urgent_written(*stream.urgent_written);
  auto writer = TRY(directory.create(image::file_name("tcp-stream-{}", number)));
  TRY(writer.append(entry));
  TRY(writer.append_raw(stream.received));
  TRY(writer.append_raw(stream.written));
  return writer.finish();
}

bool is_same_stream(const kernel::TcpStream& a, const kernel::TcpStream& b) {
  const auto first_unread = [](const kernel::TcpStream& stream) {
    return stream.receive_sequence - static_cast<uint32_t>(stream.received.size());
  };
  const size_t received = std::min(a.received.size(), b.received.size());
  const size_t written = std::min(a.written.size(), b.written.size());
  return first_unread(a) == first_unread(b) && a.send_sequence == b.send_sequence && a.options == b.options &&
         a.send_scale == b.send_scale && a.receive_scale == b.receive_scale && a.largest_segment == b.largest_segment &&
         std::ranges::equal(std::span(a.received).first(received), std::span(b.received).first(received)) &&
         std::ranges::equal(std::span(a.written).last(written), std::span(b.written).last(written)) &&
         is_same_mark(a, b, received) && is_same_urgent_byte(a, b, written);
}

Result<std::optional<kernel::TcpStream>> decode_stream(uint32_t number, const image::Directory& directory) {
  const auto file = image::file_name("tcp-stream-{}", number);
  auto reader = TRY(directory.find(file));
  if (!reader) return std::nullopt;
  tcp_stream_entry entry;
  if (!TRY(reader->next(entry))) return fail(Error::invalid("decode TCP connection", "there is no record in it", file));
  TRY(check(entry, reader->where()));
  kernel::TcpStream stream;
  stream.receive_sequence = entry.inq_seq(), stream.send_sequence = entry.outq_seq(), stream.unsent = entry.unsq_len();
  stream.options = static_cast<uint8_t>(entry.opt_mask()), stream.largest_segment = entry.mss_clamp();
  stream.send_scale = static_cast<uint8_t>(entry.snd_wscale());
  stream.receive_scale = static_cast<uint8_t>(entry.rcv_wscale());
  stream.timestamp = entry.timestamp();
  if (entry.has_snd_wnd()) {
    stream.window = {entry.snd_wl1(), entry.snd_wnd(), entry.max_window(), entry.rcv_wnd(), entry.rcv_wup()};
    if (const auto field = problem_of(*stream.window, stream.receive_sequence); !field.empty()) {
      return fail(Error::invalid("decode TCP connection", "no connection has such a window",
                                 fmt::format("{}, field {}", reader->where(), field)));
    }
  }
  if (entry.has_urgent_received()) stream.mark = {entry.urgent_received(), entry.urgent_was_read()};
  if (entry.has_urgent_written()) stream.urgent_written = entry.urgent_written();
  stream.received = TRY(reader->raw(entry.inq_len()));
  stream.written = TRY(reader->raw(entry.outq_len()));
  return stream;
}

}  // namespace stasis::resource
