// The contract between stasis and its agent, the only code of ours that runs inside another process.
//
// The agent area is one mapping: the code at its first byte, the Header at `code_space`, then counters, slots, stacks,
// instructions, results and data. All references inside it are offsets from its first byte, so the same area works at
// any address. Execution starts at the first byte with the area's address in the first argument register and a slot's
// index in the second, on that slot's stack. Freestanding: no libc, no libstdc++ beyond <cstdint>. In a dump the area
// is private memory of the target, written and read by stasis from outside; in a restore it is one shared memory object
// mapped at one address in every process being built, so that counters work across processes.
#pragma once

#include <cstdint>

namespace stasis::agent {

inline constexpr uint32_t abi_version = 1;

enum class Operation : uint16_t {
  call,         ///< a system call: number, arguments; result to `result_slot`; checked by `expect`
  read_fully,   ///< args: descriptor, address, length, file offset (~0: current): loops over pread/read until done;
                ///< short file = failure
  write_fully,  ///< likewise with pwrite/write
  wait,   ///< args[0]: counter index, args[1]: value: sleep until counter >= value; ends early if another slot failed
  post,   ///< args[0]: counter index, args[1]: amount to add, args[2]: wakes all waiters if the counter is at least
          ///< this: the lowest value that anybody waits for. Waking at every post of a barrier would cost n²
  spawn,  ///< clone3 whose child runs another slot. args[0]: offset of struct clone_args in the data, args[1]: slot of
          ///< the child
  exit,   ///< args[0]: 0: exit_group(args[1]), 1: kill(getpid(), args[1]) with default action, 2: exit (one thread),
          ///< 3: a system call that seccomp forbids, 4: a fault of the processor whose signal is args[1]
  await_child,  ///< args[0]: pid: until it is a child of this very thread, whatever its parent was before
  get_actions,  ///< args[0]: address of 64 struct sigaction: the dispositions of all signals, by rt_sigaction
  move_fd,      ///< args: descriptor, wanted number, O_CLOEXEC or 0, 1 if it was opened with that: plan::Call::move_fd
  start_overrun_timer,  ///< args: POSIX timer, clock, struct itimerspec (interval, remaining), signal, overruns
  epoll_add_fired,    ///< args: epoll, target, two struct epoll_event: for all events, and what a fired one-shot keeps
  open_at,            ///< args: path, flags, mode, wanted number: opens it there
  setup_aio,          ///< args: requests, address, length, AioRingState: an AIO context whose ring is just there
  open_terminal,      ///< args: index, flags, room for as many descriptors
  setup_io_uring,     ///< args: IoUringParameters, IoUringState: an io_uring whose queues have come just so far
  map_in_place,       ///< args: descriptor, address, length, offset, protection, AddressSpan[spans_of_address_space]
  make_segment,       ///< args: id, key, size, flags, path of the sysctl that chooses ids, the id as text
  remove_segment,     ///< args: id: the System V segment, if this process has made it
  hold_directory,     ///< args: path: a descriptor that holds it, by flock, unless somebody else does for long
  lead_packet_rings,  ///< args: packet socket, file of what is in its rings, PacketRings: its rings stand so
  halt,               ///< the end. `end_mode` of the slot decides what follows
};

/// How a ring stands (fs/aio.c, struct aio_ring). The events between head and tail follow, 32 bytes each.
struct AioRingState {
  uint32_t slots, head, tail, reserved;
};

/// struct io_uring_params of linux/io_uring.h.
struct IoUringParameters {
  uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, reserved[3];
  struct {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, reserved;
    uint64_t user_address;
  } sq;
  struct {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, reserved;
    uint64_t user_address;
  } cq;
};
static_assert(sizeof(IoUringParameters) == 120);

/// How an io_uring stands that nobody has given it work that it has not done. What follows, as large as the parameters
/// make it: the submission entries, the completion entries, and the array that leads to submission entries.
struct IoUringState {
  uint32_t sq_head, sq_tail, sq_dropped, sq_flags, cq_head, cq_tail, cq_overflow, cq_flags;
  uint32_t sqes_size, cqes_size, array_size, reserved;  ///< in bytes
};

/// How the rings of a packet socket stand, which has just been made. Without a ring all is 0.
struct PacketRings {
  struct Ring {
    uint32_t block_size, blocks, frame_size, head;  ///< head: the frame in which the kernel goes on
  } receive, send;
  uint32_t version;           ///< TPACKET_V*
  uint32_t has_header;        ///< SOCK_RAW: packets begin with the header of the device
  uint32_t passes_over;       ///< PACKET_LOSS
  uint32_t more_header_size;  ///< of what comes before that of the device (PACKET_VNET_HDR), in bytes
};

struct AddressSpan {
  uint64_t begin, size;
};
inline constexpr uint64_t spans_of_address_space = 4096;

enum class ArgumentKind : uint8_t {
  immediate,
  data,    ///< offset of bytes in the area: becomes an address
  word,    ///< offset of a 32-bit number in the area, read when the instruction runs
  result,  ///< index of a result slot: becomes that call's result
};

/// How the result of a call is judged. A failed expectation ends the slot and is recorded in the header.
enum class Expect : uint8_t {
  anything,
  success,     ///< not in [-4095, -1]
  exactly,     ///< == expected
  success_or,  ///< success, or exactly `expected` (say -EINVAL)
};

struct Instruction {
  Operation operation;
  Expect expect;
  uint8_t reserved0;
  ArgumentKind kinds[6];
  uint8_t reserved1[2];
  uint32_t number;  ///< system call number
  uint64_t args[6];
  int64_t expected;
  uint32_t result_slot;  ///< index into the slot's results; every instruction has its own: its index
  uint32_t origin;       ///< index of the plan command this was lowered from: for messages
};
static_assert(sizeof(Instruction) == 80);

enum class EndMode : uint32_t {
  notify_then_leave = 0,  ///< dump: raise `notify_signal` at ourselves (tracer sees it, nobody else), then jump to the
                          ///< leave code
  park = 1,               ///< restore: mark done, wait to be taken over by ptrace
  exit_thread = 2,
  park_spinning = 4,     ///< the same without system calls: for threads under seccomp
  return_to_caller = 3,  ///< the interpreter linked into stasis itself (the supervisor's slot) returns
};

/// One slot per thread of control. `leave_code` of a dump slot is made by stasis: position-independent code
/// that puts back the thread's own signal mask and registers.
struct Slot {
  uint64_t instructions;  ///< offset of the first Instruction
  uint32_t instruction_count;
  EndMode end_mode;
  uint64_t results;     ///< offset of int64_t[instruction_count]
  uint64_t stack_top;   ///< offset: initial stack pointer, 16-byte aligned
  uint64_t leave_code;  ///< offset (dump)
  int32_t notify_signal;
  int32_t host_pid;          ///< set by the agent on entry: getpid() (as the process itself sees it)
  int32_t tid;               ///< set by the agent on entry: gettid()
  uint32_t state;            ///< 0 not started, 1 running, 2 done, 3 failed. A futex word
  uint32_t program_counter;  ///< instruction being run, or to begin with
  uint32_t reserved;
};
static_assert(sizeof(Slot) == 64);

/// How the kernel says that the supervisor has died: a robust mutex (pthread_mutexattr_setrobust(3)) that its thread
/// holds from before the first process is created until nobody runs the agent any more. Its first word is the futex, in
/// which the kernel sets the bit when that thread ends, however it ends (kernel/futex/core.c, handle_futex_death).
/// Whoever runs the agent looks at it: a parent-death signal comes too late for who is killed before he has asked for
/// it, and is not to be had for a child that is to lose its parent. All zeros in a dump, where nobody is to end with
/// stasis.
struct Supervision {
  uint32_t word;
  uint32_t reserved[15];
};
inline constexpr uint32_t owner_died = 0x40000000;  ///< FUTEX_OWNER_DIED

struct Header {
  uint32_t magic;  ///< 'STAG'
  uint32_t version;
  uint64_t area_size;
  uint64_t slots;  ///< offset of Slot[]
  uint32_t slot_count;
  uint32_t counter_count;
  uint64_t counters;  ///< offset of uint32_t[], futex words
  uint32_t failed;    ///< futex word: 0, or 1 + index of the first slot that failed
  uint32_t failed_instruction;
  int64_t failed_result;
  Supervision supervision;
};
static_assert(sizeof(Header) == 120);

inline constexpr uint32_t magic = 0x47415453;  // "STAG"
inline constexpr uint64_t code_space = 8192;   ///< the blob fits into it: a build step checks
inline constexpr uint32_t ready_counter = 0;   ///< every slot adds 1 when it is parked, or about to end alone
inline constexpr uint64_t clone_args_size = 88;

// Slot::state
inline constexpr uint32_t slot_not_started = 0, slot_running = 1, slot_done = 2, slot_failed = 3;
/// Header::failed while the first failing slot writes down what failed.
inline constexpr uint32_t failing = 0xffffffff;

}  // namespace stasis::agent
