// Terminals: which session each controls, and which group is in its foreground (drivers/tty/tty_jobctrl.c).
#include <fcntl.h>

#include "plan/verify_interpreter.h"

namespace stasis::plan::verifier {

void Interpreter::apply(const OpenTerminal& open) {
  const uint32_t index = model::index_of_terminal(open.terminal);
  const bool is_pair = index <= model::last_terminal_index && model::is_pseudo_terminal(open.terminal);
  if (open.path.empty())
    require(is_pair, "{:#x} is not the device number of a pseudo-terminal (ENXIO)", open.terminal);
  else
    require(!is_pair && open.master_fd == -1 && open.slave_fd >= 0 && open.description.value == 0,
            "a pseudo-terminal is not opened by a path, and no other has a master side");
  require(problem_ || terminals_.try_emplace(open.terminal).second, "{} is open already (EBUSY)",
          model::terminal_name(open.terminal));
  if (const auto wanted = wanted_.terminals.find(open.terminal);
      extent_ == Extent::whole && wanted != wanted_.terminals.end()) {
    const auto master = wanted_.descriptions.find(wanted->second.master);
    require(open.description == wanted->second.master, "its master side is {} instead of {}", open.description,
            wanted->second.master);
    require(master == wanted_.descriptions.end() || ((open.flags ^ master->second.flags) & O_ACCMODE) == 0,
            "{} is open for another access", open.description);
  }
  if (problem_) return;
  terminals_.at(open.terminal).slave_opened = open.slave_fd >= 0;
  terminals_.at(open.terminal).path = open.path;
  if (open.path.empty()) {
    put(open.master_fd, {.description = open.description,
                         .close_on_exec = (open.flags & O_CLOEXEC) != 0,
                         .terminal = open.terminal,
                         .is_master = true});
  }
  if (open.slave_fd >= 0) put(open.slave_fd, {.close_on_exec = true, .terminal = open.terminal});
}

uint64_t Interpreter::terminal_under(int fd) {
  const auto* slot = open_slot(fd);
  require(slot == nullptr || slot->terminal != 0, "descriptor {} is no terminal (ENOTTY)", fd);
  return slot == nullptr || problem_ ? 0 : slot->terminal;
}

void Interpreter::apply(const SetControllingTerminal& set) {
  const uint64_t terminal = terminal_under(set.fd);
  require(now_->session == now_->pid, "it leads no session (EPERM)");
  require(now_->terminal == 0, "it has a controlling terminal already (EPERM)");
  if (problem_) return;
  auto& state = terminals_.at(terminal);
  require(state.session.value == 0, "the terminal controls session {} (EPERM)", state.session);
  writes(state.control, "the session of the terminal");
  writes(now_->control, "its controlling terminal");
  now_->terminal = terminal;
  state.session = now_->pid, state.foreground = now_->group;
}

void Interpreter::apply(const LeaveTerminal& leave) {
  const uint64_t terminal = terminal_under(leave.fd);
  require(problem_ || (now_->terminal == terminal && !now_->table->slots.at(leave.fd).is_master),
          "descriptor {} is not the terminal that controls it (ENOTTY)", leave.fd);
  require(now_->session != now_->pid, "it leads the session, which would lose the terminal, and be hung up");
  writes(now_->control, "its controlling terminal");
  if (!problem_) now_->terminal = 0;
}

void Interpreter::apply(const SetForegroundGroup& set) {
  const uint64_t terminal = terminal_under(set.fd);
  require(problem_ || now_->terminal == terminal, "the terminal does not control it (ENOTTY)");
  require(problem_ || spaces_.sees(now_->pid_space, set.pgid.value),
          "group {} is led from outside of its pid namespace (ESRCH)", set.pgid);
  if (problem_) return;
  auto& state = terminals_.at(terminal);
  require(now_->group == state.foreground, "it is in the background: the kernel stops it (SIGTTOU)");
  if (set.pgid != now_->group) rely_on_member(set.pgid);
  writes(state.control, "the foreground of the terminal");
  state.foreground = set.pgid;
}

/// Called when a leader ends: its session loses the terminal (kernel/exit.c, disassociate_ctty).
void Interpreter::hang_up() {
  auto& state = terminals_.at(now_->terminal);
  const auto members = state.foreground.value == 0 ? std::set<Pid>{} : group_members_[state.foreground];
  for (const Pid pid : members) {
    require(pid == now_->pid || !processes_.at(pid).alive,
            "{}, in the foreground of its terminal, would be sent SIGHUP", pid);
  }
  writes(state.control, "the session of the terminal");
  for (auto& [pid, process] : processes_) {
    if (process.session != now_->pid || process.reaped || !process.alive) continue;
    writes(process.control, "the controlling terminal of {}", pid);
    process.terminal = 0;
  }
  state.session = state.foreground = {};
}

/// What was in the foreground may have ended since, or have become a session of its own.
Pid Interpreter::foreground_of(const TerminalState& terminal) const {
  const auto members = group_members_.find(terminal.foreground);
  const bool anybody = terminal.foreground.value != 0 && members != group_members_.end() && !members->second.empty() &&
                       processes_.at(*members->second.begin()).session == terminal.session;
  return anybody ? terminal.foreground : Pid{};
}

std::map<uint64_t, model::Terminal> Interpreter::terminals() const {
  std::map<uint64_t, model::Terminal> found;
  for (const auto& [number, state] : terminals_) {
    if (extent_ == Extent::tree && state.session.value == 0) continue;
    found[number] = {.session = state.session,
                     .foreground = foreground_of(state),
                     .slave_opened = state.slave_opened,
                     .path = state.path};
  }
  return found;
}

void Interpreter::compare_terminals() {
  for (const auto& [number, state] : terminals_) {
    // A bare tree does not say who has what open: there are only terminals that control somebody.
    const bool is_there = extent_ == Extent::whole || state.session.value != 0;
    require(!is_there || wanted_.terminals.contains(number), "{} is not part of the application",
            model::terminal_name(number));
  }
  for (const auto& [number, wanted] : wanted_.terminals) {
    const auto name = model::terminal_name(number);
    const auto made = terminals_.find(number);
    require(made != terminals_.end(), "nothing opens {}", name);
    if (problem_) return;
    const auto& state = made->second;
    require(state.path == wanted.path, "{} is opened as '{}' instead of '{}'", name, state.path, wanted.path);
    require(state.session == wanted.session, "{} controls session {} instead of {}", name, state.session,
            wanted.session);
    require(state.slave_opened == wanted.slave_opened, "the slave side of {} should {}have been opened", name,
            wanted.slave_opened ? "" : "not ");
    const Pid foreground = foreground_of(state);
    require(foreground == wanted.foreground, "group {} is in the foreground of {} instead of {}", foreground, name,
            wanted.foreground);
  }
}

}  // namespace stasis::plan::verifier
