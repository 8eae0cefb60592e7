// The interpreter: everything that stasis ever runs inside another process. See abi.h for the contract.
//
// Freestanding and without vector instructions: the extended state of the task must stay untouched. It is compiled
// twice, into the blob and into stasis itself, where it runs the supervisor's slot.
#include "agent/abi.h"
#include "agent/arch/x86_64/fault.h"
#include "agent/arch/x86_64/syscall.h"
#include "agent/packet_rings.h"

namespace stasis::agent {
namespace {

class Interpreter {
 public:
  Interpreter(uint8_t* area, uint32_t index)
      : area_(area),
        header_(*reinterpret_cast<Header*>(area + code_space)),
        slot_(at<Slot>(header_.slots)[index]),
        index_(index),
        results_(at<int64_t>(slot_.results)) {}

  void run() {
    slot_.host_pid = static_cast<int32_t>(raw_syscall(call_getpid));
    slot_.tid = static_cast<int32_t>(raw_syscall(call_gettid));
    store(slot_.state, slot_running);
    const auto* program = at<const Instruction>(slot_.instructions);
    for (uint32_t i = slot_.program_counter; i < slot_.instruction_count; ++i) {
      vanish_if_abandoned();
      slot_.program_counter = i;
      const int64_t result = execute(program[i]);
      results_[i] = result;
      if (!as_expected(program[i], result)) {
        fail(i, result);
        break;
      }
    }
    end();
  }

 private:
  template <typename T>
  T* at(uint64_t offset) {
    return reinterpret_cast<T*>(area_ + offset);
  }
  static uint32_t load(uint32_t& word) { return __atomic_load_n(&word, __ATOMIC_ACQUIRE); }
  static void store(uint32_t& word, uint32_t value) { __atomic_store_n(&word, value, __ATOMIC_RELEASE); }
  /// Bounded, so that a wake-up lost to a failing neighbour costs a moment and not forever.
  static int64_t sleep_on(uint32_t& word, uint32_t seen, int64_t nanoseconds = 20'000'000) {
    const int64_t pause[2] = {0, nanoseconds};
    return raw_syscall(call_futex, reinterpret_cast<uint64_t>(&word), 0, seen, reinterpret_cast<uint64_t>(pause));
  }
  static void wake(uint32_t& word) { raw_syscall(call_futex, reinterpret_cast<uint64_t>(&word), 1, 0x7fffffff); }

  uint64_t argument(const Instruction& instruction, int index) {
    const uint64_t value = instruction.args[index];
    switch (instruction.kinds[index]) {
      case ArgumentKind::data:
        return reinterpret_cast<uint64_t>(area_ + value);
      case ArgumentKind::word:
        return static_cast<uint64_t>(static_cast<int64_t>(*reinterpret_cast<const int32_t*>(area_ + value)));
      case ArgumentKind::result:
        return static_cast<uint64_t>(results_[value]);
      case ArgumentKind::immediate:
        break;
    }
    return value;
  }

