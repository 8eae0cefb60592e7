// stasis restore: images → Application → Program → verified → processes.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <optional>

#include "cli/background.h"
#include "cli/exec_command.h"
#include "cli/checkpoint.h"
#include "cli/key_options.h"
#include "cli/network_options.h"
#include "cli/session.h"
#include "cli/shell_job.h"
#include "cli/statistics.h"
#include "cli/subcommands.h"
#include "cli/until_exit.h"
#include "execute/execute.h"
#include "kernel/missing_pages.h"
#include "kernel/proc.h"
#include "kernel/process.h"
#include "memory/check_images.h"
#include "memory/consumed_pages.h"
#include "memory/lazy_link.h"
#include "plan/lazy_memory.h"
#include "resource/codec.h"
#include "resource/inet_socket.h"

namespace stasis::cli {
namespace {

struct Options {
  CommonOptions common;
  RestoreOptions restore;
  NetworkRestoreOptions network;
  KeyOptions keys;
  bool exec_cmd = false, auto_dedup = false;
  int fail_at_command = -1;
};

/// Goes again with a restore that fails after it was written.
class Pidfile {
 public:
  explicit Pidfile(const Session& session) : session_(session) {}
  ~Pidfile() {
    if (written_) remove_pidfile(session_);
  }
  Pidfile(const Pidfile&) = delete;
  Pidfile& operator=(const Pidfile&) = delete;

  Status write(pid_t root) {
    TRY(write_pidfile(session_, root));
    written_ = !session_.options().pidfile.empty();
    return {};
  }
  void keep() { written_ = false; }

 private:
  const Session& session_;
  bool written_ = false;
};

/// Packets of the connections pass again, for good only if all goes well.
class NetworkOpening {
 public:
  explicit NetworkOpening(const Checkpoint& checkpoint)
      : lock_(checkpoint.network.lock), connections_(resource::connections_of(checkpoint.application)) {}

  Status open() {
    if (connections_.empty()) return {};
    was_locked_ = TRY_IN("let packets of TCP connections pass", resource::remove_network_lock(lock_, connections_));
    return {};
  }
  void close(const Session& session) const {
    if (!was_locked_) return;
    const Status renewed = resource::renew_network_lock(lock_, connections_);
    if (!renewed) session.log().error("{}", renewed.error().message());
  }

 private:
  resource::NetworkLockRecord lock_;
  std::vector<kernel::Connection> connections_;
  bool was_locked_ = false;
};

/// --auto-dedup: pages that processes have are given back to the file system. Says what has become of the images.
class Consumption {
 public:
  explicit Consumption(const Session& session) : session_(session) {}
  ~Consumption() {
    if (!pages_ || is_complete_ || !pages_->has_begun()) return;
    session_.log().error("Pages have been released (--auto-dedup): these images cannot be restored again");
  }
  Consumption(const Consumption&) = delete;
  Consumption& operator=(const Consumption&) = delete;

  Status begin(const image::Directory& images) {
    if (images.consumes_pages()) pages_ = TRY_IN("prepare --auto-dedup", memory::ConsumedPages::open(images));
    return {};
  }
  void complete() {
    is_complete_ = true;
    if (!pages_) return;
    pages_->release_rest();
    if (const auto trouble = pages_->trouble())
      session_.log().warn("--auto-dedup has not released all pages: {}", trouble->message());
  }
  memory::ConsumedPages* pages() const { return pages_.get(); }

