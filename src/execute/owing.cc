#include "execute/owing.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernel/process.h"

namespace stasis::execute {

Owing::Owing(const plan::Program& program, const Lowered& lowered, RequestScene scene,
             const std::function<Status(OwedPages)>& hand_over)
    : program_(program), requests_(lowered.owings), scene_(std::move(scene)), hand_over_(hand_over) {
  if (!requests_.all.empty()) thread_ = std::thread([this] { work(); });
}

Owing::~Owing() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  scene_.wake(requests_.asked);
  thread_.join();
}

std::optional<Error> Owing::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

void Owing::work() {
  std::vector<const Request*> open;
  for (const Request& request : requests_.all) open.push_back(&request);
  while (!open.empty() && !scene_.has_failed()) {
    const uint32_t seen = scene_.value(requests_.asked);
    const auto asked = std::ranges::partition(open, [&](const Request* one) { return scene_.value(one->asked) == 0; });
    for (const Request* request : asked) {
      const auto& command = program_.commands[request->command];
      const auto served = serve(command, std::get<plan::OwePages>(command.action));
      if (served) {
        scene_.post(request->done);
        continue;
      }
      {
        const std::lock_guard lock(mutex_);
        error_ =
            Error(served.error()).within(fmt::format("command {} OWE_PAGES of task {}", request->command, command.pid));
      }
      return scene_.cancel();
    }
    if (!asked.empty()) {
      open.erase(asked.begin(), asked.end());
      continue;
    }
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
    }
    scene_.sleep_on(requests_.asked, seen);
  }
}

Status Owing::serve(const plan::Command& command, const plan::OwePages& owe) {
  const auto process = TRY(kernel::pidfd_open(TRY(scene_.host_pid(command.pid))));
  OwedPages owed{command.pid, kernel::MissingPages(TRY(kernel::pidfd_getfd(process.get(), owe.fd))), owe.runs};
  TRY(owed.descriptor.begin());
  for (size_t i = 0; i + 1 < owe.mappings.size(); i += 2)
    TRY(owed.descriptor.watch({owe.mappings[i], owe.mappings[i] + owe.mappings[i + 1]}));
  if (!hand_over_) return fail(Error::internal("owe pages", "nobody serves them"));
  return hand_over_(std::move(owed));
}

}  // namespace stasis::execute
