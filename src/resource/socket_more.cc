#include "resource/socket_more.h"

namespace stasis::resource {

Status add_socket_more(const socket_more_entry& more, image::FileRecords& records) {
  return TRY(records.side("sockets-more"))->append(more);
}

Result<socket_more_entry> socket_more(const image::FileRecords& records, uint32_t id) {
  using Index = std::map<uint32_t, const socket_more_entry*>;
  const auto* index = TRY(records.made_once<Index>("sockets-more by id", [&]() -> Result<Index> {
    Index made;
    for (const auto& entry : TRY(records.all<socket_more_entry>("sockets-more"))) made.emplace(entry.id(), &entry);
    return made;
  }));
  const auto found = index->find(id);
  return found == index->end() ? socket_more_entry{} : *found->second;
}

}  // namespace stasis::resource
