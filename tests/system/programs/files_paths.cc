// Files that are held without being opened (O_PATH), and names that have gone: symbolic links, directories that were
// removed as working directory and with files in them, and a name that another file has taken since.
// FAIL_RESTORE
// ROOT: gives files away
#include <initializer_list>

#include "probe.h"

static const char* in_directory(const char* name) {
  static char paths[16][4096];
  static int next = 0;
  char* const path = paths[next++ % 16];
  snprintf(path, sizeof paths[0], "%s/%s", probe::directory, name);
  return path;
}

static int held(const char* name, int flags) {
  const int fd = open(in_directory(name), O_PATH | flags);
  CHECK(fd >= 0);
  return fd;
}

static void make_file(const char* name, const char* content) {
  const int fd = open(in_directory(name), O_CREAT | O_EXCL | O_WRONLY, 0640);
  CHECK(fd >= 0 && write(fd, content, strlen(content)) == (ssize_t)strlen(content) && close(fd) == 0);
}

static void check_link(int fd, const char* expected, int links) {
  struct stat about;
  CHECK(fstat(fd, &about) == 0);
  CHECK(S_ISLNK(about.st_mode));
  CHECK_EQUAL(about.st_nlink, links);
  CHECK_EQUAL(about.st_uid, 12);
  char target[64] = "";
  CHECK(readlinkat(fd, "", target, sizeof target - 1) == (ssize_t)strlen(expected));
  CHECK(strcmp(target, expected) == 0);
}

static void check_content(int path_fd, const char* expected) {
  char name[64], content[64] = "";
  snprintf(name, sizeof name, "/proc/self/fd/%d", path_fd);
  const int fd = open(name, O_RDONLY);
  CHECK(fd >= 0);
  CHECK(read(fd, content, sizeof content - 1) == (ssize_t)strlen(expected) && strcmp(content, expected) == 0);
  CHECK(close(fd) == 0);
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  CHECK(symlink("somewhere else", in_directory("link")) == 0);
  CHECK(symlink("nowhere", in_directory("gone link")) == 0);
  for (const char* name : {"link", "gone link"}) CHECK(lchown(in_directory(name), 12, 34) == 0);
  const int link = held("link", O_NOFOLLOW), gone_link = held("gone link", O_NOFOLLOW);
  CHECK(unlink(in_directory("gone link")) == 0);

  make_file("file", "there");
  make_file("gone file", "gone");
  const int file = held("file", 0), gone_file = held("gone file", 0);
  CHECK(unlink(in_directory("gone file")) == 0);

  CHECK(mkfifo(in_directory("gone fifo"), 0600) == 0);
  const int gone_fifo = held("gone fifo", 0);
  CHECK(unlink(in_directory("gone fifo")) == 0);

  // The name belongs to a second file now.
  make_file("name", "first");
  const int first = open(in_directory("name"), O_RDWR);
  CHECK(first >= 0 && unlink(in_directory("name")) == 0);
  make_file("name", "second");
  const int second = open(in_directory("name"), O_RDONLY);
  CHECK(second >= 0);

  // A removed directory with a removed file in it, held open and as working directory.
  CHECK(mkdir(in_directory("gone"), 0750) == 0 && mkdir(in_directory("gone/below"), 0700) == 0);
  make_file("gone/inside", "inside");
  const int directory = open(in_directory("gone"), O_RDONLY | O_DIRECTORY);
  const int directory_path = held("gone/below", O_DIRECTORY);
  const int inside = open(in_directory("gone/inside"), O_RDONLY);
  CHECK(directory >= 0 && inside >= 0 && chdir(in_directory("gone/below")) == 0);
  CHECK(unlink(in_directory("gone/inside")) == 0);
  CHECK(rmdir(in_directory("gone/below")) == 0 && rmdir(in_directory("gone")) == 0);

  probe::ready();
  probe::wait_for_go();

  check_link(link, "somewhere else", 1);
  check_link(gone_link, "nowhere", 0);
  check_content(file, "there");
  check_content(gone_file, "gone");
  CHECK_EQUAL(fcntl(file, F_GETFL) & O_PATH, O_PATH);
  struct stat about, other;
  CHECK(fstat(gone_fifo, &about) == 0 && S_ISFIFO(about.st_mode));
  CHECK_EQUAL(about.st_nlink, 0);
  char content[16] = "";
  CHECK(read(first, content, 5) == 5 && strcmp(content, "first") == 0);
  CHECK(read(second, content, 6) == 6 && strcmp(content, "second") == 0);
  CHECK(fstat(first, &about) == 0 && fstat(second, &other) == 0);
  CHECK_EQUAL(about.st_nlink, 0);
  CHECK_EQUAL(other.st_nlink, 1);
  memset(content, 0, sizeof content);
  CHECK(read(inside, content, 6) == 6 && strcmp(content, "inside") == 0);
  CHECK(fstat(directory, &about) == 0);
  CHECK_EQUAL(about.st_nlink, 0);
  CHECK_EQUAL(about.st_mode & 07777, 0750);
  CHECK(stat(".", &about) == 0 && fstat(directory_path, &other) == 0);
  CHECK_EQUAL(about.st_nlink, 0);
  CHECK_EQUAL(about.st_ino, other.st_ino);
  char where[4096];
  CHECK(getcwd(where, sizeof where) == nullptr && errno == ENOENT);
  for (const char* name : {"gone", "gone link", "gone file", "gone fifo"})
    CHECK(access(in_directory(name), F_OK) != 0 && errno == ENOENT);
  return probe::passed();
}
