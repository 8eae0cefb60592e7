// The arrows of docs/architecture.md, checked by reading the includes.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>

namespace {

using Folders = std::set<std::string>;

// Who may include whom, besides itself. `base` is vocabulary: everybody may. Generated headers (x.pb.h) are `image`'s:
// what is built on image may read records.
const std::map<std::string, Folders> arrows = {
    {"base", {}},
    {"model", {}},
    {"plan", {"model"}},
    {"kernel", {}},
    {"image", {"model"}},
    {"memory", {"image", "model", "kernel"}},
    {"resource", {"plan", "image", "memory", "model", "kernel"}},
    {"capture", {"resource", "plan", "image", "memory", "model", "kernel", "agent"}},
    {"execute", {"resource", "plan", "image", "memory", "model", "kernel", "agent"}},
    {"cli", {"capture", "execute", "resource", "plan", "image", "memory", "model", "kernel"}},
};

Folders included_folders(const std::filesystem::path& file) {
  static const std::regex quoted("^#include \"([a-z_]+)/");
  static const std::regex record("^#include [\"<][a-z_-]+\\.pb\\.h");
  Folders found;
  std::ifstream text(file);
  for (std::string line; std::getline(text, line);) {
    std::smatch match;
    if (std::regex_search(line, match, quoted))
      found.insert(match[1]);
    else if (std::regex_search(line, record))
      found.insert("image");
  }
  return found;
}

TEST(Layering, EveryFolderHasItsArrows) {
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(STASIS_SOURCE_DIR) / "src")) {
    if (entry.is_directory()) {
      EXPECT_TRUE(arrows.contains(entry.path().filename())) << entry.path();
    }
  }
}

TEST(Layering, IncludesFollowTheArrows) {
  int files = 0;
  for (const auto& [folder, allowed] : arrows) {
    const auto root = std::filesystem::path(STASIS_SOURCE_DIR) / "src" / folder;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
      const auto extension = entry.path().extension();
      if (extension != ".cc" && extension != ".h") continue;
      ++files;
      for (const auto& included : included_folders(entry.path())) {
        if (included == folder || included == "base") continue;
        EXPECT_TRUE(allowed.contains(included)) << entry.path() << " includes " << included;
      }
    }
  }
  EXPECT_GT(files, 20);
}

}  // namespace
