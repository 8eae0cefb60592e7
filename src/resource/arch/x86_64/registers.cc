// Registers of a thread: the general set and the extended state.
//
// The kernel gives the extended state (NT_X86_XSTATE) in the standard, uncompacted XSAVE format: a 512-byte legacy
// area, a 64-byte header whose first word (xstate_bv) names the components that are not in their initial state, then
// the components at offsets that differ from CPU to CPU and are told by CPUID leaf 0xd (Intel SDM vol. 1, 13.4.3).
// Images hold components by name, so that a checkpoint can move between CPUs that lay them out differently.
//
// Capture itself fills the registers: they belong to the way a task was stopped. This room only reads and writes
// records.
#include <cpuid.h>
#include <sys/user.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "base/parallel.h"
#include "kernel/timed_calls.h"
#include "resource/registers.h"

namespace stasis::resource {
namespace {

constexpr size_t legacy_size = 512, header_size = 64;
constexpr size_t st_at = 32, xmm_at = 160;
constexpr uint64_t longest_duration_ns = std::numeric_limits<int64_t>::max();  // KTIME_MAX

struct Component {
  unsigned bit;
  size_t offset = 0, size = 0;  ///< size 0: this CPU has none
};

/// Components 0 to 9. CPUID traps in a virtual machine: asking once per thread would cost more than the rest of the
/// dump.
const Component& component(unsigned bit) {
  static const std::array<Component, 10> known = [] {
    std::array<Component, 10> components{};
    unsigned size = 0, offset = 0, c = 0, d = 0;
    for (unsigned index = 0; index < components.size(); ++index) {
      const bool exists = __get_cpuid_count(0xd, index, &size, &offset, &c, &d) != 0;
      components[index] = exists && index >= 2 ? Component{index, offset, size} : Component{index};
    }
    return components;
  }();
  return known.at(bit);
}

template <typename T>
T read_at(ByteView bytes, size_t offset) {
  T value{};
  if (offset + sizeof value <= bytes.size()) std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}
template <typename T>
void write_at(Bytes& bytes, size_t offset, T value) {
  if (offset + sizeof value <= bytes.size()) std::memcpy(bytes.data() + offset, &value, sizeof value);
}

/// A component ↔ a repeated field of words, which lie side by side in both.
template <typename Word>
void save_words(ByteView state, size_t offset, size_t bytes, google::protobuf::RepeatedField<Word>* field) {
  field->Resize(static_cast<int>(bytes / sizeof(Word)), 0);
  if (offset + bytes <= state.size())
    std::memcpy(field->mutable_data(), state.data() + offset, bytes / sizeof(Word) * sizeof(Word));
}
template <typename Word>
void load_words(const google::protobuf::RepeatedField<Word>& field, Bytes& state, size_t offset, size_t bytes) {
  const size_t count = std::min<size_t>(static_cast<size_t>(field.size()), bytes / sizeof(Word));
  std::memcpy(state.data() + offset, field.data(), count * sizeof(Word));
}

/// Calls `visit(component, field)` for every component that has a name in the image format.
template <typename Xsave, typename Visit>
void each_component(Xsave& xsave, Visit visit) {
  visit(component(2), [&]() -> auto& { return xsave.ymmh_space(); }, [](auto& x) { return x.mutable_ymmh_space(); });
  visit(
      component(3), [&]() -> auto& { return xsave.bndreg_state(); }, [](auto& x) { return x.mutable_bndreg_state(); });
  visit(
      component(4), [&]() -> auto& { return xsave.bndcsr_state(); }, [](auto& x) { return x.mutable_bndcsr_state(); });
  visit(component(5), [&]() -> auto& { return xsave.opmask_reg(); }, [](auto& x) { return x.mutable_opmask_reg(); });
  visit(component(6), [&]() -> auto& { return xsave.zmm_upper(); }, [](auto& x) { return x.mutable_zmm_upper(); });
  visit(component(7), [&]() -> auto& { return xsave.hi16_zmm(); }, [](auto& x) { return x.mutable_hi16_zmm(); });
  visit(component(9), [&]() -> auto& { return xsave.pkru(); }, [](auto& x) { return x.mutable_pkru(); });
}

void save_general(const Bytes& general, user_x86_regs_entry& out) {
  const auto from = read_at<user_regs_struct>(general, 0);
  out.set_r15(from.r15), out.set_r14(from.r14), out.set_r13(from.r13), out.set_r12(from.r12);
  out.set_bp(from.rbp), out.set_bx(from.rbx), out.set_r11(from.r11), out.set_r10(from.r10);
  out.set_r9(from.r9), out.set_r8(from.r8), out.set_ax(from.rax), out.set_cx(from.rcx);
  out.set_dx(from.rdx), out.set_si(from.rsi), out.set_di(from.rdi), out.set_orig_ax(from.orig_rax);
  out.set_ip(from.rip), out.set_cs(from.cs), out.set_flags(from.eflags), out.set_sp(from.rsp);
  out.set_ss(from.ss), out.set_fs_base(from.fs_base), out.set_gs_base(from.gs_base);
  out.set_ds(from.ds), out.set_es(from.es), out.set_fs(from.fs), out.set_gs(from.gs);
  out.set_mode(NATIVE);
}

Bytes load_general(const user_x86_regs_entry& from) {
  user_regs_struct to{};
  to.r15 = from.r15(), to.r14 = from.r14(), to.r13 = from.r13(), to.r12 = from.r12();
  to.rbp = from.bp(), to.rbx = from.bx(), to.r11 = from.r11(), to.r10 = from.r10();
  to.r9 = from.r9(), to.r8 = from.r8(), to.rax = from.ax(), to.rcx = from.cx();
  to.rdx = from.dx(), to.rsi = from.si(), to.rdi = from.di(), to.orig_rax = from.orig_ax();
  to.rip = from.ip(), to.cs = from.cs(), to.eflags = from.flags(), to.rsp = from.sp();
  to.ss = from.ss(), to.fs_base = from.fs_base(), to.gs_base = from.gs_base();
  to.ds = from.ds(), to.es = from.es(), to.fs = from.fs(), to.gs = from.gs();
  return bytes_of(to);
}

void save_extended(const Bytes& state, user_x86_fpregs_entry& out) {
  out.set_cwd(read_at<uint16_t>(state, 0));
  out.set_swd(read_at<uint16_t>(state, 2));
  out.set_twd(read_at<uint16_t>(state, 4));
  out.set_fop(read_at<uint16_t>(state, 6));
  out.set_rip(read_at<uint64_t>(state, 8));
  out.set_rdp(read_at<uint64_t>(state, 16));
  out.set_mxcsr(read_at<uint32_t>(state, 24));
  out.set_mxcsr_mask(read_at<uint32_t>(state, 28));
  save_words(state, st_at, 128, out.mutable_st_space());
  save_words(state, xmm_at, 256, out.mutable_xmm_space());
  if (state.size() < legacy_size + header_size) return;
  auto& xsave = *out.mutable_xsave();
  xsave.set_xstate_bv(read_at<uint64_t>(state, legacy_size));
  each_component(xsave, [&](const Component& part, auto, auto field) {
    if (part.size != 0 && part.offset + part.size <= state.size())
      save_words(state, part.offset, part.size, field(xsave));
  });
  // CRIU expects the entry wherever it expects xsave; shadow stacks are refused at capture, so it is always empty.
  xsave.mutable_cet()->set_cet(0);
  xsave.mutable_cet()->set_ssp(0);
}

/// The size of the standard format with all components that the kernel has enabled (CPUID 0xd.0 EBX).
size_t machine_state_size() {
  static const size_t size = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(0xd, 0, &a, &b, &c, &d) == 0) return legacy_size + header_size;
    return std::max<size_t>(b, legacy_size + header_size);
  }();
  return size;
}

