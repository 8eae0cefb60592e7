#include "resource/anonymous_room.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/syscall.h>

namespace stasis::resource {

void place(const plan::Placement& placement, plan::Perform& perform) {
  perform.calls.push_back(plan::call(plan::Call::move_fd, plan::ResultOf{-1}, placement.fd, 0));
  // All are made without flags: most have none.
  if (const uint32_t flags = settable_flags(placement.description->flags); flags != 0)
    perform.calls.push_back(plan::call(SYS_fcntl, placement.fd, F_SETFL, flags));
  perform.creates.push_back({placement.fd, placement.description->id});
}

std::unexpected<Error> bad_entry(std::string_view kind, const image::FileRecord& record, std::string_view field,
                                 std::string problem) {
  return fail(Error::invalid(fmt::format("decode {}", kind), std::move(problem),
                             fmt::format("files.img, file {}, field {}", record.id(), field)));
}

}  // namespace stasis::resource
