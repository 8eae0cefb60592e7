#include "cli/post_copy.h"

#include <map>
#include <memory>

#include <fmt/format.h>

#include "base/patience.h"
#include "cli/background.h"
#include "memory/page_sender.h"
#include "resource/codec.h"

namespace stasis::cli {

Result<PostCopy> PostCopy::prepare(const TransferOptions& options, int status_fd, const Session& session) {
  auto host = TRY(Host::open(options, session));
  session.log().flush();  // where it listens
  return PostCopy(options, status_fd, std::move(host));
}

const plan::RangesOfSpaces& PostCopy::choose(const model::Application& application) {
  return left_out_ = plan::pages_that_can_wait(application);
}

Status PostCopy::serve(capture::SeizedTree& tree, const image::Directory& images, const Session& session) {
  auto given = give(tree, session);
  if (given) return {};
  const auto nothing_else = [](std::string_view) { return false; };
  if (const auto removed = images.begin(nothing_else); !removed) session.log().error("{}", removed.error().message());
  const bool has_ended = given.error().code() == ErrorCode::gone;
  auto error = std::move(given).error().within("give the tree's memory away");
  if (has_ended)
    return fail(std::move(error).advise("it was killed here: what may run elsewhere is ended for want of it"));
  if (!is_taken_over_) return fail(std::move(error).advise("the tree goes on here: nobody has asked for its memory"));
  return fail(std::move(error).advise(
      "the tree is left stopped here: it may have run elsewhere. Where it certainly does not run, SIGCONT to its "
      "processes lets it go on"));
}

Status PostCopy::give(capture::SeizedTree& tree, const Session& session) {
  const Ending ending = TRY(Ending::watch());
  TRY(say_ready(session, status_fd_));
  const auto stream = TRY(host_.await(session, &ending));
  TRY(memory::prepare_connection(stream->descriptor(), patience));  // it may be silent, but not in mid-sentence

  std::map<pid_t, ObjectId> spaces;
  for (const auto& [space, owner] : resource::address_space_owners(tree.context().application))
    spaces.emplace(owner.value, space);
  memory::PageSender sender([&](pid_t task) -> Result<memory::GivenPages> {
    const auto space = spaces.find(task);
    if (space == spaces.end())
      return fail(Error::invalid("find memory", "there is no such task", std::to_string(task)));
    return memory::GivenPages{TRY(tree.memory().address_space(space->second)), left_out_[space->second]};
  });
  sender.before_first([&] { return take_over(tree, session); });
  auto served = sender.serve(*stream, [&] { return ending.wait_for(stream->descriptor()); });
  session.log().info("{} KiB of pages were given to {}", sender.bytes_given() >> 10, stream->peer());
  TRY(std::move(served));
  end_connection(*stream, options_, session);
  return {};
}

/// The other side lets its tree run when it has an answer.
Status PostCopy::take_over(capture::SeizedTree& tree, const Session& session) {
  is_taken_over_ = true;
  tree.stop_if_we_die();
  session.log().info("The tree is taken over: from here on it must not go on here");
  session.log().flush();
  return {};
}

}  // namespace stasis::cli
