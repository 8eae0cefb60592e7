#include "resource/registry.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <vector>

#include "resource/bpf_map.h"
#include "resource/credentials.h"
#include "resource/descriptors.h"
#include "resource/epoll.h"
#include "resource/eventfd.h"
#include "resource/fanotify.h"
#include "resource/file_locks.h"
#include "resource/fs_context.h"
#include "resource/inet_socket.h"
#include "resource/inotify.h"
#include "resource/io_uring.h"
#include "resource/ipc_namespace.h"
#include "resource/limits.h"
#include "resource/memfd.h"
#include "resource/memory.h"
#include "resource/mqueue.h"
#include "resource/namespace_file.h"
#include "resource/netlink_socket.h"
#include "resource/packet_socket.h"
#include "resource/pidfd.h"
#include "resource/pipe.h"
#include "resource/process_attributes.h"
#include "resource/registers.h"
#include "resource/regular_file.h"
#include "resource/scheduling.h"
#include "resource/seccomp.h"
#include "resource/signals.h"
#include "resource/signalfd.h"
#include "resource/system_v.h"
#include "resource/terminal.h"
#include "resource/thread_pointers.h"
#include "resource/timerfd.h"
#include "resource/timers.h"
#include "resource/unix_socket.h"
#include "resource/unsupported.h"

namespace stasis::resource {

std::span<const TaskRoom* const> task_rooms() {
  // Within a stage rooms contribute in this order: limits after what they would limit; then credentials, what they
  // reset, what still needs capabilities, the final capabilities, and what needs nothing. A new IPC namespace comes
  // before all that is made in it.
  static const std::vector<const TaskRoom*> rooms = {
      &ipc_namespace_room(),
      &registers_room(),
      &memory_room(),
      &system_v_room(),
      &descriptors_room(),
      &file_locks_room(),
      &mqueue_notifications_room(),
      &scheduling_room(),
      &signals_room(),
      &thread_pointers_room(),
      &timers_room(),
      &limits_room(),
      &fs_context_room(),
      &credentials_room(),
      &process_attributes_room(),
      &early_seccomp_room(),
      &final_capabilities_room(),
      &seccomp_room(),
  };
  return rooms;
}

std::span<const FileRoom* const> file_rooms() {
  // The first that recognises a descriptor has it: what takes everything comes last.
  static const std::vector<const FileRoom*> rooms = {
      &mqueue_room(),     &regular_file_room(), &pipe_room(),        &fifo_room(),           &memfd_room(),
      &terminal_room(),   &unix_socket_room(),  &inet_socket_room(), &netlink_socket_room(), &packet_socket_room(),
      &eventfd_room(),    &timerfd_room(),      &signalfd_room(),    &epoll_room(),          &pidfd_room(),
      &inotify_room(),    &fanotify_room(),     &bpf_map_room(),     &namespace_file_room(), &io_uring_room(),
      &unsupported_room()};
  return rooms;
}

std::vector<const FileRoom*> file_rooms_in_use(const model::Application& application) {
  std::set<std::string_view> kinds;
  const std::type_info* last = nullptr;  // thousands of files are of one kind
  for (const auto& [id, description] : application.descriptions) {
    const auto* state = description.state.value.get();
    if (state == nullptr || &typeid(*state) == last) continue;
    last = &typeid(*state);
    kinds.insert(state->kind());
  }
  std::vector<const FileRoom*> used;
  std::ranges::copy_if(file_rooms(), std::back_inserter(used),
                       [&](const FileRoom* room) { return kinds.contains(room->kind()); });
  return used;
}

const FileRoom* file_room(std::string_view kind) {
  const auto rooms = file_rooms();
  const auto found = std::ranges::find(rooms, kind, [](const FileRoom* room) { return room->kind(); });
  return found == rooms.end() ? nullptr : *found;
}

plan::Contributors contributors() {
  const auto tasks = task_rooms();
  const auto files = file_rooms();
  return {{tasks.begin(), tasks.end()}, {files.begin(), files.end()}};
}

}  // namespace stasis::resource
