#include "cli/checkpoint.h"

#include <fstream>

#include "execute/execute.h"
#include "memory/pages.h"
#include "plan/planner.h"
#include "plan/verify.h"
#include "resource/codec.h"
#include "resource/registry.h"

namespace stasis::cli {
namespace {

/// Every room says now, before anything is created, what could not be restored here.
Status validate(const model::Application& application, const Session& session) {
  Diagnostics diagnostics;
  for (const auto& task : application.tasks) {
    for (const auto* room : resource::task_rooms()) room->validate(application, task, diagnostics);
  }
  for (const auto& [id, description] : application.descriptions) {
    if (const auto* room = resource::file_room(description.state.value->kind())) {
      room->validate(application, description, diagnostics);
    }
  }
  session.report(diagnostics);
  if (!diagnostics.refused()) return {};
  return fail(Error::conflict("restore the tree", "it cannot work here (each reason is named above); nothing was created"));
}

/// The kernel hands out pids in a circle: the far end of a large range is the last to be reached. 0 where the range is small.
pid_t rarely_used_pids() {
  constexpr pid_t smallest_default = 32768, room = 16384;
  pid_t limit = 0;
  std::ifstream("/proc/sys/kernel/pid_max") >> limit;
  return limit > 2 * smallest_default ? limit - room : 0;
}

}  // namespace

Result<Checkpoint> load_checkpoint(const image::Directory& images, const Session& session, const CheckpointPolicy& policy) {
  Checkpoint checkpoint;
  checkpoint.application = TRY(resource::decode(images));
  auto& application = checkpoint.application;
  application.shell_job = policy.shell_job;
  TRY(validate(application, session));

  plan::PlanOptions options;
  options.pages = TRY(resource::locate_pages(application, images));
  options.occupied = TRY(execute::own_mappings());
  options.first_transient_pid = rarely_used_pids();
  options.first_free_fd = TRY(execute::own_highest_fd()) + 1;
  for (const auto& [id, locations] : options.pages) {
    for (const auto& location : locations) {
      const uint64_t pages = location.range.size() / page_size;
      (location.shared_with_parent ? checkpoint.pages.pages_inherited : checkpoint.pages.pages_restored) += pages;
    }
  }
  checkpoint.program = TRY_IN("plan the restore", plan::make_program(application, resource::contributors(), options));
  if (const auto rejection = plan::verify(checkpoint.program, application)) {
    return fail(Error::internal("verify the plan", rejection->message(checkpoint.program)));
  }
  session.log().info("Planned and verified {} commands", checkpoint.program.commands.size());
  return checkpoint;
}

}  // namespace stasis::cli
