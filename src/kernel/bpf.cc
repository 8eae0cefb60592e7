#include "kernel/bpf.h"

#include <fmt/format.h>

namespace stasis::kernel::bpf {

Result<Question> Question::load(std::span<const bpf_insn> program, std::string what) {
  bpf_attr attributes{};
  attributes.prog_type = BPF_PROG_TYPE_SYSCALL;
  attributes.insns = reinterpret_cast<uint64_t>(program.data());
  attributes.insn_cnt = static_cast<uint32_t>(program.size());
  attributes.license = reinterpret_cast<uint64_t>("GPL");  // the helpers ask for it
  attributes.prog_flags = BPF_F_SLEEPABLE;
  Question question;
  question.what_ = std::move(what);
  question.program_ = UniqueFd(static_cast<int>(call(BPF_PROG_LOAD, attributes)));
  if (!question.program_.valid()) return fail_errno("load a BPF program to " + question.what_);
  return question;
}

Result<uint64_t> Question::ask(uint64_t argument) const {
  struct {
    uint64_t argument, answer;
  } context{argument, 0};
  bpf_attr attributes{};
  attributes.test.prog_fd = static_cast<uint32_t>(program_.get());
  attributes.test.ctx_in = reinterpret_cast<uint64_t>(&context);
  attributes.test.ctx_size_in = sizeof context;
  if (call(BPF_PROG_TEST_RUN, attributes) != 0) return fail_errno(what_);
  if (attributes.test.retval != 0) return fail(Error::conflict(what_, fmt::format("nothing is at {:#x}", argument)));
  return context.answer;
}

}  // namespace stasis::kernel::bpf
