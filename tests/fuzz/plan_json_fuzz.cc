// Whatever is said to be a Program: it is read or refused with a reason, a Program that was read prints and reads back
// as the same, and the verifier has an answer to it.
#include <cstdlib>
#include <string_view>

#include "plan/program.h"
#include "plan/verify.h"

namespace {

using namespace stasis;

model::Application one_process() {
  model::Application application;
  application.root = Pid{100};
  model::Task task;
  task.pid = task.group = task.session = application.root;
  task.address_space = task.descriptors = task.fs = task.handlers = ObjectId{1};
  task.threads.resize(1);
  task.threads[0].tid = leader_of(task.pid);
  application.tasks.push_back(task);
  application.address_spaces[ObjectId{1}].id = ObjectId{1};
  application.descriptor_tables[ObjectId{1}].id = ObjectId{1};
  return application;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto application = one_process();
  const auto program = plan::from_json({reinterpret_cast<const char*>(data), size});
  if (!program) {
    if (program.error().message().empty()) std::abort();
    return 0;
  }
  const auto text = plan::to_json(*program);
  const auto again = plan::from_json(text);
  if (!again || plan::to_json(*again) != text) std::abort();
  (void)plan::to_text(*program);
  const auto rejection = plan::verify(*program, application);
  if (rejection && rejection->message(*program).empty()) std::abort();
  return 0;
}
