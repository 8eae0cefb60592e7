// Whatever a directory of images holds, it decodes to an Application or to an error that says something; and what was
// decoded can be planned and verified, or is refused.
#include "bundle.h"
#include "plan/planner.h"
#include "plan/verify.h"
#include "resource/codec.h"
#include "resource/registry.h"

namespace {

using namespace stasis;

/// A sentence for the operator, and not about a bug of ours.
void expect_explained(const Error& error) {
  if (!error.message().empty() && error.code() != ErrorCode::internal) return;
  std::fprintf(stderr, "%s\n", error.message().c_str());
  std::abort();
}

Status plan_it(const resource::Decoded& decoded) {
  const auto& application = decoded.application;
  plan::PlanOptions options;
  options.pages = decoded.pages;
  const auto program = TRY(plan::make_program(application, resource::contributors(), options));
  if (const auto rejection = plan::verify(program, application))
    return fail(Error::conflict("verify", rejection->message(program)));
  return {};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fuzz::Bundle bundle;
  const auto directory = bundle.unpack({data, size});
  const auto decoded = resource::decode(directory);
  if (!decoded) {
    expect_explained(decoded.error());
    return 0;
  }
  if (const auto planned = plan_it(*decoded); !planned) expect_explained(planned.error());
  return 0;
}
