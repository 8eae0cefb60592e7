// The process tree as text: straight from the records, so that a directory that cannot be restored can still be read.
#include <algorithm>
#include <map>
#include <ranges>
#include <set>

#include "core.pb.h"
#include "fdinfo.pb.h"
#include "image/file_records.h"
#include "image/page_sink.h"
#include "image/show.h"
#include "mm.pb.h"
#include "pagemap.pb.h"
#include "pstree.pb.h"

namespace stasis::image {
namespace {

/// A descriptor table of this many entries is shown whole.
constexpr size_t descriptors_shown = 64;

std::string size_text(uint64_t bytes) {
  constexpr std::string_view units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  size_t unit = 0;
  auto value = static_cast<double>(bytes);
  for (; value >= 1024 && unit + 1 < std::size(units); ++unit) value /= 1024;
  return unit == 0 || value >= 100 ? fmt::format("{:.0f} {}", value, units[unit])
                                   : fmt::format("{:.1f} {}", value, units[unit]);
}

/// Text from an image, safe for a terminal.
std::string printable(std::string_view text) {
  std::string safe;
  for (const char c : text)
    safe += static_cast<uint8_t>(c) < 32 || c == 127 ? fmt::format("\\x{:02x}", static_cast<uint8_t>(c))
                                                     : std::string(1, c);
  return safe;
}

std::string describe(const file_entry& file) {
  switch (file.type()) {
    case REG:
      return printable(file.reg().name());
    case PIPE:
      return fmt::format("pipe {}, {} end", file.pipe().pipe_id(), file.pipe().flags() & 1 ? "write" : "read");
    case FIFO:
      return fmt::format("fifo {}", file.fifo().pipe_id());
    case MEMFD:
      return fmt::format("memfd, inode {}", file.memfd().inode_id());
    case TTY:
      return fmt::format("terminal {:#x}", file.tty().tty_info_id());
    case EXT:
      return fmt::format("external file {}", file.ext().id());
    default:
      break;
  }
  std::string name = fd_types_Name(file.type());
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
  return fmt::format("{} {}", name, file.id());
}

/// Whatever can be read of one record; a missing or broken image becomes a remark, not an end.
template <typename Message>
Status read_all(const Directory& directory, const std::string& name, std::vector<Message>& records) {
  auto reader = TRY(directory.read(name));
  for (Message record; TRY(reader.next(record));) records.push_back(record);
  return {};
}

class Tree {
 public:
  explicit Tree(const Directory& directory) : directory_(directory) {}

  Result<std::string> print() {
    FileRecords records(directory_);
    TRY(records.load());
    for (const file_entry* file : records.loaded()) files_.emplace(file->id(), describe(*file));
    std::vector<pstree_entry> tasks;
    TRY(read_all(directory_, file_name("pstree"), tasks));
    std::set<uint32_t> known;
    for (const pstree_entry& task : tasks) {
      if (!known.insert(task.pid()).second)
        return fail(
            Error::invalid("read image", fmt::format("pid {} occurs twice", task.pid()), "pstree.img, field pid"));
      tasks_.emplace(task.pid(), task);
    }
    for (const pstree_entry& task : tasks)
      if (known.contains(task.ppid()) && task.ppid() != task.pid()) children_[task.ppid()].push_back(task.pid());
    for (const pstree_entry& task : tasks)
      if (!known.contains(task.ppid())) print_task(task.pid(), "", "", 0);
    if (printed_ != tasks.size())
      return fail(Error::invalid("read image", "tasks are their own ancestors", "pstree.img, field ppid"));
    return text_;
  }

 private:
  /// Deeper than any tree that fits into a terminal; recursion must not depend on the image.
  static constexpr int depth_limit = 2000;

  void print_task(uint32_t pid, const std::string& branch, const std::string& below, int depth) {
    ++printed_;
    const pstree_entry& task = tasks_.at(pid);
    const auto& children = children_[pid];
    text_ += branch + headline(task) + "\n";
    const std::string indent = below + (children.empty() ? "    " : "│   ");
    for (const std::string& line : details(task)) text_ += indent + line + "\n";
    if (depth >= depth_limit) {
      text_ += indent + "… deeper levels left out\n";
      count_below(pid);
      return;
    }
    for (size_t i = 0; i < children.size(); ++i) {
      const bool last = i + 1 == children.size();
      print_task(children[i], below + (last ? "└── " : "├── "), below + (last ? "    " : "│   "), depth + 1);
    }
  }

  void count_below(uint32_t pid) {
    std::vector<uint32_t> pending = children_[pid];
    while (!pending.empty()) {
      const uint32_t next = pending.back();
      pending.pop_back();
      ++printed_;
      const auto& more = children_[next];
      pending.insert(pending.end(), more.begin(), more.end());
    }
  }