  int64_t execute(const Instruction& instruction) {
    uint64_t a[6];
    for (int i = 0; i < 6; ++i) a[i] = argument(instruction, i);
    switch (instruction.operation) {
      case Operation::call:
        return raw_syscall(instruction.number, a[0], a[1], a[2], a[3], a[4], a[5]);
      case Operation::read_fully:
        return transfer(call_read, call_pread, a);
      case Operation::write_fully:
        return transfer(call_write, call_pwrite, a);
      case Operation::wait:
        return wait(at<uint32_t>(header_.counters)[a[0]], static_cast<uint32_t>(a[1]));
      case Operation::post:
        return post(at<uint32_t>(header_.counters)[a[0]], static_cast<uint32_t>(a[1]), static_cast<uint32_t>(a[2]));
      case Operation::spawn:
        return spawn_slot(at<uint8_t>(instruction.args[0]), clone_args_size, area_, instruction.args[1]);
      case Operation::exit:
        leave(a[0], a[1]);
        return 0;
      case Operation::await_child:
        return await_child(a[0]);
      case Operation::get_actions:
        return get_actions(a[0]);
      case Operation::move_fd:
        return move_fd(a[0], a[1], a[2], a[3]);
      case Operation::start_overrun_timer:
        return start_overrun_timer(a[0], a[1], reinterpret_cast<const Interval*>(a[2]), a[3], a[4]);
      case Operation::epoll_add_fired:
        return epoll_add_fired(a[0], a[1], a[2], a[3]);
      case Operation::open_at:
        return open_at(a[0], a[1], a[2], a[3]);
      case Operation::setup_aio:
        return setup_aio(a[0], a[1], a[2], reinterpret_cast<const AioRingState*>(a[3]));
      case Operation::open_terminal:
        return open_terminal(a[0], a[1], reinterpret_cast<uint32_t*>(a[2]));
      case Operation::setup_io_uring:
        return setup_io_uring(reinterpret_cast<IoUringParameters*>(a[0]), reinterpret_cast<const IoUringState*>(a[1]));
      case Operation::map_in_place:
        return map_in_place(a[0], a[1], a[2], a[3], a[4], reinterpret_cast<AddressSpan*>(a[5]));
      case Operation::make_segment:
        return make_segment(a);
      case Operation::remove_segment:
        return remove_segment(a[0]);
      case Operation::hold_directory:
        return hold_directory(a[0]);
      case Operation::lead_packet_rings:
        return PacketRingLead(a[0], *reinterpret_cast<const PacketRings*>(a[2])).run(a[1]);
      case Operation::halt:
        return 0;
    }
    return -38;
  }

  static bool as_expected(const Instruction& instruction, int64_t result) {
    const bool success = result < -4095 || result >= 0;
    switch (instruction.expect) {
      case Expect::anything:
        return true;
      case Expect::success:
        return success;
      case Expect::exactly:
        return result == instruction.expected;
      case Expect::success_or:
        return success || result == instruction.expected;
    }
    return false;
  }

  /// All of it, or the first error; a file that ends early is one (EIO).
  static int64_t transfer(uint32_t sequential, uint32_t positioned, const uint64_t (&a)[6]) {
    const bool has_position = a[3] != ~0ull;
    uint64_t done = 0;
    while (done < a[2]) {
      const int64_t moved = has_position ? raw_syscall(positioned, a[0], a[1] + done, a[2] - done, a[3] + done)
                                         : raw_syscall(sequential, a[0], a[1] + done, a[2] - done);
      if (moved == -4) continue;
      if (moved < 0) return moved;
      if (moved == 0) return -5;
      done += static_cast<uint64_t>(moved);
    }
    return static_cast<int64_t>(done);
  }

  static int64_t move_fd(uint64_t from, uint64_t to, uint64_t close_on_exec, uint64_t opened_so) {
    if (from == to) return opened_so != 0 ? 0 : raw_syscall(call_fcntl, to, 2 /* F_SETFD */, close_on_exec != 0);
    const int64_t moved = raw_syscall(call_dup3, from, to, close_on_exec);
    raw_syscall(call_close, from);
    return moved;
  }

  static constexpr uint64_t working_directory = static_cast<uint64_t>(-100);  // AT_FDCWD

  static int64_t open_at(uint64_t path, uint64_t flags, uint64_t mode, uint64_t to) {
    constexpr uint64_t close_on_exec = 02000000;
    const int64_t opened = raw_syscall(call_openat, working_directory, path, flags, mode);
    return opened < 0 ? opened : move_fd(static_cast<uint64_t>(opened), to, flags & close_on_exec, 1);
  }

  struct Time {
    int64_t seconds, nanoseconds;
    int64_t total() const { return seconds * second + nanoseconds; }
    static constexpr int64_t second = 1'000'000'000;
  };
  struct Interval {  // struct itimerspec
    Time interval, value;
  };

