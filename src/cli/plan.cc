// stasis plan: the verified Program of a checkpoint, as restore would run it; nothing is created.

#include <CLI/CLI.hpp>

#include "cli/checkpoint.h"
#include "cli/key_options.h"
#include "cli/subcommands.h"

namespace stasis::cli {
namespace {

struct Options {
  CommonOptions common;
  CheckpointPolicy policy;
  KeyOptions keys;
  std::string format = "text";
  bool auto_dedup = false;
};

Result<std::string> planned(const Options& options, const Session& session) {
  auto images = TRY(open_images(options.common.images_dir, options.keys));
  if (options.auto_dedup) images.consume_pages();
  const auto checkpoint = TRY(load_checkpoint(images, session, options.policy));
  TRY(verify(checkpoint, session));
  return plan::to_form(checkpoint.program, options.format);
}

}  // namespace

void add_plan(CLI::App& app, Action& chosen, Face) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("plan", "Print the verified program that restore would run");
  add_common_options(*command, options->common);
  add_format_option(*command, options->format);
  add_switch(*command, "-j,--shell-job", options->policy.shell_job, "As for restore");
  command->add_option("--file-validation", options->policy.file_validation, "As for restore")
      ->check(CLI::IsMember({"filesize", "buildid", "checksum"}));
  add_switch(*command, "--lazy-pages", options->policy.lazy_pages, "As for restore");
  add_switch(*command, "--auto-dedup", options->auto_dedup, "As for restore");
  add_switch(*command, "--tcp-established", options->policy.tcp_established,
             "As for restore; so unless --no- is given");
  add_switch(*command, "--tcp-close", options->policy.tcp_close, "As for restore");
  add_key_options(*command, options->keys);
  add_inherit_option(*command, options->policy.inherit_fd);
  command->add_option("--plan-cache", options->policy.plan_cache, "As for restore")->type_name("DIR");
  command->callback([options, &chosen] {
    refuse_lazy_dedup(options->policy.lazy_pages, options->auto_dedup);
    chosen = [options] {
      return run_in_session(options->common, [&](const Session& session) -> Status {
        fmt::print("{}\n", TRY(planned(*options, session)));
        return {};
      });
    };
  });
}

}  // namespace stasis::cli
