// Images that CRIU 4.2 made, and what its crit prints for them (crit.json: crit's decoding, --pretty, of every file).
// The checkpoint is of `bash` with a pipeline `(echo …; sleep) | sleep` and a descriptor to an unlinked file; the pages
// and the images of the two sleeps are left out.
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "image/show.h"

namespace stasis::image {
namespace {

const std::string folder = STASIS_SOURCE_DIR "/tests/golden/image/criu-4.2";

TEST(Crit, PrintsTheSame) {
  const auto directory = Directory::open(folder);
  ASSERT_TRUE(directory) << directory.error().message();
  const auto shown = show_directory(*directory);
  ASSERT_TRUE(shown) << shown.error().message();
  std::ifstream stream(folder + "/crit.json");
  const std::string expected{std::istreambuf_iterator<char>(stream), {}};
  EXPECT_EQ(*shown + "\n", expected);
}

}  // namespace
}  // namespace stasis::image
