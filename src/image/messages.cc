// The list of records. Naming each here also keeps the linker from leaving any out.
#include "apparmor.pb.h"
#include "blocks.pb.h"
#include "cgroup.pb.h"
#include "core.pb.h"
#include "encryption.pb.h"
#include "cpuinfo.pb.h"
#include "fdinfo.pb.h"
#include "fs.pb.h"
#include "ids.pb.h"
#include "image/show.h"
#include "inventory.pb.h"
#include "locks.pb.h"
#include "mqueue.pb.h"
#include "mm.pb.h"
#include "namespaces.pb.h"
#include "pagemap.pb.h"
#include "pstree.pb.h"
#include "seccomp.pb.h"
#include "sockets_more.pb.h"
#include "stats.pb.h"

namespace stasis::image {
namespace {

template <typename... Messages>
std::unique_ptr<google::protobuf::Message> make(std::string_view name) {
  std::unique_ptr<google::protobuf::Message> made;
  ((Messages::descriptor()->name() == name ? void(made = std::make_unique<Messages>()) : void()), ...);
  return made;
}

}  // namespace

std::unique_ptr<google::protobuf::Message> new_record(std::string_view message) {
  return make<
      inventory_entry, pstree_entry, core_entry, task_kobj_ids_entry, mm_entry, fs_entry, fdinfo_entry, file_entry,
      pagemap_head, pagemap_entry, page_blocks_head, page_blocks_entry, manifest_entry, seccomp_entry, cgroup_entry,
      remap_file_path_entry, ghost_file_entry, ghost_chunk_entry, memfd_inode_entry, pipe_data_entry, sk_packet_entry,
      tcp_stream_entry, tty_info_entry, tty_data_entry, file_lock_entry, mqueue_entry, apparmor_entry, cpuinfo_entry,
      bpfmap_file_entry, bpfmap_data_entry, utsns_entry, userns_entry, timens_entry, pidns_entry, mnt_entry,
      net_device_entry, netns_entry, ipc_var_entry, ipc_shm_entry, ipc_msg_entry, ipc_msg, ipc_sem_entry, autofs_entry,
      binfmt_misc_entry, reg_file_entry, ext_file_entry, ns_file_entry, eventfd_file_entry, eventpoll_file_entry,
      eventpoll_tfd_entry, signalfd_entry, timerfd_entry, inotify_file_entry, inotify_wd_entry, fanotify_file_entry,
      fanotify_mark_entry, pidfd_entry, vma_entry, pipe_entry, fifo_entry, sa_entry, unix_sk_entry, inet_sk_entry,
      socket_more_entry, packet_sock_entry, netlink_sk_entry, itimer_entry, posix_timer_entry, creds_entry,
      tty_file_entry, rlimit_entry, siginfo_entry, tunfile_entry, stats_entry, irmap_cache_entry>(message);
}

}  // namespace stasis::image