  /// The kernel counts overruns when it sets the timer forward on delivery of its signal (kernel/time/posix-timers.c):
  /// the timer is given a beginning so far back that just so many periods are over, and its signal, which is blocked,
  /// is taken. Where the clock is younger than that, the timer starts without overruns.
  static int64_t start_overrun_timer(uint64_t timer, uint64_t clock, const Interval* wanted, uint64_t signal,
                                     uint64_t overruns) {
    Time now{};
    const int64_t known = raw_syscall(call_clock_gettime, clock, reinterpret_cast<uint64_t>(&now));
    if (known < 0) return known;
    const int64_t interval = wanted->interval.total();
    int64_t past = 0, begin = 0;
    const bool too_long = __builtin_mul_overflow(static_cast<int64_t>(overruns + 1), interval, &past) ||
                          __builtin_sub_overflow(now.total() + wanted->value.total(), past, &begin);
    if (too_long || begin <= 0) return raw_syscall(call_timer_settime, timer, 0, reinterpret_cast<uint64_t>(wanted), 0);
    const Interval back{wanted->interval, {begin / Time::second, begin % Time::second}};
    constexpr uint64_t absolute = 1;  // TIMER_ABSTIME
    const int64_t set = raw_syscall(call_timer_settime, timer, absolute, reinterpret_cast<uint64_t>(&back), 0);
    if (set < 0) return set;
    const uint64_t only = 1ull << (signal - 1);
    const Time patience{10, 0};
    return raw_syscall(call_rt_sigtimedwait, reinterpret_cast<uint64_t>(&only), 0,
                       reinterpret_cast<uint64_t>(&patience), 8);
  }

  /// epoll_ctl always adds EPOLLERR and EPOLLHUP to what it is given: only firing leads to a one-shot that waits for
  /// nothing. So it is added for all events and taken at once. If there is none to take, errors and hang-ups remain.
  static int64_t epoll_add_fired(uint64_t epoll, uint64_t target, uint64_t all_events, uint64_t kept) {
    constexpr uint64_t add = 1, modify = 3;
    const int64_t added = raw_syscall(call_epoll_ctl, epoll, add, target, all_events);
    if (added < 0) return added;
    uint64_t taken[2];  // struct epoll_event is 12 or 16 bytes
    const int64_t fired = raw_syscall(call_epoll_pwait, epoll, reinterpret_cast<uint64_t>(taken), 1, 0, 0, 8);
    return fired != 0 ? fired : raw_syscall(call_epoll_ctl, epoll, modify, target, kept);
  }

  /// Where the ring's tail stands only the kernel knows, which moves it with each request that completes: so many reads
  /// of nothing. Those that come before the events that nobody has taken are taken at once, the others are replaced.
  static int64_t setup_aio(uint64_t requests, uint64_t address, uint64_t length, const AioRingState* wanted) {
    constexpr uint64_t may_move_to_fixed = 3, event_words = 4;
    struct Ring {
      uint32_t id, slots, head, tail, magic, compatible, incompatible, header_length;
      uint64_t events[1];
    };
    uint64_t context = 0;
    const int64_t made = raw_syscall(call_io_setup, requests, reinterpret_cast<uint64_t>(&context));
    if (made < 0) return made;
    if (context == 0 || reinterpret_cast<Ring*>(context)->slots != wanted->slots) return error_invalid;
    if (context != address) {
      const int64_t moved = raw_syscall(call_mremap, context, length, length, may_move_to_fixed, address);
      if (moved < 0 && moved > -4096) return moved;
    }
    auto* ring = reinterpret_cast<volatile Ring*>(address);
    const uint32_t slots = wanted->slots, unread = (wanted->tail + slots - wanted->head) % slots;
    uint32_t left = wanted->tail >= unread ? wanted->tail : wanted->tail + slots;
    if (left == 0) return 0;
    uint64_t request[8] = {};  // struct iocb: a read (0) of no bytes of a file
    const int64_t file = raw_syscall(call_memfd_create, reinterpret_cast<uint64_t>(request), 0);  // of no name
    if (file < 0) return file;
    request[2] = static_cast<uint64_t>(file) << 32;
    const uint64_t list[1] = {reinterpret_cast<uint64_t>(request)};
    int64_t result = 1;
    for (; left != 0 && result == 1; --left) {
      result = raw_syscall(call_io_submit, address, 1, reinterpret_cast<uint64_t>(list));
      if (left > unread) ring->head = ring->tail;
    }
    raw_syscall(call_close, static_cast<uint64_t>(file));
    if (result != 1) return result < 0 ? result : error_invalid;
    const auto* events = reinterpret_cast<const uint64_t*>(wanted + 1);
    for (uint32_t i = 0; i < unread; ++i) {
      for (uint64_t word = 0; word < event_words; ++word)
        ring->events[(wanted->head + i) % slots * event_words + word] = events[i * event_words + word];
    }
    return 0;
  }

