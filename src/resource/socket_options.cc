#include "resource/socket_options.h"

#include <fmt/format.h>
#include <linux/filter.h>
#include <linux/net_tstamp.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <climits>

namespace stasis::resource {
namespace {

using plan::call;

constexpr int64_t microseconds = 1'000'000;
// Newer than the C library's headers, or not in them.
constexpr int timestamp_new = 63, timestampns_new = 64, timestamping_new = 65, prefer_busy_poll = 69,
              buffer_lock_option = 72, reserve_memory = 73, receive_mark = 75, pass_pidfd_option = 76,
              receive_priority = 82, pass_rights_option = 83;

/// An option with an integer value, and its field in the record; without one it is in the list of others.
struct IntegerOption {
  int name;
  uint32_t standard;  ///< of a new socket
  void (*write)(sk_opts_entry&, uint32_t) = nullptr;
  std::optional<uint32_t> (*read)(const sk_opts_entry&) = nullptr;
};

#define STASIS_FIELD(field)                                                                                \
  [](sk_opts_entry& entry, uint32_t value) { entry.set_##field(value); }, [](const sk_opts_entry& entry) { \
    return entry.has_##field() ? std::optional<uint32_t>(entry.field()) : std::nullopt;                    \
  }
/// In the order in which they are set: a filter that is locked must be there before.
constexpr IntegerOption integer_options[] = {
    {SO_REUSEADDR, 0, STASIS_FIELD(reuseaddr)},
    {SO_REUSEPORT, 0, STASIS_FIELD(so_reuseport)},
    {SO_PRIORITY, 0, STASIS_FIELD(so_priority)},
    {SO_RCVLOWAT, 1, STASIS_FIELD(so_rcvlowat)},
    {SO_MARK, 0, STASIS_FIELD(so_mark)},
    {SO_PASSCRED, 0, STASIS_FIELD(so_passcred)},
    {SO_PASSSEC, 0, STASIS_FIELD(so_passsec)},
    {SO_DONTROUTE, 0, STASIS_FIELD(so_dontroute)},
    {SO_NO_CHECK, 0, STASIS_FIELD(so_no_check)},
    {SO_BROADCAST, 0, STASIS_FIELD(so_broadcast)},
    {SO_KEEPALIVE, 0, STASIS_FIELD(so_keepalive)},
    {SO_OOBINLINE, 0, STASIS_FIELD(so_oobinline)},
    {SO_PEEK_OFF, ~0u},
    {SO_TIMESTAMP, 0},
    {SO_TIMESTAMPNS, 0},
    {SO_TIMESTAMPING, 0},
    // Where times are asked for with 64 bits the old names tell of nothing but SO_TIMESTAMPING, and these come after
    // it.
    {timestamp_new, 0},
    {timestampns_new, 0},
    {timestamping_new, 0},
    {SO_RXQ_OVFL, 0},
    {SO_SELECT_ERR_QUEUE, 0},
    {SO_DEBUG, 0},
    {SO_WIFI_STATUS, 0},
    {SO_NOFCS, 0},
    {SO_BUSY_POLL, 0},
    {prefer_busy_poll, 0},
    {SO_MAX_PACING_RATE, ~0u},  // with 32 bits: faster than 34 Gbit/s is as good as no limit
    {SO_ZEROCOPY, 0},
    {reserve_memory, 0},
    {receive_mark, 0},
    {receive_priority, 0},
    {SO_LOCK_FILTER, 0},
    {pass_pidfd_option, 0},
    {pass_rights_option, 1},
};
#undef STASIS_FIELD

const IntegerOption* find_option(int name) {
  const auto* found = std::ranges::find(integer_options, name, &IntegerOption::name);
  return found == std::end(integer_options) ? nullptr : found;
}

template <typename T>
bool get(int fd, int name, T& value) {
  socklen_t size = sizeof value;
  return getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 && size == sizeof value;
}

Result<std::vector<uint64_t>> capture_filter(int fd, const std::string& subject) {
  sock_filter none{};
  socklen_t count = 0;  // of instructions, not of bytes (net/core/filter.c, sk_get_filter)
  if (getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, &none, &count) != 0) return fail_errno("SO_GET_FILTER", subject);
  std::vector<sock_filter> program(count);
  if (count != 0 && getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, program.data(), &count) != 0)
    return fail_errno("SO_GET_FILTER", subject);
  std::vector<uint64_t> filter;
  for (const auto& one : program) {
    filter.push_back(static_cast<uint64_t>(one.code) << 48 | static_cast<uint64_t>(one.jt) << 40 |
                     static_cast<uint64_t>(one.jf) << 32 | one.k);
  }
  return filter;
}