 private:
  const Session& session_;
  std::unique_ptr<memory::ConsumedPages> pages_;
  bool is_complete_ = false;
};

/// From here on the daemon alone is answerable for the memory that is missing.
Status leave_memory_to(memory::LazyDaemon& daemon, pid_t root, const model::Application& application) {
  const auto needed = plan::needed_at_once(application, {});
  for (const auto& [space, owner] : resource::address_space_owners(application)) {
    if (const auto found = needed.find(space); found != needed.end()) TRY(daemon.need(owner.value, found->second));
  }
  for (const pid_t pid : kernel::list_descendants(root)) {
    const auto process = kernel::pidfd_open(pid);
    if (process) TRY(daemon.add_process(process->get()));  // a zombie may have been reaped
  }
  return daemon.commit();
}

Result<pid_t> restore(const Options& options, const Session& session) {
  auto images = TRY(open_images(options.common.images_dir, options.keys));
  if (options.auto_dedup) images.consume_pages();
  const auto& checkpoint = until_exit(
      TRY(load_checkpoint(images, session,
                          {options.restore.shell_job, options.network.tcp_established, options.network.tcp_close,
                           options.restore.file_validation, options.restore.plan_cache, options.restore.inherit_fd,
                           options.restore.lazy_pages})));
  // Pages are deciphered while the tree is built. That they are what was written is known before it begins.
  TRY_IN("check the encrypted images", memory::check_images(images));
  Consumption consumption(session);
  TRY(consumption.begin(images));
  std::optional<memory::LazyDaemon> daemon;
  if (options.restore.lazy_pages) {
    TRY(kernel::MissingPages::probe());
    daemon = TRY(memory::LazyDaemon::connect(session.work_path(".")));
  }
  TRY(session.run_scripts("pre-restore", 0));

  Pidfile pidfile(session);
  execute::ExecuteOptions execution;
  execution.sibling = options.restore.sibling;
  execution.leave_stopped = options.restore.leave_stopped;
  execution.fail_at_command = options.fail_at_command;
  execution.verify = [&] { return verify(checkpoint, session); };
  execution.consumed = consumption.pages();
  execution.before_resume = [&](pid_t root) -> Status {
    TRY(pidfile.write(root));
    return session.run_scripts("post-restore", root);
  };
  NetworkOpening network(checkpoint);
  execution.at_last = [&] { return network.open(); };
  execution.undo_last = [&] { network.close(session); };
  execution.hand_over = [&](const execute::OwedPages& owed) {
    return daemon->hand_over(owed.owner.value, owed.descriptor.fd(), owed.runs);
  };
  const uint64_t start = session.microseconds();
  auto tree = TRY(execute::BuiltTree::build(checkpoint.program, checkpoint.application, images, execution));
  const uint64_t built = session.microseconds();
  const pid_t root = tree->host_root();
  TRY(session.run_scripts("pre-resume", root));
  if (daemon) TRY(leave_memory_to(*daemon, root, checkpoint.application));
  TRY(tree->resume());
  if (daemon) TRY(daemon->complete());
  pidfile.keep();
  consumption.complete();
  RestoreStatistics statistics = checkpoint.pages;
  statistics.forking_us = built - start;
  statistics.restore_us = session.microseconds();
  write_restore_statistics(session, statistics);
  until_exit(std::move(tree));
  const Status told = session.run_scripts("post-resume", root);
  if (!told) session.log().error("{}", told.error().message());  // the tree runs: too late for a veto
  session.log().info("Restore finished successfully. Tasks resumed.");
  return root;
}

Status restore_and_follow(const Options& options, const Session& session) {
  if (options.exec_cmd) TRY(check_command(options.restore.exec_cmd.front()));
  const pid_t root = TRY(restore(options, session));
  if (options.exec_cmd) {
    session.log().flush();
    Status failed = become(options.restore.exec_cmd);
    end_tree(root);  // a restore that fails leaves nothing behind
    remove_pidfile(session);
    return failed;
  }
  // Without --restore-detached criu stays the parent until the root ends.
  if (!options.restore.detached && !options.restore.sibling)
    options.restore.shell_job ? wait_for_job(root) : wait_for_root(root);
  return {};
}

}  // namespace

void add_restore(CLI::App& app, Action& chosen, Face) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("restore", "Bring a saved tree back");
  add_common_options(*command, options->common);
  add_switch(*command, "-d,--restore-detached", options->restore.detached,
             "Return once the tree runs, instead of waiting for its end");
  add_switch(*command, "-S,--restore-sibling", options->restore.sibling, "The root becomes a child of our parent");
  add_switch(*command, "-s,--leave-stopped", options->restore.leave_stopped, "Leave the restored tree stopped");
  add_switch(*command, "-j,--shell-job", options->restore.shell_job,
             "Take session and terminal from the shell we run under");
  add_switch(*command, "--lazy-pages", options->restore.lazy_pages,
             "Let the tree run before its memory is there: `stasis lazy-pages` brings it");
  add_switch(*command, "--auto-dedup", options->auto_dedup,
             "Release pages of the images as they are restored: they cannot be restored again");
  add_network_options_of_restore(*command, options->network);
  add_key_options(*command, options->keys);
  command
      ->add_option("--file-validation", options->restore.file_validation,
                   "How changed files are recognised: filesize, buildid or checksum")
      ->check(CLI::IsMember({"filesize", "buildid", "checksum"}));
  add_inherit_option(*command, options->restore.inherit_fd);
  command->add_option("--plan-cache", options->restore.plan_cache, "Directory with programs for trees of known shapes")
      ->type_name("DIR");
  add_switch(*command, "--exec-cmd", options->exec_cmd, "Become the command after -- once the tree runs");
  command->add_option("command", options->restore.exec_cmd, "The command for --exec-cmd")->type_name("-- CMD ARGS");
  command->add_option("--fail-at-command", options->fail_at_command)->group("");  // fault injection by the tests
  command->callback([options, &chosen] {
    refuse_lazy_dedup(options->restore.lazy_pages, options->auto_dedup);
    if (options->exec_cmd == options->restore.exec_cmd.empty()) {
      throw CLI::ValidationError("--exec-cmd", "goes with a command after --");
    }
    chosen = [options] {
      return run_in_session(options->common,
                            [&](const Session& session) { return restore_and_follow(*options, session); });
    };
  });
}

}  // namespace stasis::cli
