#include "plan/call.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

namespace stasis::plan {
namespace {

#include "syscall_table.inc"

constexpr std::pair<std::string_view, uint32_t> pseudo_calls[] = {{"read_fully", Call::read_fully},
                                                                  {"write_fully", Call::write_fully},
                                                                  {"move_fd", Call::move_fd},
                                                                  {"open_at", Call::open_at},
                                                                  {"get_actions", Call::get_actions},
                                                                  {"start_overrun_timer", Call::start_overrun_timer},
                                                                  {"epoll_add_fired", Call::epoll_add_fired},
                                                                  {"setup_aio", Call::setup_aio},
                                                                  {"open_terminal", Call::open_terminal},
                                                                  {"setup_io_uring", Call::setup_io_uring},
                                                                  {"map_in_place", Call::map_in_place},
                                                                  {"make_segment", Call::make_segment},
                                                                  {"remove_segment", Call::remove_segment},
                                                                  {"hold_directory", Call::hold_directory},
                                                                  {"lead_packet_rings", Call::lead_packet_rings}};

constexpr std::string_view unnamed = "syscall ";

template <typename Table>
std::string_view name_in(const Table& table, uint32_t number) {
  const auto found = std::ranges::find(table, number, [](const auto& entry) { return entry.second; });
  return found == std::end(table) ? std::string_view{} : found->first;
}

template <typename Table>
int64_t number_in(const Table& table, std::string_view name) {
  const auto found = std::ranges::find(table, name, [](const auto& entry) { return entry.first; });
  return found == std::end(table) ? -1 : static_cast<int64_t>(found->second);
}

}  // namespace

In text(std::string_view value) {
  In in{Bytes(value.begin(), value.end())};
  in.bytes.push_back(0);
  return in;
}

std::string call_name(uint32_t number) {
  if (const auto name = name_in(syscall_table, number); !name.empty()) return std::string(name);
  if (const auto name = name_in(pseudo_calls, number); !name.empty()) return std::string(name);
  return std::string(unnamed) + std::to_string(number);
}

int64_t call_number(std::string_view name) {
  if (const auto number = number_in(syscall_table, name); number >= 0) return number;
  if (const auto number = number_in(pseudo_calls, name); number >= 0) return number;
  if (!name.starts_with(unnamed)) return -1;
  uint32_t number = 0;
  const auto digits = name.substr(unnamed.size());
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  return error == std::errc{} && end == digits.data() + digits.size() ? static_cast<int64_t>(number) : -1;
}

}  // namespace stasis::plan
