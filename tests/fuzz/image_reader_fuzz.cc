// Whatever the bytes of an image are, reading and showing it ends in text or in an error that says something.
#include "bundle.h"
#include "image/show.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static stasis::fuzz::Bundle bundle;
  const auto directory = bundle.unpack({data, size});
  const auto json = stasis::image::show_directory(directory, false);
  if (!json && json.error().message().empty()) std::abort();
  const auto tree = stasis::image::show_tree(directory);
  if (!tree && tree.error().message().empty()) std::abort();
  return 0;
}
