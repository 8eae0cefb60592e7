// A copy of the checkpoint in tests/fuzz/seeds that CRIU 4.2 made (a shell with a pipeline of two), with pages made up,
// in a directory that goes away with the test; and an empty directory beside it.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "image/directory.h"

namespace stasis::resource {

class CriuImages : public testing::Test {
 protected:
  CriuImages() {
    namespace fs = std::filesystem;
    std::string pattern = (fs::temp_directory_path() / "stasis-criu-XXXXXX").string();
    root_ = mkdtemp(pattern.data());
    fs::create_directory(root_ / "ours");
    fs::copy(STASIS_SOURCE_DIR "/tests/fuzz/seeds/criu-4.2", root_ / "theirs");
    // The pages are left out of the repository; their sizes are known. Any content will do.
    std::ifstream list(root_ / "theirs" / "pages");
    for (auto [name, size] = std::pair<std::string, size_t>(); list >> name >> size;) {
      std::string content(size, '\0');
      for (size_t i = 0; i < size; ++i) content[i] = static_cast<char>(i % 251 + i / page_size);
      std::ofstream(root_ / "theirs" / name, std::ios::binary) << content;
    }
    theirs = std::make_unique<image::Directory>(std::move(*image::Directory::open((root_ / "theirs").string())));
    ours = std::make_unique<image::Directory>(std::move(*image::Directory::open((root_ / "ours").string())));
  }
  ~CriuImages() override { std::filesystem::remove_all(root_); }

  std::string bytes(const std::string& file) const {
    std::ifstream stream(root_ / file, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  std::filesystem::path root_;
  std::unique_ptr<image::Directory> theirs, ours;
};

}  // namespace stasis::resource
