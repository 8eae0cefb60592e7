#include "resource/file_identity.h"

#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <memory>

#include "base/checked.h"
#include "base/unique_fd.h"

namespace stasis::resource {
namespace {

constexpr unsigned most_segments = 64;
constexpr uint64_t longest_notes = 64 << 10;

template <typename T>
bool read_at(int file, uint64_t offset, T& value) {
  return pread(file, &value, sizeof value, static_cast<off_t>(offset)) == static_cast<ssize_t>(sizeof value);
}

/// The build id among the notes of one segment (elf(5), Notes).
std::vector<uint32_t> find_build_id(ByteView notes) {
  for (uint64_t at = 0; at + sizeof(Elf64_Nhdr) <= notes.size();) {
    Elf64_Nhdr note{};  // the same as Elf32_Nhdr
    std::memcpy(&note, notes.data() + at, sizeof note);
    const uint64_t name = at + sizeof note, content = name + (uint64_t{note.n_namesz} + 3) / 4 * 4;
    const auto id = checked_slice(notes, content, note.n_descsz);
    const auto owner = checked_slice(notes, name, note.n_namesz);
    if (!id || !owner) return {};
    if (note.n_type == NT_GNU_BUILD_ID && owner->size() == 4 && std::memcmp(owner->data(), "GNU", 4) == 0) {
      std::vector<uint32_t> words((id->size() + 3) / 4);
      std::memcpy(words.data(), id->data(), id->size());
      return words;
    }
    at = content + (uint64_t{note.n_descsz} + 3) / 4 * 4;
  }
  return {};
}

template <typename Header, typename Segment>
std::vector<uint32_t> build_id_of(int file) {
  Header header{};
  if (!read_at(file, 0, header)) return {};
  for (unsigned i = 0; i < std::min<unsigned>(header.e_phnum, most_segments); ++i) {
    Segment segment{};
    if (!read_at(file, uint64_t{header.e_phoff} + i * sizeof segment, segment)) return {};
    if (segment.p_type != PT_NOTE || segment.p_filesz > longest_notes) continue;
    Bytes notes(segment.p_filesz);
    const auto got = pread(file, notes.data(), notes.size(), static_cast<off_t>(segment.p_offset));
    if (got != static_cast<ssize_t>(notes.size())) return {};
    if (auto id = find_build_id(notes); !id.empty()) return id;
  }
  return {};
}

constexpr auto crc_table = [] {
  constexpr uint32_t reversed_polynomial = 0x82f63b78;
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < table.size(); ++i) {
    uint32_t rest = i;
    for (int bit = 0; bit < 8; ++bit) rest = (rest >> 1) ^ ((rest & 1) != 0 ? reversed_polynomial : 0);
    table[i] = rest;
  }
  return table;
}();

}  // namespace

std::vector<uint32_t> read_build_id(const std::string& path) {
  const UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  std::array<unsigned char, EI_NIDENT> identity{};
  if (!file.valid() || !read_at(file.get(), 0, identity)) return {};
  if (std::memcmp(identity.data(), ELFMAG, SELFMAG) != 0) return {};
  return identity[EI_CLASS] == ELFCLASS64 ? build_id_of<Elf64_Ehdr, Elf64_Phdr>(file.get())
                                          : build_id_of<Elf32_Ehdr, Elf32_Phdr>(file.get());
}

std::optional<uint32_t> read_checksum(const std::string& path) {
  const UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) return std::nullopt;
  uint32_t crc = ~0u;
  Bytes buffer(1 << 18);
  for (;;) {
    const ssize_t count = read(file.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return std::nullopt;
    if (count == 0) return ~crc;
    for (ssize_t i = 0; i < count; ++i) crc = (crc >> 8) ^ crc_table[(crc ^ buffer[static_cast<size_t>(i)]) & 0xff];
  }
}

std::optional<std::string> name_beside(const std::string& path, const struct stat& file) {
  const auto directory = std::filesystem::path(path).parent_path();
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(opendir(directory.c_str()), closedir);
  std::optional<std::string> first;
  for (const dirent* entry = nullptr; listing != nullptr && (entry = readdir(listing.get())) != nullptr;) {
    if (entry->d_ino != file.st_ino || entry->d_name == std::string_view(".") ||
        entry->d_name == std::string_view(".."))
      continue;
    auto name = (directory / entry->d_name).string();
    struct stat found{};
    if (lstat(name.c_str(), &found) != 0 || found.st_dev != file.st_dev || found.st_ino != file.st_ino) continue;
    if (!first || name < *first) first = std::move(name);
  }
  return first;
}

}  // namespace stasis::resource