  static constexpr int64_t error_exists = -17, error_invalid = -22, error_too_many = -7, error_no_child = -10,
                           error_busy = -16, error_again = -11;
  static constexpr uint64_t remove_id = 0;         // IPC_RMID
  static constexpr int64_t error_canceled = -125;  ///< somebody else's failure is the one to report
  static bool is_error(int64_t result) { return result < 0 && result > -4096; }
  static int64_t map(uint64_t at, uint64_t size, uint64_t protection, uint64_t flags, uint64_t fd, uint64_t offset) {
    return raw_syscall(call_mmap, at, size, protection, flags, fd, offset);
  }

  /// Everything that is free but the wanted place is taken for the moment, large pieces first: then the kernel's choice
  /// is ours. What it looks for is the same for both (io_uring/memmap.c, io_uring_get_unmapped_area).
  static int64_t map_in_place(uint64_t fd, uint64_t address, uint64_t size, uint64_t offset, uint64_t protection,
                              AddressSpan* taken) {
    constexpr uint64_t shared = 0x01, reserved = 0x4022, not_over = 0x100000;  // PRIVATE | ANONYMOUS | NORESERVE
    constexpr uint64_t nothing = ~0ull, largest = 1ull << 46, page = 4096;
    uint64_t count = 0;
    int64_t result = map(address, size, 0, reserved | not_over, nothing, 0);
    if (is_error(result)) return result;
    for (uint64_t piece = largest; piece >= page && !is_error(result);) {
      const int64_t at = map(0, piece, 0, reserved, nothing, 0);
      if (is_error(at))
        piece /= 2;
      else if (!add_span(taken, count, {static_cast<uint64_t>(at), piece}))
        result = error_too_many;
    }
    raw_syscall(call_munmap, address, size);
    if (!is_error(result)) result = map(0, size, protection, shared, fd, offset);
    while (count > 0) --count, raw_syscall(call_munmap, taken[count].begin, taken[count].size);
    if (is_error(result) || static_cast<uint64_t>(result) == address) return result;
    raw_syscall(call_munmap, static_cast<uint64_t>(result), size);
    return error_exists;
  }

  /// Joins it with one that it touches: there are as many in the end as there were gaps.
  static bool add_span(AddressSpan* spans, uint64_t& count, AddressSpan added) {
    for (uint64_t i = 0; i < count; ++i) {
      if (spans[i].begin + spans[i].size != added.begin && added.begin + added.size != spans[i].begin) continue;
      if (added.begin < spans[i].begin) spans[i].begin = added.begin;
      spans[i].size += added.size;
      return true;
    }
    if (count == spans_of_address_space) {
      raw_syscall(call_munmap, added.begin, added.size);
      return false;
    }
    spans[count++] = added;
    return true;
  }

  /// An io_uring of ours and its queues, mapped somewhere.
  struct IoUring {
    int64_t fd = -1;
    uint64_t rings = 0, entries = 0;
    const IoUringParameters& made;
    uint64_t ring_size = 0, entries_size = 0;

