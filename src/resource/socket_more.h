// sockets-more.img: what CRIU does not save of sockets.
#pragma once

#include "image/file_records.h"
#include "sockets_more.pb.h"

namespace stasis::resource {

Status add_socket_more(const socket_more_entry&, image::FileRecords&);
/// An empty one, if there is none: CRIU writes none.
Result<socket_more_entry> socket_more(const image::FileRecords&, uint32_t id);

}  // namespace stasis::resource
