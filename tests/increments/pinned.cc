// A process whose memory a device or the kernel writes to without its page tables: a buffer that is registered with an
// io_uring. For each file `step-N` that appears it has page N of the buffer read anew, and makes a file `done-N`; when
// the file `go` appears every page is compared.
//
//   pinned DIRECTORY
#include <linux/io_uring.h>
#include <sys/uio.h>

#include "../system/programs/probe.h"

namespace {

constexpr size_t page = 4096, pages = 16;

bool exists(const char* name, unsigned number) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s-%u", probe::directory, name, number);
  return access(path, F_OK) == 0;
}

void make(const char* name, unsigned number) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s-%u", probe::directory, name, number);
  CHECK(close(open(path, O_CREAT | O_WRONLY, 0644)) == 0);
}

class Ring {
 public:
  explicit Ring(void* buffer) : buffer_(static_cast<char*>(buffer)) {
    fd_ = static_cast<int>(syscall(SYS_io_uring_setup, 1, &told_));
    CHECK(fd_ >= 0);
    queues_ = map(told_.cq_off.cqes + told_.cq_entries * sizeof(io_uring_cqe), IORING_OFF_SQ_RING);
    entry_ = reinterpret_cast<io_uring_sqe*>(map(sizeof(io_uring_sqe), IORING_OFF_SQES));
    const iovec all = {buffer, page * pages};
    CHECK(syscall(SYS_io_uring_register, fd_, IORING_REGISTER_BUFFERS, &all, 1) == 0);
  }

  void read_fixed(int file, unsigned number) {
    memset(entry_, 0, sizeof *entry_);
    entry_->opcode = IORING_OP_READ_FIXED, entry_->fd = file, entry_->len = page;
    entry_->addr = reinterpret_cast<uint64_t>(buffer_ + number * page);
    word(told_.sq_off.array) = 0;
    ++word(told_.sq_off.tail);
    CHECK_EQUAL(syscall(SYS_io_uring_enter, fd_, 1, 1, IORING_ENTER_GETEVENTS, nullptr, 0), 1);
    const auto* done = reinterpret_cast<io_uring_cqe*>(queues_ + told_.cq_off.cqes);
    unsigned& head = word(told_.cq_off.head);
    CHECK_EQUAL(done[head++ % told_.cq_entries].res, page);
  }

 private:
  char* map(size_t size, off_t offset) const {
    void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, offset);
    CHECK(at != MAP_FAILED);
    return static_cast<char*>(at);
  }
  unsigned& word(unsigned offset) { return *reinterpret_cast<unsigned*>(queues_ + offset); }

  io_uring_params told_ = {};
  int fd_;
  char *buffer_, *queues_;
  io_uring_sqe* entry_;
};

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  char path[4096], expected[pages], content[page];
  snprintf(path, sizeof path, "%s/content", probe::directory);
  memset(content, 'n', sizeof content), memset(expected, 'o', sizeof expected);
  const int file = open(path, O_CREAT | O_RDWR, 0644);
  CHECK(file >= 0 && write(file, content, page) == page);
  void* const buffer = mmap(nullptr, page * pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(buffer != MAP_FAILED);
  memset(buffer, 'o', page * pages);
  Ring ring(buffer);

  probe::ready();
  snprintf(path, sizeof path, "%s/go", probe::directory);
  for (unsigned next = 0; access(path, F_OK) != 0; usleep(1000)) {
    if (next == pages || !exists("step", next)) continue;
    ring.read_fixed(file, next);
    CHECK(lseek(file, 0, SEEK_SET) == 0);
    expected[next] = 'n';
    make("done", next++);
  }
  for (size_t at = 0; at < page * pages; ++at) {
    if (static_cast<char*>(buffer)[at] != expected[at / page]) probe::failed("byte %zu is as it was before", at);
  }
  return probe::passed();
}
