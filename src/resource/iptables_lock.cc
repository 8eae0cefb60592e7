#include "resource/iptables_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "base/unique_fd.h"
#include "kernel/nf_tables.h"

namespace stasis::resource {
namespace {

using kernel::Connection;
using kernel::Endpoint;

constexpr const char* programs[] = {"iptables", "ip6tables"};

std::string address_of(const Endpoint& endpoint) {
  const auto text = kernel::to_text(endpoint);
  const auto address = text.substr(0, text.rfind(':'));
  return endpoint.family == AF_INET6 ? address.substr(1, address.size() - 2) : address;
}

/// Arguments of iptables, but for the first: whether the rule is inserted or deleted.
std::string rule(const char* chain, const Endpoint& source, const Endpoint& destination) {
  return fmt::format(
      "{} --protocol tcp -m mark ! --mark {:#x} --source {} --sport {} --destination {} --dport {} -j DROP", chain,
      kernel::repair_mark, address_of(source), source.port, address_of(destination), destination.port);
}

/// By program, in the order of `programs`.
using Rules = std::array<std::vector<std::string>, std::size(programs)>;
Rules rules_for(std::span<const Connection> connections) {
  Rules rules;
  for (const auto& connection : connections) {
    const auto local = kernel::as_sent(connection.local), remote = kernel::as_sent(connection.remote);
    auto& of_family = rules[local.family == AF_INET6 ? 1 : 0];
    of_family.push_back(rule("INPUT", remote, local));
    of_family.push_back(rule("OUTPUT", local, remote));
  }
  return rules;
}

/// What iptables-restore reads.
Result<UniqueFd> script(const std::vector<std::string>& rules, const char* action) {
  std::string text = "*filter\n";
  for (const auto& one : rules) text += fmt::format("{} {}\n", action, one);
  text += "COMMIT\n";
  UniqueFd file(memfd_create("iptables", MFD_CLOEXEC));
  if (!file.valid() || write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      lseek(file.get(), 0, SEEK_SET) != 0)
    return fail_errno("write rules");
  return file;
}

/// A shell with these descriptors of ours as its 0, 3, 4.
Result<pid_t> start_shell(const std::string& text, std::span<const int> descriptors) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  for (size_t index = 0; index < descriptors.size(); ++index) {
    if (descriptors[index] >= 0)
      posix_spawn_file_actions_adddup2(&actions, descriptors[index], index == 0 ? 0 : static_cast<int>(index) + 2);
  }
  const char* arguments[] = {"sh", "-c", text.c_str(), nullptr};
  pid_t child = 0;
  const int error = posix_spawn(&child, "/bin/sh", &actions, nullptr, const_cast<char**>(arguments), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return fail(Error::system("start a shell", error, "/bin/sh"));
  return child;
}

Result<int> status_of(pid_t child) {
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return fail_errno("waitpid");
  }
  return status;
}

/// Whoever waits for the end of `held` waits for that of the program, too: it may outlive us, and commit later.
Status insert(const char* program, const std::vector<std::string>& rules, int held) {
  if (rules.empty()) return {};
  const auto input = TRY(script(rules, "-I"));
  const int descriptors[] = {input.get(), held};
  const pid_t child = TRY(start_shell(fmt::format("exec {}-restore --noflush -w", program), descriptors));
  const int status = TRY(status_of(child));
  if (status == 0) return {};
  constexpr int not_found = 127;
  const bool missing = WIFEXITED(status) && WEXITSTATUS(status) == not_found;
  return fail(Error::conflict("drop packets",
                              missing ? fmt::format("the program {}-restore is not installed", program)
                                      : fmt::format("{}-restore ended with wait status {:#x}", program, status),
                              "iptables")
                  .advise("install iptables, or pass --network-lock nftables"));
}

/// A shell that waits for the end of whoever has its pipe, and removes the rules then, unless it has been told before
/// that they stay.
class Guard {
 public:
  static Result<Guard> start(const Rules& rules) {
    Guard guard;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return fail_errno("pipe2");
    const UniqueFd ours(ends[0]);
    guard.to_shell_ = UniqueFd(ends[1]);
    const auto four = TRY(script(rules[0], "-D")), six = TRY(script(rules[1], "-D"));
    const int descriptors[] = {ours.get(), four.get(), six.get()};
    guard.shell_ =
        TRY(start_shell("read -r word || { iptables-restore --noflush -w <&3; ip6tables-restore --noflush -w "
                        "<&4; } 2>/dev/null",
                        descriptors));
    return guard;
  }
  Guard(Guard&&) = default;
  ~Guard() { end(); }
  int pipe() const { return to_shell_.get(); }
  void let_them_stay() {
    (void)!write(to_shell_.get(), "stay\n", 5);
    end();
  }

 private:
  Guard() = default;
  void end() {
    if (!to_shell_.valid()) return;
    to_shell_.reset();
    (void)status_of(shell_);
  }
  UniqueFd to_shell_;
  pid_t shell_ = 0;
};

class IptablesLock final : public NetworkLock {
 public:
  explicit IptablesLock(Guard guard) : guard_(std::move(guard)) {}
  Status keep() override {
    guard_.let_them_stay();
    return {};
  }
  NetworkLockRecord record() const override { return {NetworkLockMethod::iptables, {}}; }

 private:
  Guard guard_;
};

}  // namespace

Result<std::unique_ptr<NetworkLock>> hold_iptables_lock(std::span<const Connection> connections) {
  const auto rules = rules_for(connections);
  auto guard = TRY(Guard::start(rules));
  for (size_t index = 0; index < std::size(programs); ++index) TRY(insert(programs[index], rules[index], guard.pipe()));
  return std::make_unique<IptablesLock>(std::move(guard));
}

Result<bool> remove_iptables_lock(std::span<const Connection> connections) {
  const auto rules = rules_for(connections);
  bool were_there = true;
  for (size_t index = 0; index < std::size(programs); ++index) {
    if (rules[index].empty()) continue;
    // All at once, which is refused as a whole if one is missing; then one by one.
    std::string text = fmt::format(
        "command -v {0} >/dev/null || exit 1; {0}-restore --noflush -w 2>/dev/null && exit 0;", programs[index]);
    text += fmt::format(" while read -r rule; do {} -w -D $rule 2>/dev/null; done <&3; exit 1", programs[index]);
    const auto all = TRY(script(rules[index], "-D"));
    UniqueFd single(memfd_create("iptables", MFD_CLOEXEC));
    std::string lines;
    for (const auto& one : rules[index]) lines += one + "\n";
    if (!single.valid() || write(single.get(), lines.data(), lines.size()) < 0 || lseek(single.get(), 0, SEEK_SET) != 0)
      return fail_errno("write rules");
    const int descriptors[] = {all.get(), single.get()};
    were_there &= TRY(status_of(TRY(start_shell(text, descriptors)))) == 0;
  }
  return were_there;
}

}  // namespace stasis::resource
