// Fuzzer input ↔ a directory of images. A bundle is a row of files: name, NUL, length (32 bits, little endian), bytes.
// Of raw files (pages) only the length counts: they are made sparse, so that inputs stay small.
#pragma once

#include <fcntl.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>

#include "image/directory.h"
#include "image/names.h"

namespace stasis::fuzz {

class Bundle {
 public:
  Bundle() {
    std::string pattern = "/dev/shm/stasis-fuzz-XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~Bundle() { std::filesystem::remove_all(path_); }
  Bundle(const Bundle&) = delete;
  Bundle& operator=(const Bundle&) = delete;

  image::Directory unpack(ByteView input) {
    auto directory = image::Directory::open(path_.string());
    if (!directory) std::abort();
    for (const auto& entry : std::filesystem::directory_iterator(path_)) std::filesystem::remove(entry.path());
    while (next(input, *directory)) {
    }
    return std::move(*directory);
  }

 private:
  static constexpr uint32_t raw_limit = 64 << 20;

  static bool next(ByteView& input, const image::Directory& directory) {
    const auto* end = static_cast<const uint8_t*>(std::memchr(input.data(), 0, input.size()));
    if (!end) return false;
    const std::string name(input.data(), end);
    input = input.subspan(name.size() + 1);
    uint32_t length = 0;
    if (input.size() < sizeof length) return false;
    std::memcpy(&length, input.data(), sizeof length);
    input = input.subspan(sizeof length);
    const auto parsed = image::parse_name(name);
    const bool raw = parsed && parsed->kind->raw();
    const ByteView content = raw ? ByteView{} : input.first(std::min<size_t>(length, input.size()));
    input = input.subspan(content.size());
    if (!parsed) return true;
    const UniqueFd fd(openat(directory.fd(), name.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!fd.valid()) return true;
    if (raw ? ftruncate(fd.get(), std::min(length, raw_limit)) != 0
            : write(fd.get(), content.data(), content.size()) != static_cast<ssize_t>(content.size()))
      std::abort();
    return true;
  }

  std::filesystem::path path_;
};

}  // namespace stasis::fuzz