    volatile uint32_t& word(uint32_t offset) const { return *reinterpret_cast<volatile uint32_t*>(rings + offset); }
    bool has_array() const { return (made.flags & no_array) == 0; }
    uint64_t entry_size() const { return (made.flags & large_entries) != 0 ? 128 : 64; }
    uint64_t completion_size() const { return (made.flags & large_completions) != 0 ? 32 : 16; }

    static constexpr uint32_t large_entries = 1 << 10, large_completions = 1 << 11, no_array = 1 << 16;
  };

  static int64_t open_io_uring(IoUring& ring, IoUringParameters* parameters) {
    constexpr uint64_t read_write = 3, shared_populated = 0x8001, of_entries = 0x10000000;
    ring.fd = raw_syscall(call_io_uring_setup, parameters->sq_entries, reinterpret_cast<uint64_t>(parameters));
    if (ring.fd < 0) return ring.fd;
    const uint64_t completions = parameters->cq.cqes + parameters->cq_entries * ring.completion_size();
    const uint64_t array = parameters->sq.array + uint64_t{parameters->sq_entries} * sizeof(uint32_t);
    ring.ring_size = ring.has_array() && array > completions ? array : completions;
    ring.entries_size = parameters->sq_entries * ring.entry_size();
    const auto fd = static_cast<uint64_t>(ring.fd);
    const int64_t rings = map(0, ring.ring_size, read_write, shared_populated, fd, 0);
    const int64_t entries = map(0, ring.entries_size, read_write, shared_populated, fd, of_entries);
    if (!is_error(rings)) ring.rings = static_cast<uint64_t>(rings);
    if (!is_error(entries)) ring.entries = static_cast<uint64_t>(entries);
    return is_error(rings) ? rings : is_error(entries) ? entries : 0;
  }

  static int64_t close_io_uring(const IoUring& ring, int64_t result) {
    if (ring.rings != 0) raw_syscall(call_munmap, ring.rings, ring.ring_size);
    if (ring.entries != 0) raw_syscall(call_munmap, ring.entries, ring.entries_size);
    if (result >= 0) return ring.fd;
    if (ring.fd >= 0) raw_syscall(call_close, static_cast<uint64_t>(ring.fd));
    return result;
  }

  /// How far its queues have come the kernel knows by itself: the submission queue by what it has taken, the completion
  /// queue by what it has told. So it is given as much that does nothing. Completions that nobody is to have read yet
  /// are not read on the way either: the kernel looks ahead which places are free (io_uring/io_uring.c,
  /// io_cqe_cache_refill).
  static int64_t setup_io_uring(IoUringParameters* parameters, const IoUringState* wanted) {
    IoUring ring{.made = *parameters};
    int64_t result = open_io_uring(ring, parameters);
    if (result < 0) return close_io_uring(ring, result);
    for (uint32_t i = 0; ring.has_array() && i < parameters->sq_entries; ++i)
      ring.word(parameters->sq.array + i * sizeof(uint32_t)) = i;
    const uint32_t told = wanted->cq_tail, read = wanted->cq_head;
    const uint32_t silent = wanted->sq_head - told;
    if (wanted->sq_head < told) return close_io_uring(ring, error_invalid);
    result = submit_nothing(ring, silent, true, read);
    if (result == 0) result = submit_nothing(ring, told, false, read);
    if (result == 0 &&
        (ring.word(parameters->sq.head) != wanted->sq_head || ring.word(parameters->cq.tail) != wanted->cq_tail))
      result = error_invalid;
    if (result != 0) return close_io_uring(ring, result);
    const auto* content = reinterpret_cast<const uint8_t*>(wanted + 1);
    content = fill(ring.entries, content, wanted->sqes_size);
    content = fill(ring.rings + parameters->cq.cqes, content, wanted->cqes_size);
    fill(ring.rings + parameters->sq.array, content, wanted->array_size);
    ring.word(parameters->sq.tail) = wanted->sq_tail;
    ring.word(parameters->sq.dropped) = wanted->sq_dropped;
    ring.word(parameters->sq.flags) = wanted->sq_flags;
    ring.word(parameters->cq.head) = wanted->cq_head;
    ring.word(parameters->cq.overflow) = wanted->cq_overflow;
    ring.word(parameters->cq.flags) = wanted->cq_flags;
    return close_io_uring(ring, 0);
  }

