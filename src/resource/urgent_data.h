// Urgent data of TCP connections (tcp(7); net/ipv4/tcp_input.c, tcp_check_urg): one byte, which the last segment with
// an urgent pointer has named. What has been received of it calls tell (kernel/tcp.h); the rest only the kernel's
// memory does.
#pragma once

#include "kernel/kernel_memory.h"
#include "kernel/tcp.h"

namespace stasis::resource {

/// Adds to a stream that has been read what is urgent of the bytes that the peer has not acknowledged, and of those
/// that it has only announced. False: the program has received a byte out of band that came before others, which are
/// still on their way; nothing brings that about again.
Result<bool> add_urgent_data(const kernel::KernelMemory&, int fd, bool has_received_fin, kernel::TcpStream&);

}  // namespace stasis::resource