Result<Bytes> load_extended(const user_x86_fpregs_entry& from, const std::string& subject) {
  Bytes state(machine_state_size());
  write_at<uint16_t>(state, 0, static_cast<uint16_t>(from.cwd()));
  write_at<uint16_t>(state, 2, static_cast<uint16_t>(from.swd()));
  write_at<uint16_t>(state, 4, static_cast<uint16_t>(from.twd()));
  write_at<uint16_t>(state, 6, static_cast<uint16_t>(from.fop()));
  write_at<uint64_t>(state, 8, from.rip());
  write_at<uint64_t>(state, 16, from.rdp());
  write_at<uint32_t>(state, 24, from.mxcsr());
  write_at<uint32_t>(state, 28, from.mxcsr_mask());
  load_words(from.st_space(), state, st_at, 128);
  load_words(from.xmm_space(), state, xmm_at, 256);
  uint64_t present = from.has_xsave() ? from.xsave().xstate_bv() : 3;  // x87 and SSE
  uint64_t possible = 3;
  if (from.has_xsave()) {
    each_component(from.xsave(), [&](const Component& part, auto field, auto) {
      if (part.size == 0 || part.offset + part.size > state.size()) return;
      possible |= 1ull << part.bit;
      load_words(field(), state, part.offset, part.size);
    });
  }
  if ((present & ~possible) != 0) {
    return fail(Error::conflict("decode registers",
                                fmt::format("the thread uses CPU state components {:#x} that this machine lacks",
                                            present & ~possible),
                                subject)
                    .advise("restore on a machine with the same CPU features"));
  }
  write_at<uint64_t>(state, legacy_size, present);
  return state;
}

