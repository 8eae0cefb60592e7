// A directory that goes away with the test.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "image/directory.h"

namespace stasis::image {

class Scratch : public testing::Test {
 protected:
  Scratch() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stasis-image-XXXXXX").string();
    root_ = mkdtemp(pattern.data());
    auto opened = Directory::open(root_.string());
    if (!opened) std::abort();
    directory = std::make_unique<Directory>(std::move(*opened));
  }
  ~Scratch() override { std::filesystem::remove_all(root_); }

  std::filesystem::path path(std::string_view file) const { return root_ / file; }
  void put(std::string_view file, const std::string& bytes) const {
    std::ofstream(path(file), std::ios::binary | std::ios::trunc)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  std::string get(std::string_view file) const {
    std::ifstream stream(path(file), std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  std::unique_ptr<Directory> directory;

 private:
  std::filesystem::path root_;
};

}  // namespace stasis::image
