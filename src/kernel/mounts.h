// /proc/self/mountinfo (Documentation/filesystems/proc.rst, section 3.5), and files found by their handles.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kernel/fdinfo.h"

namespace stasis::kernel {

struct MountInfo {
  int id = 0;
  uint32_t device_major = 0, device_minor = 0;
  std::string root;  ///< what of the file system is mounted: "/", a directory
  std::string point;
  std::string type;     ///< of the file system
  std::string options;  ///< of the file system
};
Result<std::vector<MountInfo>> parse_mountinfo(std::string_view text);
/// The mounts that stasis sees.
Result<std::vector<MountInfo>> read_mountinfo();

/// The kernel's own dev_t, as fdinfo and images have it.
constexpr uint32_t kernel_device(uint32_t major, uint32_t minor) { return major << 20 | minor; }

/// A path that leads to the inode with this handle (name_to_handle_at(2)) on the file system mounted as this device;
/// empty: there is none. Needs CAP_DAC_READ_SEARCH.
std::string find_by_handle(const std::vector<MountInfo>&, uint32_t device, uint64_t inode, const FileHandle&);

}  // namespace stasis::kernel
