#include "resource/capture_context.h"

#include <algorithm>
#include <charconv>
#include <ranges>

namespace stasis::resource {

ObjectId CaptureContext::object(const std::string& key, bool& fresh) {
  const auto found = objects_.find(key);
  fresh = found == objects_.end();
  if (!fresh) return found->second;
  return objects_[key] = new_id();
}

std::optional<ObjectId> CaptureContext::known_object(const std::string& key) const {
  const auto found = objects_.find(key);
  return found == objects_.end() ? std::nullopt : std::optional(found->second);
}

bool is_external(const CapturePolicy& policy, std::string_view name) {
  return std::ranges::find(policy.external, name) != policy.external.end();
}

pid_t CaptureContext::witness(const model::Task& task) const {
  const pid_t tid = task.leader_has_ended() ? task.threads.at(1).tid.value : task.pid.value;
  const auto found = std::ranges::find(host_to_tree, tid, [](const auto& entry) { return entry.second; });
  return found == host_to_tree.end() ? tid : found->first;
}

void CaptureContext::roll_back() {
  for (const auto& undo : std::views::reverse(rollback_)) undo();
  rollback_.clear();
}

std::string map_files_path(pid_t host_pid, AddressRange range) {
  return fmt::format("/proc/{}/map_files/{:x}-{:x}", host_pid, range.begin, range.end);
}

Result<FileLink> read_file_link(const std::string& proc_path) {
  FileLink link;
  link.target = TRY(kernel::read_link(proc_path));
  if (stat(proc_path.c_str(), &link.stat) != 0) return fail_errno("stat", proc_path);
  return link;
}

namespace {

template <typename T>
Result<T> read_number(pid_t pid, std::string_view file, int base) {
  const auto text = TRY(kernel::read_proc(pid, file));
  T value{};
  if (std::from_chars(text.data(), text.data() + text.size(), value, base).ec != std::errc())
    return fail(Error::invalid(fmt::format("parse {}", file), "not a number", fmt::format("task {}", pid)));
  return value;
}

}  // namespace

Result<std::shared_ptr<const ProcessFacts>> read_facts(pid_t witness, const kernel::MappingFlags* flags) {
  auto facts = std::make_shared<ProcessFacts>();
  facts->stat = TRY(kernel::read_stat(witness));
  facts->auxv = TRY(kernel::read_auxv(witness));
  facts->mappings = TRY(flags != nullptr ? flags->read(witness) : kernel::read_smaps(witness));
  facts->limits = TRY(kernel::read_limits(witness));
  facts->timers = TRY(kernel::read_timers(witness));
  if (auto filter = read_number<uint32_t>(witness, "coredump_filter", 16)) facts->coredump_filter = *filter;
  facts->oom_score_adj = TRY(read_number<int32_t>(witness, "oom_score_adj", 10));
  facts->executable = TRY(read_file_link(fmt::format("/proc/{}/exe", witness)));
  facts->working_directory = TRY(read_file_link(fmt::format("/proc/{}/cwd", witness)));
  facts->root_directory = TRY(read_file_link(fmt::format("/proc/{}/root", witness)));
  return facts;
}

Result<const ProcessFacts*> ProcessView::facts() const {
  if (!known_facts) known_facts = TRY(read_facts(witness()));
  return known_facts.get();
}

Result<const kernel::StatusInfo*> ProcessView::status(size_t thread) const {
  statuses.resize(host_tids.size());
  auto& known = statuses.at(thread);
  if (!known) known = TRY(kernel::read_thread_status(host_pid, host_tids[thread]));
  return &*known;
}

}  // namespace stasis::resource
