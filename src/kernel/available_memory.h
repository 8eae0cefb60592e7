// How much memory somebody has, and how much can still be had without anybody suffering from it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string_view>

#include "base/result.h"

namespace stasis::kernel {

/// What the whole system has left (MemAvailable of /proc/meminfo), in bytes.
Result<uint64_t> available_memory();
/// The same of the cgroup of a process and of those above it, as far as they have a limit and can be seen (mounted
/// where everybody mounts them); at most what the system has left.
Result<uint64_t> available_memory(pid_t pid);

/// Bytes that a process has in memory (/proc/PID/statm); 0 if it has none, or is no more.
uint64_t resident(pid_t);
/// Whether a process and some of those below it have so many bytes in memory: not more are looked at than takes no
/// time.
bool has_resident(pid_t root, uint64_t bytes);

/// The number after a word in a text of lines ("MemAvailable:   1234 kB", "file 1234"); 0 if there is no such line.
uint64_t number_after(std::string_view text, std::string_view word);

}  // namespace stasis::kernel
