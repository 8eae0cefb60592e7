// The ids of processes in nested pid namespaces, for programs whose root may itself be in one that is not the tree's.
#pragma once

#include <string.h>
#include <unistd.h>

#include "probe.h"

namespace nested_ids {

/// What a process is from inside, and from the namespace that the tree's root lives in (and those between).
struct Ids {
  pid_t pid, parent, session, group;
  char outside[512];
};

inline size_t own_level = 0;  // of the root: numbers before that one are not the tree's

/// Of a line such as "NSpid:\t4711\t12\t1"; how many numbers there are.
inline size_t append_numbers(char* to, size_t size, char* line) {
  size_t level = 0;
  char* rest = nullptr;
  for (char* word = strtok_r(line, "\t\n", &rest); word != nullptr; word = strtok_r(nullptr, "\t\n", &rest), ++level) {
    if (level != 0 && level < own_level) continue;
    strncat(to, word, size - strlen(to) - 1);
    strncat(to, " ", size - strlen(to) - 1);
  }
  return level - 1;
}

inline Ids look() {
  Ids ids{};
  ids.pid = getpid(), ids.parent = getppid(), ids.session = getsid(0), ids.group = getpgrp();
  FILE* status = fopen("/proc/self/status", "r");
  CHECK(status != nullptr);
  char line[256];
  while (fgets(line, sizeof line, status) != nullptr) {
    if (strncmp(line, "NS", 2) != 0) continue;
    const size_t levels = append_numbers(ids.outside, sizeof ids.outside, line);
    if (own_level != 0) continue;  // the first to look is the root
    own_level = levels;
    *ids.outside = 0;
    fseek(status, 0, SEEK_SET);
  }
  fclose(status);
  return ids;
}

inline void check_same(const Ids& before) {
  const Ids now = look();
  CHECK_EQUAL(now.pid, before.pid);
  CHECK_EQUAL(now.parent, before.parent);
  CHECK_EQUAL(now.session, before.session);
  CHECK_EQUAL(now.group, before.group);
  if (strcmp(now.outside, before.outside) != 0)
    probe::failed("%d is\n%s from outside, it was\n%s", now.pid, now.outside, before.outside);
}

}  // namespace nested_ids
