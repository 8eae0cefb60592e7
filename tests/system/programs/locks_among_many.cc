// A few locks and a lease among hundreds of descriptors: they are not asked one by one for their locks then.
// DUMP: --file-locks
// IGNORE: files.owner  to hold a lease is to own the open file: the ids of who has set that are those of stasis
#include <sys/file.h>
#include <sys/wait.h>

#include <string>

#include "probe.h"

namespace {

constexpr int count = 1600;

int open_in_directory(const std::string& name, int flags) {
  const int fd = open((std::string(probe::directory) + "/" + name).c_str(), flags, 0600);
  CHECK(fd >= 0);
  return fd;
}

/// Somebody who opens the file anew meets the lock.
bool is_locked(const std::string& name) {
  const int fd = open_in_directory(name, O_RDONLY);
  const int result = flock(fd, LOCK_EX | LOCK_NB);
  CHECK(result == 0 || errno == EWOULDBLOCK);
  close(fd);
  return result != 0;
}

short type_of_range(int fd, int command, short type, off_t start) {
  struct flock lock{};
  lock.l_type = type, lock.l_whence = SEEK_SET, lock.l_start = start, lock.l_len = 5;
  CHECK(fcntl(fd, command, &lock) == 0);
  return lock.l_type;
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(probe::raise_descriptor_limit() > 2 * count);
  for (int i = 0; i < count; ++i) open_in_directory("free" + std::to_string(i), O_CREAT | O_RDWR);

  const int whole = open_in_directory("whole", O_CREAT | O_RDONLY);
  CHECK(flock(whole, LOCK_EX) == 0);
  const int by_dead = open_in_directory("by-dead", O_CREAT | O_RDONLY);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) _exit(flock(by_dead, LOCK_EX) == 0 ? 0 : 1);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  const int range = open_in_directory("range", O_CREAT | O_RDWR);
  CHECK_EQUAL(type_of_range(range, F_SETLK, F_WRLCK, 10), F_WRLCK);
  const int own = open_in_directory("own", O_CREAT | O_RDWR);
  CHECK_EQUAL(type_of_range(own, F_OFD_SETLK, F_WRLCK, 20), F_WRLCK);
  open_in_directory("leased", O_CREAT | O_RDWR);
  const int leased = open_in_directory("leased", O_RDONLY);
  close(leased - 1);
  CHECK(fcntl(leased, F_SETLEASE, F_RDLCK) == 0);

  probe::ready();
  probe::wait_for_go();
  CHECK(is_locked("whole"));
  CHECK(is_locked("by-dead"));
  for (const int i : {0, 1, count - 1}) CHECK(!is_locked("free" + std::to_string(i)));
  CHECK_EQUAL(type_of_range(own, F_OFD_GETLK, F_WRLCK, 20), F_UNLCK);  // it is ours
  const int anew = open_in_directory("own", O_RDWR);
  CHECK_EQUAL(type_of_range(anew, F_OFD_GETLK, F_WRLCK, 20), F_WRLCK);
  const int range_anew = open_in_directory("range", O_RDWR);
  CHECK_EQUAL(type_of_range(range_anew, F_OFD_GETLK, F_WRLCK, 10), F_WRLCK);
  CHECK_EQUAL(type_of_range(range_anew, F_OFD_GETLK, F_WRLCK, 50), F_UNLCK);
  CHECK_EQUAL(fcntl(leased, F_GETLEASE), F_RDLCK);
  return probe::passed();
}