void add_filter(const std::vector<uint64_t>& filter, int fd, plan::Calls& calls) {
  std::vector<sock_filter> program;
  for (const uint64_t one : filter) {
    program.push_back({static_cast<uint16_t>(one >> 48), static_cast<uint8_t>(one >> 40),
                       static_cast<uint8_t>(one >> 32), static_cast<uint32_t>(one)});
  }
  sock_fprog head{};
  head.len = static_cast<uint16_t>(program.size());
  const ByteView bytes(reinterpret_cast<const uint8_t*>(program.data()), program.size() * sizeof program[0]);
  calls.push_back(call(SYS_setsockopt, fd, SOL_SOCKET, SO_ATTACH_FILTER,
                       plan::struct_pointing_to(head, offsetof(sock_fprog, filter), bytes), sizeof head));
}

int64_t microseconds_of(const timeval& time) { return time.tv_sec * microseconds + time.tv_usec; }

}  // namespace

Result<SocketOptions> capture_socket_options(int fd, const std::string& subject) {
  SocketOptions options;
  if (!get(fd, SO_SNDBUF, options.send_buffer) || !get(fd, SO_RCVBUF, options.receive_buffer))
    return fail_errno("read the buffers' sizes", subject);
  if (uint32_t lock = 0; get(fd, buffer_lock_option, lock)) options.buffer_lock = lock;
  timeval time{};
  if (get(fd, SO_SNDTIMEO, time)) options.send_timeout_us = microseconds_of(time);
  if (get(fd, SO_RCVTIMEO, time)) options.receive_timeout_us = microseconds_of(time);
  if (linger lingers{}; get(fd, SO_LINGER, lingers) && lingers.l_onoff != 0)
    options.linger = static_cast<uint32_t>(lingers.l_linger);
  for (const auto& option : integer_options) {
    uint32_t value = 0;  // what the family or the kernel does not have cannot have been set
    if (get(fd, option.name, value) && value != option.standard) options.values[option.name] = value;
  }
  if (sock_txtime time_to_send{}; get(fd, SO_TXTIME, time_to_send) && (time_to_send.clockid | time_to_send.flags) != 0)
    options.time_to_send = {static_cast<uint32_t>(time_to_send.clockid), time_to_send.flags};
  char device[64] = {};
  socklen_t length = sizeof device;
  if (getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, &length) == 0 && length > 0) options.device = device;
  options.filter = TRY(capture_filter(fd, subject));
  return options;
}

void encode_socket_options(const SocketOptions& options, sk_opts_entry& entry) {
  entry.set_so_sndbuf(options.send_buffer), entry.set_so_rcvbuf(options.receive_buffer);
  if (options.buffer_lock) entry.set_so_buf_lock(*options.buffer_lock);
  entry.set_so_snd_tmo_sec(static_cast<uint64_t>(options.send_timeout_us / microseconds));
  entry.set_so_snd_tmo_usec(static_cast<uint64_t>(options.send_timeout_us % microseconds));
  entry.set_so_rcv_tmo_sec(static_cast<uint64_t>(options.receive_timeout_us / microseconds));
  entry.set_so_rcv_tmo_usec(static_cast<uint64_t>(options.receive_timeout_us % microseconds));
  if (options.linger) entry.set_so_linger(*options.linger);
  for (const auto& [name, value] : options.values) {
    const auto* option = find_option(name);
    if (option->write != nullptr) {
      option->write(entry, value);
    } else {
      auto& more = *entry.add_more();
      more.set_name(static_cast<uint32_t>(name)), more.set_value(value);
    }
  }
  if (options.time_to_send) {
    entry.set_time_to_send_clock(options.time_to_send->first);
    entry.set_time_to_send_flags(options.time_to_send->second);
  }
  if (!options.device.empty()) entry.set_so_bound_dev(options.device);
  for (const uint64_t one : options.filter) entry.add_so_filter(one);
}

