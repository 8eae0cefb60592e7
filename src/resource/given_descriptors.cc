#include "resource/given_descriptors.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "resource/registry.h"

namespace stasis::resource {
namespace {

/// What processes hold open, in tables, in flight or mapped: working directories and executables are found by paths.
std::set<ObjectId> held_open(const model::Application& application) {
  std::set<ObjectId> held;
  for (const auto& [id, table] : application.descriptor_tables) {
    for (const auto& [fd, slot] : table.slots) held.insert(slot.description);
  }
  for (const auto& [id, description] : application.descriptions)
    held.insert(description.carries.begin(), description.carries.end());
  for (const auto& [id, space] : application.address_spaces) {
    for (const auto& mapping : space.mappings) held.insert(mapping.file);
  }
  return held;
}

bool is_called(const model::Application& application, const model::OpenDescription& description,
               const std::string& name) {
  const auto* room = file_room(description.state.value->kind());
  if (room == nullptr) return false;
  const auto names = room->names(application, description);
  return std::ranges::find(names, name) != names.end();
}

/// Whether what reads or writes the saved file can do so here.
bool allows(int own_flags, uint32_t flags) {
  const int own = own_flags & O_ACCMODE, wanted = static_cast<int>(flags) & O_ACCMODE;
  return own == O_RDWR || own == wanted || (flags & O_PATH) != 0;
}

}  // namespace

Result<GivenDescriptor> parse_given(const std::string& option) {
  constexpr std::string_view prefix = "fd[", middle = "]:";
  GivenDescriptor given;
  const char* const end = option.data() + option.size();
  if (option.starts_with(prefix)) {
    const auto [rest, error] = std::from_chars(option.data() + prefix.size(), end, given.fd);
    const std::string_view left(rest, static_cast<size_t>(end - rest));
    if (error == std::errc{} && given.fd >= 0 && left.starts_with(middle)) given.name = left.substr(middle.size());
  }
  if (!given.name.empty()) return given;
  return fail(Error::invalid("read --inherit-fd", "it is not of the form fd[NUMBER]:NAME", option)
                  .advise("for example 'fd[1]:pipe:[4711]', with the link that the descriptor had in /proc"));
}

void give_descriptors(model::Application& application, std::span<const GivenDescriptor> given,
                      Diagnostics& diagnostics) {
  const auto held = given.empty() ? std::set<ObjectId>{} : held_open(application);
  for (const auto& [fd, name] : given) {
    const auto subject = fmt::format("--inherit-fd fd[{}]:{}", fd, name);
    // What stasis has opened itself closes on exec; what it was started with does not.
    const int own_flags = fcntl(fd, F_GETFL), descriptor_flags = fcntl(fd, F_GETFD);
    if (own_flags < 0 || (descriptor_flags & FD_CLOEXEC) != 0) {
      diagnostics.refuse(subject, fmt::format("descriptor {} is not open", fd), "start stasis with it open");
      continue;
    }
    bool wanted = false;
    for (auto& [id, description] : application.descriptions) {
      if (description.given >= 0 || !held.contains(id) || !is_called(application, description, name)) continue;
      wanted = true;
      description.given = fd;
      if (allows(own_flags, description.flags)) continue;
      diagnostics.refuse(
          subject,
          fmt::format("descriptor {} is open for {} only, which does not do for {}", fd,
                      (own_flags & O_ACCMODE) == O_WRONLY ? "writing" : "reading", description.state.value->describe()),
          "open it as the program had it, or for reading and writing");
    }
    if (!wanted) diagnostics.warn(subject, "no file of the checkpoint is called that", "it has no effect");
  }
}

}  // namespace stasis::resource
