#include "cli/checkpoint.h"

#include <limits.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <string>

#include "cli/plan_cache.h"
#include "execute/execute.h"
#include "kernel/id_holder.h"
#include "memory/pages.h"
#include "plan/planner.h"
#include "plan/verify.h"
#include "resource/codec.h"
#include "resource/given_descriptors.h"
#include "resource/host.h"
#include "resource/inet_socket.h"
#include "resource/registry.h"
#include "resource/vdso.h"

namespace stasis::cli {
namespace {

/// Descriptors of ours that take the place of saved ones.
Status give(model::Application& application, const std::vector<std::string>& options, Diagnostics& diagnostics) {
  std::vector<resource::GivenDescriptor> given;
  for (const auto& option : options) given.push_back(TRY(resource::parse_given(option)));
  resource::give_descriptors(application, given, diagnostics);
  return {};
}

/// Every room says now, before anything is created, what could not be restored here.
Status validate(const model::Application& application, const image::Directory& images, const Session& session,
                const CheckpointPolicy& policy, Diagnostics diagnostics) {
  if (!policy.tcp_close) resource::check_connections(application, policy.tcp_established, diagnostics);
  for (const auto& task : application.tasks) {
    for (const auto* room : resource::task_rooms()) room->validate(application, task, diagnostics);
  }
  for (const auto* room : resource::file_rooms_in_use(application)) room->validate_all(application, diagnostics);
  TRY(resource::check_vdso(application, images, diagnostics));
  session.report(diagnostics);
  if (!diagnostics.refused()) return {};
  return fail(
      Error::conflict("restore the tree", "it cannot work here (each reason is named above); nothing was created"));
}

}  // namespace

Result<Checkpoint> load_checkpoint(const image::Directory& images, const Session& session,
                                   const CheckpointPolicy& policy) {
  Checkpoint checkpoint;
  auto decoded = TRY(resource::decode(images));
  checkpoint.application = std::move(decoded.application);
  auto& application = checkpoint.application;
  application.shell_job = policy.shell_job;
  application.compare_build_ids = policy.file_validation != "filesize";
  checkpoint.network = TRY(resource::read_network_facts(images));
  if (policy.tcp_close) resource::close_connections(application);
  Diagnostics diagnostics;
  TRY(give(application, policy.inherit_fd, diagnostics));
  TRY(validate(application, images, session, policy, std::move(diagnostics)));

  plan::PlanOptions options;
  options.pages = std::move(decoded.pages);
  options.lazy = policy.lazy_pages;
  options.occupied = TRY(execute::own_mappings());
  options.stacks_are_never_huge = resource::host().stacks_are_never_huge;
  // Restores that run at the same time have places of their own.
  constexpr pid_t for_transients = 256;
  options.first_transient_pid = kernel::quiet_ids(for_transients, static_cast<unsigned>(getpid()));
  // One more is opened in the meantime: the connection to who brings the missing pages.
  options.first_free_fd = TRY(execute::own_highest_fd()) + (policy.lazy_pages ? 2 : 1);
  options.descriptor_limit = static_cast<int>(std::min<uint64_t>(resource::host().limits[RLIMIT_NOFILE].hard, INT_MAX));
  for (const auto& [id, locations] : options.pages) {
    for (const auto& location : locations) {
      const uint64_t pages = location.range.size() / page_size;
      (location.shared_with_parent ? checkpoint.pages.pages_inherited : checkpoint.pages.pages_restored) += pages;
    }
  }
  if (!policy.plan_cache.empty()) checkpoint.cache = TRY(PlanCache::open(policy.plan_cache, application));
  if (checkpoint.cache) options.likely_births = checkpoint.cache->births();
  checkpoint.program = TRY_IN("plan the restore", plan::make_program(application, resource::contributors(), options));
  return checkpoint;
}

Status verify(const Checkpoint& checkpoint, const Session& session) {
  if (const auto rejection = plan::verify(checkpoint.program, checkpoint.application)) {
    return fail(Error::internal("verify the plan", rejection->message(checkpoint.program)));
  }
  if (checkpoint.cache) session.log().info("{}", checkpoint.cache->keep(checkpoint.program));
  session.log().info("Planned and verified {} commands", checkpoint.program.commands.size());
  return {};
}

}  // namespace stasis::cli