  static const uint8_t* fill(uint64_t to, const uint8_t* from, uint32_t size) {
    auto* bytes = reinterpret_cast<volatile uint8_t*>(to);
    for (uint32_t i = 0; i < size; ++i) bytes[i] = from[i];
    return from + size;
  }

  /// IORING_OP_NOP is 0, and so are all its fields. `last_read`: completions are read up to there.
  static int64_t submit_nothing(const IoUring& ring, uint32_t left, bool silently, uint32_t last_read) {
    constexpr uint8_t skip_success = 1 << 6;  // IOSQE_CQE_SKIP_SUCCESS
    const auto& at = ring.made;
    for (uint64_t i = 0; i < at.sq_entries; ++i)
      reinterpret_cast<volatile uint8_t*>(ring.entries + i * ring.entry_size())[1] = silently ? skip_success : 0;
    while (left != 0) {
      const uint32_t told = ring.word(at.cq.tail);
      const uint32_t read = told < last_read ? told : last_read;
      ring.word(at.cq.head) = read;
      const uint32_t room = at.cq_entries - (told - read);
      uint32_t count = left < at.sq_entries ? left : at.sq_entries;
      if (!silently && count > room) count = room;
      ring.word(at.sq.tail) = ring.word(at.sq.head) + count;
      const int64_t done = raw_syscall(call_io_uring_enter, static_cast<uint64_t>(ring.fd), count, 0, 0, 0, 0);
      if (done < 0) return done;
      if (done != count) return error_invalid;
      left -= count;
    }
    return 0;
  }

  static constexpr int64_t a_moment = 1'000'000;
  /// Tries again as long as somebody else is in the way, for some seconds, and as long as nobody has failed.
  template <typename Attempt>
  int64_t while_it_is(int64_t in_the_way, int64_t pause, Attempt attempt) {
    constexpr int attempts = 3000;
    int64_t result = attempt();
    for (int i = 1; i < attempts && result == in_the_way && load(header_.failed) == 0; ++i) {
      sleep_on(header_.failed, 0, pause);
      result = attempt();
    }
    return result;
  }

  /// A new pseudo-terminal gets the lowest index that is free (fs/devpts/inode.c, devpts_new_index): those below the
  /// wanted one are kept open until it comes. If a higher one comes, the wanted one is taken, perhaps only by another
  /// restore that holds it for such a moment: each lets all go then, and tries again after a pause.
  int64_t open_terminal(uint64_t index, uint64_t flags, uint32_t* held) {
    const int64_t pause = a_moment + static_cast<int64_t>(index % 8) * (a_moment / 8);
    return while_it_is(error_busy, pause, [&] { return try_open_terminal(index, flags, held); });
  }
  static int64_t try_open_terminal(uint64_t index, uint64_t flags, uint32_t* held) {
    constexpr uint64_t get_index = 0x80045430;  // TIOCGPTN
    const char path[] = {'/', 'd', 'e', 'v', '/', 'p', 't', 'm', 'x', '\0'};
    uint64_t count = 0;
    int64_t master = 0;
    for (;;) {
      master = raw_syscall(call_openat, working_directory, reinterpret_cast<uint64_t>(path), flags);
      if (master < 0) break;
      uint32_t got = 0;
      const int64_t known =
          raw_syscall(call_ioctl, static_cast<uint64_t>(master), get_index, reinterpret_cast<uint64_t>(&got));
      if (known == 0 && got == index) break;
      if (known == 0 && got < index && count < index) {
        held[count++] = static_cast<uint32_t>(master);
        continue;
      }
      raw_syscall(call_close, static_cast<uint64_t>(master));
      master = known < 0 ? known : error_busy;
      break;
    }
    while (count > 0) raw_syscall(call_close, held[--count]);
    return master;
  }

