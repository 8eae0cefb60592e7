#include "image/names.h"

#include <array>
#include <charconv>

namespace stasis::image {
namespace {

constexpr FileKind records(std::string_view pattern, std::string_view name, uint32_t magic, std::string_view message,
                           Payload payload = Payload::none) {
  return {.pattern = pattern, .magic_name = name, .magic = magic, .message = message, .payload = payload};
}

constexpr FileKind raw(std::string_view pattern) {
  return {.pattern = pattern, .magic_name = "RAW_IMAGE", .has_common_magic = false};
}

constexpr FileKind service(std::string_view pattern, std::string_view name, uint32_t magic, std::string_view message) {
  return {.pattern = pattern, .magic_name = name, .magic = magic, .message = message, .service = true};
}

constexpr FileKind hexadecimal(FileKind kind) {
  kind.hex_id = true;
  return kind;
}

constexpr FileKind headed(FileKind kind, std::string_view head) {
  kind.head = head;
  return kind;
}

constexpr FileKind without_common_magic(FileKind kind) {
  kind.has_common_magic = false;
  return kind;
}

// Names and magics of CRIU 4.2. Where a magic occurs twice, the first kind is the one that find_kind() answers.
constexpr std::array kinds{
    without_common_magic(records("inventory", "INVENTORY", 0x58313116, "inventory_entry")),
    records("pstree", "PSTREE", 0x50273030, "pstree_entry"),
    records("core-{}", "CORE", 0x55053847, "core_entry"),
    records("ids-{}", "IDS", 0x54432030, "task_kobj_ids_entry"),
    records("mm-{}", "MM", 0x57492820, "mm_entry"),
    records("fs-{}", "FS", 0x51403912, "fs_entry"),
    records("fdinfo-{}", "FDINFO", 0x56213732, "fdinfo_entry"),
    records("files", "FILES", 0x56303138, "file_entry"),
    headed(records("pagemap-{}", "PAGEMAP", 0x56084025, "pagemap_entry"), "pagemap_head"),
    headed(records("pagemap-shmem-{}", "PAGEMAP", 0x56084025, "pagemap_entry"), "pagemap_head"),
    raw("pages-{}"),
    headed(records("page-blocks-{}", "PAGE_BLOCKS", 0x53424c4b, "page_blocks_entry"), "page_blocks_head"),  // ours
    headed(records("sent-pagemap-{}", "SENT_PAGEMAP", 0x544e5353, "pagemap_entry"), "pagemap_head"),        // ours
    raw("pages-released"),                                                                                  // ours
    records("manifest", "MANIFEST", 0x4e4d4653, "manifest_entry"),                                          // ours
    records("seccomp", "SECCOMP", 0x64413049, "seccomp_entry"),
    records("cgroup", "CGROUP", 0x59383330, "cgroup_entry"),
    records("remap-fpath", "REMAP_FPATH", 0x59133954, "remap_file_path_entry"),
    hexadecimal(records("ghost-file-{}", "GHOST_FILE", 0x52583605, "ghost_file_entry", Payload::ghost)),
    records("memfd", "MEMFD_INODE", 0x48453499, "memfd_inode_entry"),
    records("pipes-data", "PIPES_DATA", 0x56453709, "pipe_data_entry", Payload::pipe_data),
    records("fifo-data", "FIFO_DATA", 0x59333054, "pipe_data_entry", Payload::pipe_data),
    records("sk-queues", "SK_QUEUES", 0x56264026, "sk_packet_entry", Payload::socket_packet),
    hexadecimal(records("tcp-stream-{}", "TCP_STREAM", 0x51465506, "tcp_stream_entry", Payload::tcp_queues)),
    records("sockets-more", "SOCKETS_MORE", 0x53544153, "socket_more_entry"),
    records("tty-info", "TTY_INFO", 0x59453036, "tty_info_entry"),
    records("tty-data", "TTY_DATA", 0x59413026, "tty_data_entry"),
    records("filelocks", "FILE_LOCKS", 0x54323616, "file_lock_entry"),
    records("apparmor", "APPARMOR", 0x59423047, "apparmor_entry"),
    records("cpuinfo", "CPUINFO", 0x61404013, "cpuinfo_entry"),
    records("mqueue", "MQUEUE", 0x4555514d, "mqueue_entry"),
    records("bpfmap-file", "BPFMAP_FILE", 0x57506142, "bpfmap_file_entry"),
    records("bpfmap-data", "BPFMAP_DATA", 0x64324033, "bpfmap_data_entry", Payload::bpf_map),
    // Namespaces.
    records("utsns-{}", "UTSNS", 0x54473203, "utsns_entry"),
    records("userns-{}", "USERNS", 0x55474906, "userns_entry"),
    records("timens-{}", "TIMENS", 0x43114433, "timens_entry"),
    records("pidns-{}", "PIDNS", 0x61157326, "pidns_entry"),
    records("mountpoints-{}", "MNTS", 0x55563928, "mnt_entry"),
    records("netdev-{}", "NETDEV", 0x57373951, "net_device_entry"),
    records("netns-{}", "NETNS", 0x55933752, "netns_entry"),
    records("ipcns-var-{}", "IPC_VAR", 0x53115007, "ipc_var_entry"),
    records("ipcns-shm-{}", "IPCNS_SHM", 0x46283044, "ipc_shm_entry", Payload::ipc_shared_memory),
    records("ipcns-msg-{}", "IPCNS_MSG", 0x55453737, "ipc_msg_entry", Payload::ipc_messages),
    records("ipcns-sem-{}", "IPCNS_SEM", 0x59573019, "ipc_sem_entry", Payload::ipc_semaphores),
    records("autofs-{}", "AUTOFS", 0x49353943, "autofs_entry"),
    records("binfmt-misc", "BINFMT_MISC", 0x67343323, "binfmt_misc_entry"),
    records("binfmt-misc-{}", "BINFMT_MISC", 0x67343323, "binfmt_misc_entry"),
    // What other programs write: address dumps of ip(8), archives of tar(1).
    raw("ifaddr-{}"),
    raw("route-{}"),
    raw("route6-{}"),
    raw("rule-{}"),
    raw("iptables-{}"),
    raw("ip6tables-{}"),
    raw("nftables-{}"),
    raw("netns-ct-{}"),
    raw("netns-exp-{}"),
    raw("tmpfs-{}.tar.gz"),
    raw("tmpfs-dev-{}.tar.gz"),
    // Layouts of earlier CRIU versions: only shown.
    records("reg-files", "REG_FILES", 0x50363636, "reg_file_entry"),
    records("ext-files", "EXT_FILES", 0x59255641, "ext_file_entry"),
    records("ns-files", "NS_FILES", 0x61394011, "ns_file_entry"),
    records("eventfd", "EVENTFD_FILE", 0x44523722, "eventfd_file_entry"),
    records("eventpoll", "EVENTPOLL_FILE", 0x45023858, "eventpoll_file_entry"),
    records("eventpoll-tfd", "EVENTPOLL_TFD", 0x44433746, "eventpoll_tfd_entry"),
    records("signalfd", "SIGNALFD", 0x57323820, "signalfd_entry"),
    records("timerfd", "TIMERFD", 0x50493712, "timerfd_entry"),
    records("inotify", "INOTIFY_FILE", 0x48424431, "inotify_file_entry"),
    records("inotify-wd", "INOTIFY_WD", 0x54562009, "inotify_wd_entry"),
    records("fanotify", "FANOTIFY_FILE", 0x55096122, "fanotify_file_entry"),
    records("fanotify-mark", "FANOTIFY_MARK", 0x56506035, "fanotify_mark_entry"),
    records("pidfd", "PIDFD", 0x54435556, "pidfd_entry"),
    records("vmas-{}", "VMAS", 0x54123737, "vma_entry"),
    records("pipes", "PIPES", 0x56513555, "pipe_entry"),
    records("fifo", "FIFO", 0x58364939, "fifo_entry"),
    records("sigacts-{}", "SIGACT", 0x55344201, "sa_entry"),
    records("unixsk", "UNIXSK", 0x54373943, "unix_sk_entry"),
    records("inetsk", "INETSK", 0x56443851, "inet_sk_entry"),
    records("packetsk", "PACKETSK", 0x60454618, "packet_sock_entry"),
    records("netlinksk", "NETLINK_SK", 0x58005614, "netlink_sk_entry"),
    records("itimers-{}", "ITIMERS", 0x57464056, "itimer_entry"),
    records("posix-timers-{}", "POSIX_TIMERS", 0x52603957, "posix_timer_entry"),
    records("creds-{}", "CREDS", 0x54023547, "creds_entry"),
    records("tty", "TTY_FILES", 0x59433025, "tty_file_entry"),
    records("rlimit-{}", "RLIMIT", 0x57113925, "rlimit_entry"),
    records("signal-s-{}", "SIGNAL", 0x59255647, "siginfo_entry"),
    records("signal-p-{}", "SIGNAL", 0x59255647, "siginfo_entry"),
    records("tunfile", "TUNFILE", 0x57143751, "tunfile_entry"),
    raw("pages-shmem-{}"),
    // Not parts of a checkpoint.
    service("stats-dump", "STATS", 0x57093306, "stats_entry"),
    service("stats-restore", "STATS", 0x57093306, "stats_entry"),
    service("irmap-cache", "IRMAP_CACHE", 0x57004059, "irmap_cache_entry"),
};

constexpr std::string_view placeholder = "{}";
constexpr std::string_view suffix = ".img";

const FileKind* kind_of_pattern(std::string_view pattern) {
  for (const FileKind& kind : kinds)
    if (kind.pattern == pattern) return &kind;
  return nullptr;
}

std::string_view suffix_of(const FileKind* kind) { return kind && kind->service ? std::string_view{} : suffix; }

// The number as file_name() writes it: no sign, no leading zero, so that two names never mean the same file.
std::optional<uint64_t> parse_id(std::string_view digits, int base) {
  if (digits.empty() || (digits.size() > 1 && digits.front() == '0')) return std::nullopt;
  uint64_t id = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), id, base);
  if (error != std::errc{} || end != digits.data() + digits.size()) return std::nullopt;
  return id;
}