Result<SocketOptions> decode_socket_options(const sk_opts_entry& entry, const std::string& where) {
  const auto reject = [&](std::string_view field, std::string cause) {
    return fail(Error::invalid("decode socket options", std::move(cause), fmt::format("{}, field {}", where, field)));
  };
  SocketOptions options;
  options.send_buffer = entry.so_sndbuf(), options.receive_buffer = entry.so_rcvbuf();
  if (options.send_buffer > INT_MAX) return reject("so_sndbuf", "no buffer is so large");
  if (options.receive_buffer > INT_MAX) return reject("so_rcvbuf", "no buffer is so large");
  if (entry.has_so_buf_lock()) options.buffer_lock = entry.so_buf_lock();
  if (entry.so_buf_lock() > 3) return reject("so_buf_lock", fmt::format("{:#x} are no flags", entry.so_buf_lock()));
  const auto time = [&](uint64_t seconds, uint64_t below, int64_t& into) {
    if (seconds > INT_MAX || below >= microseconds) return false;
    into = static_cast<int64_t>(seconds) * microseconds + static_cast<int64_t>(below);
    return true;
  };
  if (!time(entry.so_snd_tmo_sec(), entry.so_snd_tmo_usec(), options.send_timeout_us))
    return reject("so_snd_tmo_usec", "it is no time");
  if (!time(entry.so_rcv_tmo_sec(), entry.so_rcv_tmo_usec(), options.receive_timeout_us))
    return reject("so_rcv_tmo_usec", "it is no time");
  if (entry.has_so_linger()) options.linger = entry.so_linger();
  for (const auto& option : integer_options) {
    const auto value = option.read != nullptr ? option.read(entry) : std::nullopt;
    if (value && *value != option.standard) options.values[option.name] = *value;
  }
  for (const auto& more : entry.more()) {
    const auto* option = find_option(static_cast<int>(more.name()));
    if (option == nullptr || option->write != nullptr)
      return reject("more", fmt::format("option {} does not belong there", more.name()));
    if (more.value() != option->standard) options.values[option->name] = more.value();
  }
  if (entry.has_time_to_send_clock()) options.time_to_send = {entry.time_to_send_clock(), entry.time_to_send_flags()};
  options.device = entry.so_bound_dev();
  if (options.device.size() >= 16) return reject("so_bound_dev", "no device has so long a name");
  options.filter.assign(entry.so_filter().begin(), entry.so_filter().end());
  if (options.filter.size() > BPF_MAXINSNS) return reject("so_filter", "it has too many instructions");
  return options;
}

plan::Call set_option(int fd, int name, uint32_t value) {
  return call(SYS_setsockopt, fd, SOL_SOCKET, name, plan::struct_in(value), sizeof value);
}

void add_socket_options(const SocketOptions& options, int fd, plan::Calls& calls) {
  const auto buffer = [&](int name, int forcing_name, uint32_t size) {
    calls.push_back(set_option(fd, name, size / 2));  // no more than the limit, whatever is asked for
    calls.push_back(plan::expecting(set_option(fd, forcing_name, size / 2), plan::Expectation::Kind::anything));
  };
  buffer(SO_SNDBUF, SO_SNDBUFFORCE, options.send_buffer);
  buffer(SO_RCVBUF, SO_RCVBUFFORCE, options.receive_buffer);
  if (options.buffer_lock) calls.push_back(set_option(fd, buffer_lock_option, *options.buffer_lock));
  const auto time = [&](int name, int64_t us) {
    const timeval value{us / microseconds, us % microseconds};
    if (us != 0) calls.push_back(call(SYS_setsockopt, fd, SOL_SOCKET, name, plan::struct_in(value), sizeof value));
  };
  time(SO_SNDTIMEO, options.send_timeout_us);
  time(SO_RCVTIMEO, options.receive_timeout_us);
  if (options.linger) {
    const linger value{1, static_cast<int>(*options.linger)};
    calls.push_back(call(SYS_setsockopt, fd, SOL_SOCKET, SO_LINGER, plan::struct_in(value), sizeof value));
  }
  if (options.time_to_send) {
    const sock_txtime value{static_cast<clockid_t>(options.time_to_send->first), options.time_to_send->second};
    calls.push_back(call(SYS_setsockopt, fd, SOL_SOCKET, SO_TXTIME, plan::struct_in(value), sizeof value));
  }
  if (!options.device.empty()) {
    calls.push_back(
        call(SYS_setsockopt, fd, SOL_SOCKET, SO_BINDTODEVICE, plan::text(options.device), options.device.size() + 1));
  }
  if (!options.filter.empty()) add_filter(options.filter, fd, calls);
  for (const auto& option : integer_options) {
    const auto value = options.values.find(option.name);
    if (value == options.values.end()) continue;
    auto set = set_option(fd, option.name, value->second);
    // One that counts (SOF_TIMESTAMPING_OPT_ID) is set while there is a connection, and stays when that has ended.
    const bool may_be_late = option.name == SO_TIMESTAMPING || option.name == timestamping_new;
    if (may_be_late) set = plan::expecting(std::move(set), plan::Expectation::Kind::success_or, -EINVAL);
    calls.push_back(std::move(set));
  }
}

}  // namespace stasis::resource
