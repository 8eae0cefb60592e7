// A FIFO without a name: both ends open, bytes in it, and another FIFO under its old name.
#include <sys/stat.h>

#include "probe.h"

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  char path[4096];
  snprintf(path, sizeof path, "%s/fifo", probe::directory);
  CHECK(mkfifo(path, 0640) == 0);
  const int reader = open(path, O_RDONLY | O_NONBLOCK);
  const int writer = open(path, O_WRONLY);
  CHECK(reader >= 0 && writer >= 0);
  CHECK(write(writer, "before", 6) == 6);
  CHECK(unlink(path) == 0);
  CHECK(mkfifo(path, 0600) == 0);
  probe::ready();
  probe::wait_for_go();

  char text[16] = {};
  CHECK(read(reader, text, sizeof text) == 6 && memcmp(text, "before", 6) == 0);
  CHECK(write(writer, "after", 5) == 5);
  CHECK(read(reader, text, sizeof text) == 5 && memcmp(text, "after", 5) == 0);
  struct stat of_reader{}, of_writer{}, of_path{};
  CHECK(fstat(reader, &of_reader) == 0 && fstat(writer, &of_writer) == 0 && stat(path, &of_path) == 0);
  CHECK(S_ISFIFO(of_reader.st_mode) && of_reader.st_ino == of_writer.st_ino);
  CHECK_EQUAL(of_reader.st_nlink, 0u);
  CHECK_EQUAL(of_reader.st_mode & 07777, 0640u);
  CHECK(of_path.st_ino != of_reader.st_ino);
  return probe::passed();
}
