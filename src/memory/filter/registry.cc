// The registry: one line for each filter.
#include <array>
#include <charconv>

#include <fmt/format.h>

#include "memory/filter/filter.h"

namespace stasis::memory {

extern const FilterKind zstd_filter, lz4_filter, aead_filter;

namespace {
const std::array<const FilterKind*, 3> kinds{
    &zstd_filter,
    &lz4_filter,
    &aead_filter,
};
}  // namespace

std::span<const FilterKind* const> filter_kinds() { return kinds; }

const FilterKind* find_filter(std::string_view name) {
  for (const FilterKind* kind : kinds)
    if (kind->name == name) return kind;
  return nullptr;
}

Result<std::vector<const FilterKind*>> known_filters(
    const google::protobuf::RepeatedPtrField<page_filter_entry>& entries, const std::string& where) {
  std::vector<const FilterKind*> known;
  for (const auto& entry : entries) {
    const FilterKind* kind = find_filter(entry.name());
    if (kind == nullptr || kind->version != entry.version()) {
      return fail(Error::unsupported(
                      "read pages",
                      fmt::format("the page filter {:?} of version {} is not known", entry.name(), entry.version()),
                      where)
                      .advise("read them with the version of stasis that wrote them"));
    }
    known.push_back(kind);
  }
  return known;
}

Result<image::Compression> parse_compression(std::string_view text) {
  const size_t colon = text.find(':');
  const FilterKind* kind = find_filter(text.substr(0, colon));
  if (kind == nullptr || !kind->compresses) {
    std::string known;
    for (const FilterKind* one : kinds)
      if (one->compresses) known += fmt::format("{}{}", known.empty() ? "" : ", ", one->name);
    return fail(Error::invalid("read --compress", "no such compression", std::string(text)).advise("one of: " + known));
  }
  image::Compression wanted{std::string(kind->name), kind->usual_level};
  if (colon == std::string_view::npos) return wanted;
  const std::string_view digits = text.substr(colon + 1);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), wanted.level);
  const bool whole = error == std::errc{} && end == digits.data() + digits.size();
  if (!whole || wanted.level < kind->lowest_level || wanted.level > kind->highest_level) {
    return fail(
        Error::invalid("read --compress",
                       fmt::format("levels of {} are {} to {}", kind->name, kind->lowest_level, kind->highest_level),
                       std::string(text)));
  }
  return wanted;
}

std::vector<const FilterKind*> filters_of(const image::Directory& directory) {
  std::vector<const FilterKind*> filters;
  if (const FilterKind* compressor = find_filter(directory.compression().filter)) filters.push_back(compressor);
  if (directory.encryption() != nullptr) filters.push_back(&aead_filter);
  return filters;
}

}  // namespace stasis::memory