  std::string headline(const pstree_entry& task) {
    std::vector<core_entry> cores;
    const auto status = read_all(directory_, file_name("core-{}", task.pid()), cores);
    if (!status || cores.empty() || !cores.front().has_tc())
      return fmt::format("{}  ({})", task.pid(), status ? "no core record" : status.error().message());
    const task_core_entry& core = cores.front().tc();
    std::string line = fmt::format("{}  {}", task.pid(), printable(core.comm()));
    if (core.task_state() == 2) {
      const uint32_t status_word = core.exit_code();
      return line + (status_word & 127 ? fmt::format("  zombie, killed by signal {}", status_word & 127)
                                       : fmt::format("  zombie, exit status {}", status_word >> 8 & 255));
    }
    if (core.task_state() == 3)
      line += core.stop_signo() ? fmt::format("  stopped by signal {}", core.stop_signo()) : "  stopped";
    line += fmt::format("  group {}, session {}", task.pgid(), task.sid());
    if (task.threads_size() > 1) {
      line += fmt::format(", {} threads:", task.threads_size());
      for (const uint32_t tid : task.threads()) line += fmt::format(" {}", tid);
    }
    if (core.has_leader_exit_status())
      line += fmt::format(", the first has ended with exit status {}", core.leader_exit_status() >> 8 & 255);
    return line;
  }

  std::vector<std::string> details(const pstree_entry& task) {
    std::vector<std::string> lines;
    task_kobj_ids_entry ids;
    const std::string ids_file = file_name("ids-{}", task.pid());
    if (!directory_.has(ids_file)) return lines;  // a zombie has no more than its name
    auto reader = directory_.read(ids_file);
    const Status status = reader ? reader->single(ids) : fail(std::move(reader).error());
    if (!status) return {status.error().message()};
    memory(task.pid(), ids.vm_id(), lines);
    descriptors(task.pid(), ids.files_id(), lines);
    return lines;
  }

  void memory(uint32_t pid, uint32_t space, std::vector<std::string>& lines) {
    const auto [owner, first] = spaces_.emplace(space, pid);
    if (!first) {
      lines.push_back(fmt::format("memory of {}", owner->second));
      return;
    }
    std::vector<mm_entry> records;
    if (const auto status = read_all(directory_, file_name("mm-{}", pid), records); !status || records.size() != 1) {
      lines.push_back(status ? "memory: no record" : status.error().message());
      return;
    }
    const mm_entry& mm = records.front();
    if (const auto exe = files_.find(mm.exe_file_id()); exe != files_.end()) lines.push_back("runs " + exe->second);
    uint64_t mapped = 0;
    for (const vma_entry& vma : mm.vmas()) mapped += vma.end() - vma.start();
    lines.push_back(fmt::format("memory {} in {} mappings, {}", size_text(mapped), mm.vmas_size(), stored(pid)));
  }

  std::string stored(uint32_t pid) {
    auto reader = directory_.read(file_name("pagemap-{}", pid));
    if (!reader) return "no pages";
    pagemap_head head;
    uint64_t here = 0, in_parent = 0, shared = 0, elsewhere = 0;
    if (const auto has_head = reader->next(head); !has_head) return has_head.error().message();
    for (pagemap_entry entry;;) {
      const auto more = reader->next(entry);
      if (!more) return more.error().message();
      if (!*more) break;
      const uint64_t pages = entry.has_nr_pages() ? entry.nr_pages() : entry.compat_nr_pages();
      const bool is_in_parent = entry.in_parent() || (entry.flags() & page_flag::in_parent) != 0;
      const bool is_elsewhere = (entry.flags() & (page_flag::lazy | page_flag::present)) == page_flag::lazy;
      uint64_t& sort = is_in_parent ? in_parent : is_elsewhere ? elsewhere : entry.shared_with_parent() ? shared : here;
      sort += pages;
    }
    std::string text = size_text(here * page_size) + " stored";
    if (in_parent) text += fmt::format(", {} in the parent image", size_text(in_parent * page_size));
    if (elsewhere) text += fmt::format(", {} left out (dump --lazy-pages)", size_text(elsewhere * page_size));
    if (shared) text += fmt::format(", {} shared with the parent task", size_text(shared * page_size));
    return text;
  }

  void descriptors(uint32_t pid, uint32_t table, std::vector<std::string>& lines) {
    const auto [owner, first] = tables_.emplace(table, pid);
    if (!first) {
      lines.push_back(fmt::format("descriptors of {}", owner->second));
      return;
    }
    std::vector<fdinfo_entry> slots;
    const std::string name = file_name("fdinfo-{}", table);
    if (!directory_.has(name)) return;
    if (const auto status = read_all(directory_, name, slots); !status) {
      lines.push_back(status.error().message());
      return;
    }
    std::ranges::sort(slots, {}, [](const fdinfo_entry& slot) { return slot.fd(); });
    for (const fdinfo_entry& slot : slots | std::views::take(descriptors_shown)) {
      const auto file = files_.find(slot.id());
      lines.push_back(fmt::format("fd {}  {}{}", slot.fd(),
                                  file == files_.end() ? "missing in files.img" : file->second,
                                  slot.flags() & 1 ? "  (close on exec)" : ""));
    }
    if (slots.size() > descriptors_shown) lines.push_back(fmt::format("… {} more", slots.size() - descriptors_shown));
  }

  const Directory& directory_;
  std::map<uint32_t, pstree_entry> tasks_;
  std::map<uint32_t, std::vector<uint32_t>> children_;
  std::map<uint32_t, std::string> files_;
  std::map<uint32_t, uint32_t> spaces_, tables_;  // object → the task it was printed for
  size_t printed_ = 0;
  std::string text_;
};

}  // namespace

Result<std::string> show_tree(const Directory& directory) { return Tree(directory).print(); }

}  // namespace stasis::image