  /// The id that is asked for is the whole namespace's (ipc/util.c, ipc_idr_alloc): whoever makes a segment next gets
  /// it, or one beside it if it is taken. What came with another id goes again, and the next attempt may be the luckier
  /// one.
  static int64_t make_segment(const uint64_t (&a)[6]) {
    constexpr int attempts = 200;
    constexpr uint64_t write_only = 01, close_on_exec = 02000000;
    const auto* text = reinterpret_cast<const char*>(a[5]);
    uint64_t length = 0;
    while (text[length] != '\0') ++length;
    for (int attempt = 0; attempt < attempts; ++attempt) {
      const int64_t opened = raw_syscall(call_openat, working_directory, a[4], write_only | close_on_exec);
      if (opened < 0) return opened;
      const int64_t written = raw_syscall(call_write, static_cast<uint64_t>(opened), a[5], length);
      raw_syscall(call_close, static_cast<uint64_t>(opened));
      if (written < 0) return written;
      const int64_t id = raw_syscall(call_shmget, a[1], a[2], a[3]);
      if (id < 0 || static_cast<uint64_t>(id) == a[0]) return id;
      raw_syscall(call_shmctl, static_cast<uint64_t>(id), remove_id, 0);
    }
    return error_busy;
  }

  /// Somebody else may have taken the id first.
  static int64_t remove_segment(uint64_t id) {
    constexpr uint64_t get_status = 2;
    uint64_t status[14] = {};                       // struct shmid64_ds
    constexpr int creator = 80 / sizeof(uint64_t);  // shm_cpid, in its lower half
    const int64_t known = raw_syscall(call_shmctl, id, get_status, reinterpret_cast<uint64_t>(&status));
    if (known < 0) return known;
    const bool is_ours = static_cast<int32_t>(status[creator]) == static_cast<int32_t>(raw_syscall(call_getpid));
    return is_ours ? raw_syscall(call_shmctl, id, remove_id, 0) : 0;
  }

  /// An application may hold it, too, even one that is being restored: no reason to wait forever.
  int64_t hold_directory(uint64_t path) {
    constexpr uint64_t directory_only = 0200000 | 02000000;  // O_DIRECTORY | O_CLOEXEC
    constexpr uint64_t exclusive = 2, at_once = 4;           // LOCK_EX, LOCK_NB
    const int64_t opened = raw_syscall(call_openat, working_directory, path, directory_only);
    if (opened < 0) return opened;
    while_it_is(error_again, a_moment,
                [&] { return raw_syscall(call_flock, static_cast<uint64_t>(opened), exclusive | at_once); });
    return opened;
  }

  static int64_t get_actions(uint64_t into) {
    constexpr uint64_t action_size = 32;  // struct sigaction of the kernel on 64-bit machines
    for (uint64_t signal = 1; signal <= 64; ++signal, into += action_size)
      raw_syscall(call_rt_sigaction, signal, 0, into, 8);
    return 0;
  }

  /// The supervisor has died: nobody will ever let us go, and we hold what was to be restored. A filter that forbids to
  /// end (spin) cannot forbid a fault, which ends who blocks its signal (kernel/signal.c, force_sig_info_to_task).
  void vanish_if_abandoned() {
    if ((load(header_.supervision.word) & owner_died) == 0) return;
    raw_syscall(call_exit_group, 1);
    for (;;) fault(SIGILL);
  }

  int64_t wait(uint32_t& counter, uint32_t value) {
    for (;;) {
      vanish_if_abandoned();
      const uint32_t now = load(counter);
      if (now >= value) return 0;
      if (load(header_.failed) != 0) return error_canceled;
      sleep_on(counter, now);
    }
  }

