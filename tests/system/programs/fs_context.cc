// Working directory, root directory and umask, also of a task in a chroot.
// ROOT: changes its root directory
#include "probe.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  char jail[4096], inside[4200];
  snprintf(jail, sizeof jail, "%s/jail", probe::directory);
  snprintf(inside, sizeof inside, "%s/jail/inside", probe::directory);
  CHECK(mkdir(jail, 0755) == 0 && mkdir(inside, 0755) == 0);
  int done[2], go[2];
  CHECK(pipe(done) == 0 && pipe(go) == 0);
  const pid_t child = fork();
  if (child == 0) {
    CHECK(chroot(jail) == 0 && chdir("/inside") == 0);
    umask(0077);
    char byte = 0;
    CHECK(write(done[1], "r", 1) == 1);
    if (read(go[0], &byte, 1) != 1) _exit(2);
    char here[4096];
    if (getcwd(here, sizeof here) == nullptr || strcmp(here, "/inside") != 0) _exit(3);
    struct stat root, above;
    if (stat("/", &root) != 0 || stat("/..", &above) != 0 || root.st_ino != above.st_ino) _exit(4);
    if (access("/inside", F_OK) != 0 || access("/usr", F_OK) == 0) _exit(5);
    if (umask(0) != 0077) _exit(6);
    _exit(0);
  }
  char byte = 0;
  CHECK(read(done[0], &byte, 1) == 1);
  CHECK(chdir("/usr/bin") == 0);
  umask(0024);
  probe::ready();
  probe::wait_for_go();
  CHECK(write(go[1], "g", 1) == 1);
  probe::expect_child_passed(child);
  char here[4096];
  CHECK(getcwd(here, sizeof here) != nullptr && strcmp(here, "/usr/bin") == 0);
  CHECK_EQUAL(umask(0), 0024);
  return probe::passed();
}
