#include "cli/shell_job.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "base/unique_fd.h"

namespace stasis::cli {
namespace {

volatile sig_atomic_t continued = 0, key = 0;

/// Without SA_RESTART, for waitpid to end.
void handle(int signal, void (*handler)(int)) {
  struct sigaction action{};
  action.sa_handler = handler;
  sigaction(signal, &action, nullptr);
}

constexpr int keys[] = {SIGINT, SIGQUIT, SIGTSTP};
void note_key(int signal) { key = signal; }

class Job {
 public:
  explicit Job(pid_t root) : root_(root), terminal_(open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC)) {
    handle(SIGCONT, [](int) { continued = 1; });
    for (const int signal : keys) handle(signal, note_key);
  }

  /// The root has stopped.
  void stopped() {
    if (!terminal_.valid() || getpgid(root_) == getpgrp()) return;
    // It has been in the background, and has met the terminal just now.
    if (has_terminal()) return go_on();
    continued = 0;
    // Of an orphaned process group nobody would ever go on with us: the kernel does not stop it (setpgid(2)).
    handle(SIGTSTP, SIG_DFL);
    raise(SIGTSTP);
    handle(SIGTSTP, note_key);
    if (continued != 0) go_on();
  }

  /// The shell goes on with its job, perhaps in the foreground.
  void go_on() {
    continued = 0;
    pass_on(SIGCONT);
  }

  /// Meant for the job: a shell that brings one that runs to the foreground gives us the terminal without a word.
  void key_pressed() { pass_on(std::exchange(key, 0)); }

 private:
  void pass_on(int signal) {
    const pid_t group = getpgid(root_);
    if (group < 0 || group == getpgrp()) return;
    if (has_terminal()) tcsetpgrp(terminal_.get(), group);
    kill(-group, signal);
  }
  bool has_terminal() const { return terminal_.valid() && tcgetpgrp(terminal_.get()) == getpgrp(); }

  pid_t root_;
  UniqueFd terminal_;
};

}  // namespace

void wait_for_root(pid_t root) {
  while (waitpid(root, nullptr, 0) < 0 && errno == EINTR) {
  }
}

void wait_for_job(pid_t root) {
  Job job(root);
  for (;;) {
    int status = 0;
    const pid_t found = waitpid(root, &status, WUNTRACED);
    if (found < 0 && errno != EINTR) return;
    if (found > 0 && !WIFSTOPPED(status)) return;
    if (found > 0) job.stopped();
    if (continued != 0) job.go_on();
    if (key != 0) job.key_pressed();
  }
}

}  // namespace stasis::cli
