// What stasis does for OWE_PAGES: it takes the runner's userfaultfd, has it watch for pages that are missing, and hands
// it over to whoever serves them. From then on nobody who touches such a page sees anything but its contents.
#pragma once

#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "base/result.h"
#include "execute/execute.h"
#include "execute/lower.h"
#include "execute/requests.h"
#include "plan/program.h"

namespace stasis::execute {

class Owing {
 public:
  /// Nothing is started where the program owes nothing. All arguments must outlive it.
  Owing(const plan::Program&, const Lowered&, RequestScene, const std::function<Status(OwedPages)>& hand_over);
  ~Owing();
  Owing(const Owing&) = delete;
  Owing& operator=(const Owing&) = delete;

  /// Why it has cancelled the restore.
  std::optional<Error> error() const;

 private:
  void work();
  Status serve(const plan::Command&, const plan::OwePages&);

  const plan::Program& program_;
  const Requests& requests_;
  const RequestScene scene_;
  const std::function<Status(OwedPages)>& hand_over_;
  mutable std::mutex mutex_;
  bool stopping_ = false;
  std::optional<Error> error_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace stasis::execute