  /// The kernel tells nobody that a thread has taken over the children of another of its process; a pidfd of a first
  /// thread is ready only when the last has ended (fs/pidfs.c, pidfd_poll). So it is asked again and again, with pauses
  /// in which a thread of lower priority can come to its end.
  int64_t await_child(uint64_t child) {
    constexpr uint64_t one = 1, exited = 4, at_once = 1, keep = 0x1000000, of_this_thread = 0x20000000;
    for (;;) {
      vanish_if_abandoned();
      const int64_t found = raw_syscall(call_waitid, one, child, 0, exited | at_once | keep | of_this_thread, 0);
      if (found != error_no_child) return found;
      if (load(header_.failed) != 0) return error_canceled;
      sleep_on(header_.failed, 0, 100'000);
    }
  }

  static int64_t post(uint32_t& counter, uint32_t amount, uint32_t wake_from) {
    if (__atomic_add_fetch(&counter, amount, __ATOMIC_ACQ_REL) >= wake_from) wake(counter);
    return 0;
  }

  /// Ends this process with an exit code or by a signal of its own.
  static void leave(uint64_t how, uint64_t value) {
    if (how == 0) raw_syscall(call_exit_group, value);
    if (how == 2) raw_syscall(call_exit, value);
    if (how == 3) raw_syscall(call_getpid);
    if (how == 4) fault(value);
    const uint64_t default_action[4] = {0, 0, 0, 0};
    const uint64_t only = 1ull << (value - 1);
    raw_syscall(call_rt_sigaction, value, reinterpret_cast<uint64_t>(default_action), 0, 8);
    raw_syscall(call_rt_sigprocmask, 1, reinterpret_cast<uint64_t>(&only), 0, 8);
    raw_syscall(call_kill, static_cast<uint64_t>(raw_syscall(call_getpid)), value);
    raw_syscall(call_exit_group, 127);
  }

  void fail(uint32_t instruction, int64_t result) {
    uint32_t nobody = 0;
    if (__atomic_compare_exchange_n(&header_.failed, &nobody, failing, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
      header_.failed_instruction = instruction;
      header_.failed_result = result;
      store(header_.failed, 1 + index_);
    }
    failed_ = true;
    store(slot_.state, slot_failed);
    wake(slot_.state);
    wake(header_.failed);
    for (uint32_t i = 0; i < header_.counter_count; ++i) wake(at<uint32_t>(header_.counters)[i]);
  }

  void end() {
    switch (slot_.end_mode) {
      case EndMode::return_to_caller:
        if (!failed_) store(slot_.state, slot_done);
        return;
      case EndMode::exit_thread:
        raw_syscall(call_exit, 0);
        break;
      case EndMode::park:
        park();
        break;
      case EndMode::park_spinning:
        spin();
        break;
      case EndMode::notify_then_leave:
        store(slot_.state, failed_ ? slot_failed : slot_done);
        raw_syscall(call_tgkill, slot_.host_pid, slot_.tid, slot_.notify_signal);
        jump_to(at<uint8_t>(slot_.leave_code));
    }
  }

  /// Who says that it is done may be stopped at once: it has been counted by then, or nobody would count it.
  void become_ready() {
    // Nobody sleeps on this one: stasis looks at it from time to time.
    __atomic_add_fetch(&at<uint32_t>(header_.counters)[ready_counter], 1, __ATOMIC_ACQ_REL);
    store(slot_.state, slot_done);
  }

  /// Complete: sleeps until ptrace takes the thread over.
  [[noreturn]] void park() {
    if (!failed_) become_ready();
    for (;;) {
      vanish_if_abandoned();
      sleep_on(slot_.state, load(slot_.state));
    }
  }

  /// The same without any system call: what seccomp lets through is not ours to guess.
  [[noreturn]] void spin() {
    if (failed_) park();
    become_ready();
    for (;;) {
      vanish_if_abandoned();
      asm volatile("pause");
    }
  }

  uint8_t* area_;
  Header& header_;
  Slot& slot_;
  uint32_t index_;
  int64_t* results_;
  bool failed_ = false;
};

}  // namespace

extern "C" void stasis_agent_run(uint8_t* area, uint64_t slot) { Interpreter(area, static_cast<uint32_t>(slot)).run(); }

}  // namespace stasis::agent
