// io_urings that are idle: completions that nobody has read, entries that are not submitted yet, more requests than
// there are places, those that tell of no success, entries of the larger kinds, an issuer of its own, and what is
// registered: buffers, files, an eventfd. A child shares one of them.
// ROOT: what an io_uring is like only the kernel's memory tells
#include "probe.h"

#include <linux/io_uring.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

#include <initializer_list>

namespace {

constexpr uint32_t single_issuer = 1 << 12, defer_taskrun = 1 << 13, no_sqarray = 1 << 16;

struct Ring {
  io_uring_params made = {};
  int fd = -1;
  char* queues = nullptr;
  char* entries = nullptr;
  uint64_t queues_size = 0, entries_size = 0;

  uint32_t& word(uint32_t offset) const { return *(uint32_t*)(queues + offset); }
  uint32_t entry_size() const { return (made.flags & IORING_SETUP_SQE128) != 0 ? 128 : 64; }
  uint32_t completion_size() const { return (made.flags & IORING_SETUP_CQE32) != 0 ? 32 : 16; }
};

Ring make(uint32_t size, uint32_t flags, uint32_t completions = 0) {
  Ring ring;
  ring.made.flags = flags, ring.made.cq_entries = completions;
  ring.fd = (int)syscall(SYS_io_uring_setup, size, &ring.made);
  CHECK(ring.fd >= 0);
  const uint64_t with_cqes = ring.made.cq_off.cqes + ring.made.cq_entries * ring.completion_size();
  const uint64_t with_array = ring.made.sq_off.array + ring.made.sq_entries * 4;
  ring.queues_size = with_cqes > with_array ? with_cqes : with_array;
  ring.entries_size = ring.made.sq_entries * ring.entry_size();
  ring.queues = (char*)mmap(nullptr, ring.queues_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd,
                            IORING_OFF_SQ_RING);
  ring.entries = (char*)mmap(nullptr, ring.entries_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd,
                             IORING_OFF_SQES);
  CHECK(ring.queues != MAP_FAILED && ring.entries != MAP_FAILED);
  return ring;
}

/// The next entry, which `enter` submits.
io_uring_sqe& prepare(const Ring& ring, uint8_t operation, uint64_t data) {
  const uint32_t tail = ring.word(ring.made.sq_off.tail), place = tail & (ring.made.sq_entries - 1);
  auto& entry = *(io_uring_sqe*)(ring.entries + place * ring.entry_size());
  memset(&entry, 0, ring.entry_size());
  entry.opcode = operation, entry.user_data = data;
  if ((ring.made.flags & no_sqarray) == 0) ring.word(ring.made.sq_off.array + place * 4) = place;
  __atomic_store_n(&ring.word(ring.made.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
  return entry;
}

void enter(const Ring& ring, uint32_t count) {
  CHECK_EQUAL(syscall(SYS_io_uring_enter, ring.fd, count, count, IORING_ENTER_GETEVENTS, nullptr, 0), count);
}

uint32_t unread(const Ring& ring) {
  return __atomic_load_n(&ring.word(ring.made.cq_off.tail), __ATOMIC_ACQUIRE) - ring.word(ring.made.cq_off.head);
}

void expect(const Ring& ring, uint64_t data, int result) {
  CHECK(unread(ring) != 0);
  const uint32_t head = ring.word(ring.made.cq_off.head), place = head & (ring.made.cq_entries - 1);
  const auto& told = *(io_uring_cqe*)(ring.queues + ring.made.cq_off.cqes + place * ring.completion_size());
  CHECK_EQUAL(told.user_data, data);
  CHECK_EQUAL(told.res, result);
  __atomic_store_n(&ring.word(ring.made.cq_off.head), head + 1, __ATOMIC_RELEASE);
}

/// Goes around both queues several times.
void work(const Ring& ring, uint64_t first) {
  for (uint64_t data = first; data < first + 5 * ring.made.cq_entries; ++data) {
    prepare(ring, IORING_OP_NOP, data);
    enter(ring, 1);
    expect(ring, data, 0);
  }
  CHECK_EQUAL(unread(ring), 0);
}

/// Some that have been read, and some, around the end of the queue, that have not.
void begin(const Ring& ring, uint32_t read, uint32_t left) {
  for (uint64_t data = 0; data < read + left; ++data) {
    prepare(ring, IORING_OP_NOP, 1000 + data);
    enter(ring, 1);
    if (data < read) expect(ring, 1000 + data, 0);
  }
}
void expect_left(const Ring& ring, uint32_t read, uint32_t left) {
  CHECK_EQUAL(unread(ring), left);
  for (uint64_t data = read; data < read + left; ++data) expect(ring, 1000 + data, 0);
}

int set_up(int fd, unsigned what, const void* argument, unsigned count) {
  return (int)syscall(SYS_io_uring_register, fd, what, argument, count);
}

struct Registered {
  Ring ring;
  int ends[2], event;
  char* from;
  char* into;
};

Registered registered() {
  Registered all{.ring = make(4, 0), .ends = {}, .event = eventfd(0, EFD_NONBLOCK), .from = nullptr, .into = nullptr};
  CHECK(pipe(all.ends) == 0 && all.event >= 0);
  all.from = (char*)mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  all.into = all.from + 4096;
  const iovec buffers[] = {{all.from, 100}, {all.into, 4096}};
  const int files[] = {all.ends[1], -1, all.ends[0]};
  CHECK(set_up(all.ring.fd, IORING_REGISTER_BUFFERS, buffers, 2) == 0);
  CHECK(set_up(all.ring.fd, IORING_REGISTER_FILES, files, 3) == 0);
  CHECK(set_up(all.ring.fd, IORING_REGISTER_EVENTFD, &all.event, 1) == 0);
  return all;
}

void through_fixed(const Registered& all, uint8_t operation, int file, char* buffer, uint16_t index, uint64_t data) {
  auto& entry = prepare(all.ring, operation, data);
  entry.fd = file, entry.flags = IOSQE_FIXED_FILE, entry.addr = (uint64_t)buffer, entry.len = 4,
  entry.buf_index = index;
  entry.off = (uint64_t)-1;
  enter(all.ring, 1);
  expect(all.ring, data, 4);
}

void use(const Registered& all, const char* text) {
  memcpy(all.from, text, 4);
  memset(all.into, 0, 4);
  through_fixed(all, IORING_OP_WRITE_FIXED, 0, all.from, 0, 1);
  through_fixed(all, IORING_OP_READ_FIXED, 2, all.into, 1, 2);
  CHECK(memcmp(all.into, text, 4) == 0);
  uint64_t told = 0;
  CHECK(read(all.event, &told, sizeof told) == sizeof told && told == 2);
}

}  // namespace

int main(int argc, char** argv) {
  probe::begin(argc, argv);
  const Ring fresh = make(8, 0), plain = make(8, 0);
  begin(plain, 21, 9);  // of 16 places
  const Ring large = make(4, IORING_SETUP_SQE128 | IORING_SETUP_CQE32 | IORING_SETUP_CQSIZE | no_sqarray, 32);
  begin(large, 3, 30);
  // Submitted, but told of only if it fails; and not submitted yet.
  const Ring own = make(16, IORING_SETUP_SUBMIT_ALL | single_issuer | defer_taskrun);
  for (int i = 0; i < 40; ++i) {
    prepare(own, IORING_OP_NOP, 0).flags = IOSQE_CQE_SKIP_SUCCESS;
    CHECK_EQUAL(syscall(SYS_io_uring_enter, own.fd, 1, 0, 0, nullptr, 0), 1);
  }
  prepare(own, IORING_OP_NOP, 77);
  const Registered all = registered();
  use(all, "once");
  const Ring common = make(2, 0);
  begin(common, 1, 1);
  auto* const turn = probe::shared_memory<int>();
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    for (const int fd : {own.fd, all.ring.fd}) CHECK(close(fd) == 0);  // what only one process can have
    probe::await(turn, 1);
    work(common, 500);
    _exit(0);
  }

  probe::ready();
  probe::wait_for_go();

  expect_left(common, 1, 1);
  __atomic_store_n(turn, 1, __ATOMIC_RELEASE);
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK_EQUAL(status, 0);
  work(common, 600);
  work(fresh, 1);
  expect_left(plain, 21, 9);
  work(plain, 100);
  expect_left(large, 3, 30);
  work(large, 200);
  CHECK_EQUAL(unread(own), 0);
  enter(own, 1);
  expect(own, 77, 0);
  work(own, 300);
  use(all, "more");
  probe::passed();
}