/// A call that is not the one before which the registers stand would be made with arguments of another.
Result<std::optional<model::InterruptedCall>> load_interrupted_call(const core_entry& core,
                                                                    const std::string& subject) {
  if (!core.thread_core().has_interrupted_call()) return std::nullopt;
  const auto& call = core.thread_core().interrupted_call();
  const auto refuse = [&](std::string_view field, const std::string& cause) {
    return fail(Error::invalid("decode registers", cause,
                               fmt::format("{}, field thread_core.interrupted_call.{}", subject, field)));
  };
  if (!kernel::is_timed_call(call.number()))
    return refuse("number", fmt::format("{} is not a system call that sleeps for a duration", call.number()));
  if (core.thread_info().gpregs().ax() != call.number())
    return refuse("number", fmt::format("the registers stand before system call {}, not {}",
                                        core.thread_info().gpregs().ax(), call.number()));
  if (call.remaining_ns() > longest_duration_ns)
    return refuse("remaining_ns", fmt::format("{} is longer than any sleep", call.remaining_ns()));
  return model::InterruptedCall{call.number(), call.remaining_ns()};
}

class RegistersRoom final : public TaskRoom {
 public:
  std::string_view name() const override { return "registers"; }

  Status encode(const model::Application&, const model::Task& task, image::TaskRecords& records) const override {
    for (size_t i = 0; i < task.threads.size() && i < records.cores.size(); ++i) {
      if (task.threads[i].has_ended()) continue;
      auto& core = records.cores[i];
      core.set_mtype(core_entry::X86_64);
      auto& info = *core.mutable_thread_info();
      const auto& registers = task.threads[i].registers;
      save_general(registers.general, *info.mutable_gpregs());
      save_extended(registers.extended, *info.mutable_fpregs());
      if (const auto& call = task.threads[i].interrupted_call) {
        auto& entry = *core.mutable_thread_core()->mutable_interrupted_call();
        entry.set_number(call->number), entry.set_remaining_ns(call->remaining_ns);
      }
    }
    return {};
  }

  Status decode(const image::TaskRecords& records, model::Application&, model::Task& task) const override {
    return parallel_for(std::min(task.threads.size(), records.cores.size()), [&](size_t index) -> Status {
      return task.threads[index].has_ended() ? Status() : decode(records.cores[index], task.threads[index]);
    });
  }

 private:
  static Status decode(const core_entry& core, model::Thread& thread) {
    const std::string subject = fmt::format("core-{}.img", thread.tid);
    if (core.mtype() != core_entry::X86_64 || !core.has_thread_info()) {
      return fail(Error::invalid("decode registers", "the thread is not of an x86-64 machine", subject));
    }
    const auto& info = core.thread_info();
    if (info.gpregs().mode() != NATIVE) {
      return fail(Error::unsupported("decode registers", "the thread runs 32-bit code", subject));
    }
    for (const auto& segment : info.tls()) {
      if (segment.usable()) {
        return fail(Error::unsupported("decode registers", "the thread has set_thread_area segments", subject));
      }
    }
    thread.registers.general = load_general(info.gpregs());
    thread.registers.extended = TRY(load_extended(info.fpregs(), subject));
    thread.interrupted_call = TRY(load_interrupted_call(core, subject));
    return {};
  }
};

}  // namespace

const TaskRoom& registers_room() {
  static const RegistersRoom room;
  return room;
}

}  // namespace stasis::resource
