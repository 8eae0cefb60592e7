#include "cli/shell_job.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/unique_fd.h"

namespace stasis::cli {
namespace {

/// What a job's shell, the terminal and its root can tell. Blocked, it stays pending until it is taken, whatever we are
/// about: nothing comes unnoticed between a look and the waiting. It stays so until the end of this program.
class Signals {
 public:
  Signals() {
    sigemptyset(&awaited_);
    for (const int one : {SIGCHLD, SIGCONT, SIGINT, SIGQUIT, SIGTSTP}) sigaddset(&awaited_, one);
    sigprocmask(SIG_BLOCK, &awaited_, nullptr);
    signal(SIGCHLD, SIG_DFL);  // of a child's end whose signal is ignored nothing comes (sigaction(2))
  }
  int next() const {
    int one = 0;
    sigwait(&awaited_, &one);
    return one;
  }

 private:
  sigset_t awaited_;
};

class Job {
 public:
  explicit Job(pid_t root) : root_(root), terminal_(open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC)) {}

  /// The root has stopped.
  void stopped() const {
    if (!terminal_.valid() || getpgid(root_) == getpgrp()) return;
    // It has been in the background, and has met the terminal just now.
    if (has_terminal()) return pass_on(SIGCONT);
    stop_here();
  }

  /// A key is meant for the job: a shell that brings one that runs to the foreground gives us the terminal without a
  /// word. SIGCONT: the shell goes on with its job, perhaps in the foreground.
  void pass_on(int signal) const {
    const pid_t group = getpgid(root_);
    if (group < 0 || group == getpgrp()) return;
    if (has_terminal()) tcsetpgrp(terminal_.get(), group);
    kill(-group, signal);
  }

 private:
  bool has_terminal() const { return terminal_.valid() && tcgetpgrp(terminal_.get()) == getpgrp(); }

  /// Until the shell goes on with us: its SIGCONT is pending then. Of an orphaned process group nobody would ever do
  /// so: the kernel does not stop it (setpgid(2)).
  static void stop_here() {
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTSTP);
    signal(SIGTSTP, SIG_DFL);
    raise(SIGTSTP);
    sigprocmask(SIG_UNBLOCK, &stop, nullptr);
    sigprocmask(SIG_BLOCK, &stop, nullptr);
  }

  pid_t root_;
  UniqueFd terminal_;
};

}  // namespace

void wait_for_root(pid_t root) {
  while (waitpid(root, nullptr, 0) < 0 && errno == EINTR) {
  }
}

void wait_for_job(pid_t root) {
  const Signals signals;
  const Job job(root);
  for (;;) {
    int status = 0;
    const pid_t found = waitpid(root, &status, WNOHANG | WUNTRACED);
    if (found < 0 || (found > 0 && !WIFSTOPPED(status))) return;
    if (found > 0) {
      job.stopped();
      continue;
    }
    if (const int signal = signals.next(); signal != SIGCHLD) job.pass_on(signal);
  }
}

}  // namespace stasis::cli
