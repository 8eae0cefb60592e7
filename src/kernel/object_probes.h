// Probes of features.h that concern descriptors: what the kernel tells of open files, and lets be set of sockets.
// Each gives an empty text if it is there, otherwise what is missing.
#pragma once

#include <string>

namespace stasis::kernel {

std::string probe_mount_ids();         ///< mnt_id in /proc/PID/fdinfo (Linux 3.15)
std::string probe_listed_locks();      ///< lock: in /proc/PID/fdinfo (Linux 4.1)
std::string probe_timerfd();           ///< its settings in /proc/PID/fdinfo, and TFD_IOC_SET_TICKS (Linux 3.17)
std::string probe_epoll_targets();     ///< KCMP_EPOLL_TFD (Linux 4.13)
std::string probe_aio_remap();         ///< an AIO context whose ring mremap(2) moves stays one (Linux 3.19)
std::string probe_huge_memfd();        ///< MFD_HUGETLB (Linux 4.14)
std::string probe_socket_files();      ///< SIOCUNIXFILE (Linux 4.9)
std::string probe_raw_diag();          ///< raw sockets by NETLINK_SOCK_DIAG (Linux 4.10)
std::string probe_tcp_window();        ///< TCP_REPAIR_WINDOW (Linux 4.8)
std::string probe_buffer_locks();      ///< SO_BUF_LOCK (Linux 5.14)
std::string probe_freebind6();         ///< IPV6_FREEBIND (Linux 4.19)
std::string probe_nf_tables();         ///< tables over NETLINK_NETFILTER
std::string probe_iptables_restore();  ///< the programs iptables-restore and ip6tables-restore

}  // namespace stasis::kernel
