// stasis lazy-pages: brings the memory of a tree that `stasis restore --lazy-pages` lets run before.

#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "cli/background.h"
#include "cli/key_options.h"
#include "cli/session.h"
#include "cli/subcommands.h"
#include "cli/transfer_options.h"
#include "memory/lazy_guard.h"
#include "memory/lazy_link.h"
#include "memory/lazy_service.h"

namespace stasis::cli {
namespace {

struct Options {
  CommonOptions common;
  KeyOptions keys;
  PageServerOptions page_server;
  bool daemon = false;
  int status_fd = -1;
  bool only_faults = false;
};

/// With a session of our own, and nothing of the caller's terminal. The caller's command waits for a byte of zero to be
/// written to the result, and succeeds then.
Result<UniqueFd> become_daemon() {
  int ends[2] = {-1, -1};
  if (pipe2(ends, O_CLOEXEC) != 0) return fail_errno("pipe", "the daemon");
  UniqueFd waits(ends[0]), ready(ends[1]);
  const pid_t child = fork();
  if (child < 0) return fail_errno("fork", "the daemon");
  if (child != 0) {
    ready.reset();
    char byte = 1;
    _exit(read(waits.get(), &byte, 1) == 1 && byte == 0 ? 0 : 1);
  }
  TRY(leave_terminal());
  return ready;
}

/// Who brings what the images lack.
Result<std::unique_ptr<memory::PageFetcher>> find_page_server(const PageServerOptions& options,
                                                              const Session& session) {
  if (!options.use) return nullptr;
  return std::make_unique<memory::PageFetcher>(TRY(connect(options.transfer, session)));
}

Result<memory::LazySource> source_of(const image::Directory& images, pid_t task, memory::PageFetcher* fetcher) {
  auto pages = TRY(memory::ImagePages::open(images, std::to_string(task)));
  memory::LazySource source{task, nullptr, {}, fetcher};
  for (const auto& run : pages->runs()) {
    if (run.elsewhere) source.elsewhere.push_back(run.range);
  }
  source.images = std::move(pages);
  if (source.elsewhere.empty() || fetcher != nullptr) return source;
  return fail(Error::conflict("find its pages", "they are not all in the images: `dump --lazy-pages` has them")
                  .advise("give `stasis lazy-pages` --page-server, --address and --port of that dump"));
}

Status lazy_pages(const Options& options, const Session& session) {
  const auto images = TRY(open_images(options.common.images_dir, options.keys));
  TRY(kernel::MissingPages::probe());
  auto listener = TRY(memory::LazyListener::open(session.work_path(".")));
  const auto fetcher = TRY(find_page_server(options.page_server, session));
  UniqueFd caller;
  if (options.daemon) caller = TRY(become_daemon());
  TRY(write_pidfile(session, getpid()));
  TRY(tell_status(options.status_fd));
  if (const char ready = 0; caller.valid()) (void)!write(caller.get(), &ready, 1);
  caller.reset();
  const auto log = [&](const std::string& text) {
    session.log().info("{}", text);
    session.log().flush();  // there are two processes, neither of which may keep lines of its own
  };
  const auto source = [&](pid_t owner) { return source_of(images, owner, fetcher.get()); };
  const auto ending = TRY(Ending::watch());
  session.log().flush();
  const auto guard = TRY(memory::LazyGuard::start([&](const Error& error) {
    (void)session.failed(error);
    session.log().flush();
  }));
  return memory::LazyService(std::move(listener), ending.descriptor(),
                             {source, fetcher.get(), log, options.only_faults})
      .run();
}

}  // namespace

void add_lazy_pages(CLI::App& app, Action& chosen, Face) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("lazy-pages", "Bring the memory of a tree that `restore --lazy-pages` lets run before");
  add_common_options(*command, options->common);
  add_key_options(*command, options->keys);
  add_page_server_options(*command, options->page_server, "Fetch what the images lack from `stasis dump --lazy-pages`");
  add_switch(*command, "--daemon", options->daemon, "Go to the background once a restore can come");
  add_status_fd(*command, options->status_fd, "a restore can come");
  command->add_flag("--only-faults", options->only_faults)->group("");  // for tests: memory stays missing
  command->callback([options, &chosen] {
    chosen = [options] {
      return run_in_session(options->common, [&](const Session& session) { return lazy_pages(*options, session); });
    };
  });
}

}  // namespace stasis::cli
