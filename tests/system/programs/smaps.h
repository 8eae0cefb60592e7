// What /proc/self/smaps says of an address.
#pragma once

#include "probe.h"

namespace probe {

/// The value of a field of this address's smaps entry.
inline void smaps(const void* address, const char* field, char* value, size_t size) {
  FILE* file = fopen("/proc/self/smaps", "r");
  CHECK(file != nullptr);
  char line[4096];
  bool inside = false;
  value[0] = 0;
  while (fgets(line, sizeof line, file) != nullptr) {
    unsigned long begin, end;
    if (sscanf(line, "%lx-%lx ", &begin, &end) == 2) {
      inside = reinterpret_cast<unsigned long>(address) >= begin && reinterpret_cast<unsigned long>(address) < end;
    } else if (inside && strncmp(line, field, strlen(field)) == 0) {
      snprintf(value, size, "%s", line + strlen(field));
    }
  }
  fclose(file);
}

/// Of VmFlags; each name has a space before it.
inline bool has_flag(const void* address, const char* flag) {
  char value[256];
  smaps(address, "VmFlags:", value, sizeof value);
  return strstr(value, flag) != nullptr;
}

}  // namespace probe