std::optional<ParsedName> match(const FileKind& kind, std::string_view file) {
  const std::string_view tail = suffix_of(&kind);
  if (!file.ends_with(tail)) return std::nullopt;
  file.remove_suffix(tail.size());
  const size_t hole = kind.pattern.find(placeholder);
  if (hole == std::string_view::npos)
    return file == kind.pattern ? std::optional(ParsedName{&kind, std::nullopt}) : std::nullopt;
  const std::string_view before = kind.pattern.substr(0, hole);
  const std::string_view after = kind.pattern.substr(hole + placeholder.size());
  if (file.size() < before.size() + after.size() || !file.starts_with(before) || !file.ends_with(after))
    return std::nullopt;
  const auto id = parse_id(file.substr(hole, file.size() - before.size() - after.size()), kind.hex_id ? 16 : 10);
  if (!id) return std::nullopt;
  return ParsedName{&kind, id};
}

}  // namespace

std::span<const FileKind> file_kinds() { return kinds; }

std::string file_name(std::string_view pattern, uint64_t id) {
  const FileKind* kind = kind_of_pattern(pattern);
  std::string name(pattern);
  const size_t hole = name.find(placeholder);
  if (hole != std::string::npos)
    name.replace(hole, placeholder.size(), kind && kind->hex_id ? fmt::format("{:x}", id) : fmt::format("{}", id));
  return name.append(suffix_of(kind));
}

std::string file_name(std::string_view pattern) {
  return std::string(pattern).append(suffix_of(kind_of_pattern(pattern)));
}

std::optional<ParsedName> parse_name(std::string_view file) {
  for (const FileKind& kind : kinds)
    if (auto parsed = match(kind, file)) return parsed;
  return std::nullopt;
}

const FileKind* find_kind(uint32_t magic) {
  if (magic == 0) return nullptr;
  for (const FileKind& kind : kinds)
    if (kind.magic == magic) return &kind;
  return nullptr;
}

}  // namespace stasis::image
