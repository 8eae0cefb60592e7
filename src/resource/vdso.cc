#include "resource/vdso.h"

#include <elf.h>

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "base/checked.h"
#include "kernel/proc.h"
#include "memory/pages.h"
#include "resource/codec.h"

namespace stasis::resource {
namespace {

constexpr uint64_t largest_vdso = 64 * page_size;
constexpr size_t most_symbols = 1024;

template <typename T>
std::optional<T> read_at(ByteView bytes, uint64_t offset) {
  const auto slice = checked_slice(bytes, offset, sizeof(T));
  if (!slice) return std::nullopt;
  T value;
  std::memcpy(&value, slice->data(), sizeof value);
  return value;
}

std::optional<std::string> text_at(ByteView bytes, uint64_t offset) {
  if (offset >= bytes.size()) return std::nullopt;
  const auto rest = bytes.subspan(offset);
  const auto end = std::ranges::find(rest, uint8_t{0});
  if (end == rest.end()) return std::nullopt;
  return std::string(rest.begin(), end);
}

struct SymbolTable {
  uint64_t symbols = 0, names = 0;  // offsets
  uint64_t count = 0;
};

/// From the dynamic section: DT_HASH tells how many symbols there are (its chain has one entry for each).
std::optional<SymbolTable> find_symbols(ByteView elf, const Elf64_Phdr& dynamic) {
  std::optional<uint64_t> symbols, names, hash;
  for (uint64_t at = 0; at + sizeof(Elf64_Dyn) <= dynamic.p_filesz; at += sizeof(Elf64_Dyn)) {
    const auto position = checked_add(dynamic.p_offset, at);
    const auto entry = position ? read_at<Elf64_Dyn>(elf, *position) : std::nullopt;
    if (!entry || entry->d_tag == DT_NULL) break;
    if (entry->d_tag == DT_SYMTAB) symbols = entry->d_un.d_ptr;
    if (entry->d_tag == DT_STRTAB) names = entry->d_un.d_ptr;
    if (entry->d_tag == DT_HASH) hash = entry->d_un.d_ptr;
  }
  if (!symbols || !names || !hash) return std::nullopt;
  const auto count = read_at<uint32_t>(elf, *hash + sizeof(uint32_t));
  if (!count || *count > most_symbols) return std::nullopt;
  return SymbolTable{*symbols, *names, *count};
}

Result<Bytes> own_vdso() {
  for (const auto& vma : TRY(kernel::read_maps(getpid()))) {
    if (vma.path != "[vdso]") continue;
    Bytes bytes(vma.range.size());
    std::memcpy(bytes.data(), reinterpret_cast<const void*>(vma.range.begin), bytes.size());
    return bytes;
  }
  return Bytes{};
}

/// The first vDSO of the tree that is stored: one kernel ran them all.
Result<Bytes> stored_vdso(const model::Application& application, const image::Directory& directory) {
  for (const auto& [id, owner] : address_space_owners(application)) {
    const auto& space = application.address_spaces.at(id);
    const auto vdso = std::ranges::find(space.mappings, model::Backing::vdso, &model::Mapping::backing);
    if (vdso == space.mappings.end() || vdso->range.size() > largest_vdso) continue;
    const bool stored =
        std::ranges::any_of(space.pages, [&](const model::PageRun& run) { return run.range.overlaps(vdso->range); });
    if (!stored) continue;
    auto pages = TRY(memory::ImagePages::open(directory, std::to_string(owner.value)));
    Bytes bytes(vdso->range.size());
    TRY(pages->read(vdso->range.begin, bytes));
    return bytes;
  }
  return Bytes{};
}

}  // namespace

std::optional<std::map<std::string, uint64_t>> exported_functions(ByteView elf) {
  const auto header = read_at<Elf64_Ehdr>(elf, 0);
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 || header->e_ident[EI_CLASS] != ELFCLASS64)
    return std::nullopt;
  for (uint64_t i = 0; i < header->e_phnum; ++i) {
    const auto position = checked_add(header->e_phoff, i * sizeof(Elf64_Phdr));
    const auto segment = position ? read_at<Elf64_Phdr>(elf, *position) : std::nullopt;
    if (!segment) return std::nullopt;
    if (segment->p_type != PT_DYNAMIC) continue;
    const auto table = find_symbols(elf, *segment);
    if (!table) return std::nullopt;
    std::map<std::string, uint64_t> functions;
    for (uint64_t n = 0; n < table->count; ++n) {
      const auto at = checked_add(table->symbols, n * sizeof(Elf64_Sym));
      const auto symbol = at ? read_at<Elf64_Sym>(elf, *at) : std::nullopt;
      if (!symbol) return std::nullopt;
      const auto name_at = checked_add(table->names, symbol->st_name);
      const auto name = name_at ? text_at(elf, *name_at) : std::nullopt;
      if (!name) return std::nullopt;
      if (ELF64_ST_TYPE(symbol->st_info) == STT_FUNC && symbol->st_shndx != SHN_UNDEF)
        functions[*name] = symbol->st_value;
    }
    return functions;
  }
  return std::nullopt;
}

Status check_vdso(const model::Application& application, const image::Directory& directory, Diagnostics& diagnostics) {
  const Bytes theirs = TRY(stored_vdso(application, directory)), ours = TRY(own_vdso());
  if (theirs.empty() || theirs == ours) return {};
  const auto subject = fmt::format("task {}", application.root);
  const auto theirs_exported = exported_functions(theirs), ours_exported = exported_functions(ours);
  if (!theirs_exported || !ours_exported || *theirs_exported != *ours_exported) {
    diagnostics.refuse(subject, "the functions of its vDSO lie elsewhere than in this kernel's",
                       "Restore it on the kernel on which it was dumped, or on one with the same vDSO");
    return {};
  }
  diagnostics.warn(subject,
                   "the code of its vDSO differs from this kernel's, though its functions lie at the same addresses",
                   "A thread that was stopped inside the vDSO may not continue correctly");
  return {};
}

}  // namespace stasis::resource
