// Whatever a directory of images holds, it decodes to an Application or to an error that says something; and what was
// decoded names pages that are where the pagemaps say.
#include "bundle.h"
#include "resource/codec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static stasis::fuzz::Bundle bundle;
  const auto directory = bundle.unpack({data, size});
  const auto application = stasis::resource::decode(directory);
  if (!application) {
    if (application.error().message().empty() || application.error().code() == stasis::ErrorCode::internal) std::abort();
    return 0;
  }
  const auto pages = stasis::resource::locate_pages(*application, directory);
  if (!pages && pages.error().message().empty()) std::abort();
  return 0;
}
