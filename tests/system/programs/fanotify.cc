// fanotify: marks of files, mounts and file systems, ignored events, files that come with events.
// ROOT: watches whole file systems
#include <sys/fanotify.h>

#include "probe.h"

/// The next event's mask; of which file is checked.
static uint64_t next(int fd, const char* path) {
  alignas(fanotify_event_metadata) char buffer[sizeof(fanotify_event_metadata)];
  CHECK(read(fd, buffer, sizeof buffer) == sizeof buffer);
  const auto* event = reinterpret_cast<const fanotify_event_metadata*>(buffer);
  CHECK_EQUAL(event->pid, getpid());
  struct stat expected, found;
  CHECK(stat(path, &expected) == 0 && fstat(event->fd, &found) == 0);
  CHECK_EQUAL(found.st_ino, expected.st_ino);
  CHECK_EQUAL(fcntl(event->fd, F_GETFD), FD_CLOEXEC);
  CHECK_EQUAL(fcntl(event->fd, F_GETFL) & O_ACCMODE, O_RDONLY);
  close(event->fd);
  return event->mask;
}

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  // The driver works in the directory itself.
  char folder[4200], watched[4300], ignored[4300];
  snprintf(folder, sizeof folder, "%s/folder", probe::directory);
  snprintf(watched, sizeof watched, "%s/watched", folder);
  snprintf(ignored, sizeof ignored, "%s/ignored", folder);
  CHECK(mkdir(folder, 0700) == 0);
  close(open(watched, O_CREAT | O_WRONLY, 0600));
  close(open(ignored, O_CREAT | O_WRONLY, 0600));

  char rotated[4300];
  snprintf(rotated, sizeof rotated, "%s/rotated", folder);
  const int unlinked = open(rotated, O_CREAT | O_RDWR, 0600);
  const int files = fanotify_init(FAN_NONBLOCK | FAN_CLOEXEC, O_RDONLY | O_CLOEXEC);
  CHECK(files >= 0);
  CHECK(fanotify_mark(files, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, watched) == 0);
  CHECK(fanotify_mark(files, FAN_MARK_ADD, FAN_MODIFY | FAN_EVENT_ON_CHILD, AT_FDCWD, folder) == 0);
  CHECK(fanotify_mark(files, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_MODIFY, AT_FDCWD,
                      ignored) == 0);
  CHECK(fanotify_mark(files, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, rotated) == 0 && unlink(rotated) == 0);
  // Not its own blocking, but what it was made with is in its flags.
  const int waiting = fanotify_init(FAN_NONBLOCK, O_RDONLY);
  CHECK(waiting >= 0 && fcntl(waiting, F_SETFL, 0) == 0);
  // Marks of everything, for an event that hardly anybody else causes.
  const int mount = fanotify_init(FAN_NONBLOCK, O_RDONLY | O_CLOEXEC);
  CHECK(mount >= 0 && fanotify_mark(mount, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_OPEN_EXEC, AT_FDCWD, watched) == 0);
  const int filesystem = fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID | FAN_NONBLOCK, 0);
  CHECK(filesystem >= 0);
  CHECK(fanotify_mark(filesystem, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_DELETE_SELF, AT_FDCWD, watched) == 0);
  probe::ready();
  probe::wait_for_go();

  CHECK_EQUAL(fcntl(files, F_GETFD), FD_CLOEXEC);
  CHECK_EQUAL(fcntl(files, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  probe::expect_nothing_to_read(files);
  probe::write_to(watched);
  CHECK_EQUAL(next(files, watched), FAN_MODIFY);
  CHECK(write(unlinked, "x", 1) == 1);
  snprintf(rotated, sizeof rotated, "/proc/self/fd/%d", unlinked);
  CHECK_EQUAL(next(files, rotated), FAN_MODIFY);
  CHECK_EQUAL(fcntl(waiting, F_GETFL) & O_NONBLOCK, 0);
  probe::write_to(ignored);
  probe::expect_nothing_to_read(files);
  probe::write_to(ignored);
  probe::expect_nothing_to_read(files);
  CHECK(unlink(ignored) == 0);
  char event[4096];
  CHECK(read(filesystem, event, sizeof event) > 0);
  return probe::passed();
}
