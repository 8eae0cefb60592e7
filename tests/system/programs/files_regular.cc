// Regular files, directories and devices: offsets, flags, sharing of descriptions, close-on-exec, owners.
// ROOT: with an owner the kernel notes who named it, which at a restore is stasis
#include "probe.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  char path[4096];
  snprintf(path, sizeof path, "%s/file", probe::directory);
  const int file = open(path, O_CREAT | O_RDWR, 0640);
  CHECK(file >= 0 && write(file, "0123456789", 10) == 10);
  CHECK(lseek(file, 4, SEEK_SET) == 4);
  const int twin = dup(file);                          // same description
  const int other = open(path, O_RDONLY | O_CLOEXEC);  // another one
  CHECK(lseek(other, 7, SEEK_SET) == 7);
  const int append = open(path, O_WRONLY | O_APPEND | O_NONBLOCK);
  const int far = fcntl(file, F_DUPFD_CLOEXEC, 900);
  const int directory = open(probe::directory, O_RDONLY | O_DIRECTORY);
  const int by_path = open(path, O_PATH);
  const int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDONLY),
            random = open("/dev/urandom", O_RDONLY);
  CHECK(directory >= 0 && null >= 0 && zero >= 0 && random >= 0 && by_path >= 0);
  CHECK(fcntl(append, F_SETOWN, getpid()) == 0 && fcntl(append, F_SETSIG, SIGUSR2) == 0);

  const pid_t child = fork();
  if (child == 0) {
    probe::wait_for_go();
    while (lseek(file, 0, SEEK_CUR) != 6) usleep(1000);  // the parent reads through the shared description
    _exit(0);
  }
  usleep(20'000);  // the child has come out of fork
  probe::ready();
  probe::wait_for_go();

  char bytes[4];
  CHECK_EQUAL(lseek(twin, 0, SEEK_CUR), 4);
  CHECK(read(file, bytes, 2) == 2 && memcmp(bytes, "45", 2) == 0);
  CHECK_EQUAL(lseek(twin, 0, SEEK_CUR), 6);
  CHECK_EQUAL(lseek(far, 0, SEEK_CUR), 6);
  CHECK_EQUAL(lseek(other, 0, SEEK_CUR), 7);
  CHECK_EQUAL(fcntl(other, F_GETFD), FD_CLOEXEC);
  CHECK_EQUAL(fcntl(far, F_GETFD), FD_CLOEXEC);
  CHECK_EQUAL(fcntl(file, F_GETFD), 0);
  CHECK_EQUAL(fcntl(file, F_GETFL) & O_ACCMODE, O_RDWR);
  CHECK_EQUAL(fcntl(append, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK), O_WRONLY | O_APPEND | O_NONBLOCK);
  CHECK_EQUAL(fcntl(append, F_GETOWN), getpid());
  CHECK_EQUAL(fcntl(append, F_GETSIG), SIGUSR2);
  CHECK(write(append, "!", 1) == 1);
  struct stat about, by_path_about;
  CHECK(fstat(file, &about) == 0 && fstat(by_path, &by_path_about) == 0);
  CHECK_EQUAL(about.st_size, 11);
  CHECK_EQUAL(about.st_ino, by_path_about.st_ino);
  CHECK(fstatat(directory, "file", &by_path_about, 0) == 0);
  CHECK_EQUAL(about.st_ino, by_path_about.st_ino);
  CHECK(write(null, "x", 1) == 1 && read(null, bytes, 1) == 0);
  CHECK(read(zero, bytes, 4) == 4 && bytes[0] == 0 && read(random, bytes, 4) == 4);
  probe::expect_child_passed(child);
  return probe::passed();
}
