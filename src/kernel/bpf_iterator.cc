#include "kernel/bpf_iterator.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "kernel/bpf.h"

namespace stasis::kernel {
namespace {

using bpf::add;
using bpf::frame;

/// Writes the program: where its fields are is this kernel's affair.
class Writer {
 public:
  Writer(const KernelTypes& types, std::string_view what) : types_(types), what_(what) {}

  Result<std::vector<bpf_insn>> write(const std::string& context, const char* object,
                                      const std::vector<BpfIterator::Word>& words) {
    constexpr int given = 6, found = 7;
    const int size = static_cast<int>(words.size() * sizeof(uint64_t));
    code_.push_back(bpf::move(given, 1));
    TRY(load(found, given, {context.c_str(), object}));
    const size_t test = code_.size();
    code_.push_back(bpf::skip_if_zero(found, 0));  // the end
    for (int place = -size; const auto& word : words) {
      TRY(follow(found, place, word));
      place += static_cast<int>(sizeof(uint64_t));
    }
    TRY(load(1, given, {context.c_str(), "meta"}));
    TRY(load(1, 1, {"bpf_iter_meta", "seq"}));
    for (const auto& instruction :
         {bpf::move(2, frame), add(2, -size), bpf::set(3, size), bpf::helper(BPF_FUNC_seq_write)})
      code_.push_back(instruction);
    code_[test].off = static_cast<int16_t>(code_.size() - test - 1);
    code_.push_back(bpf::set(0, 0));
    code_.push_back(bpf::leave());
    return std::move(code_);
  }

 private:
  /// By a helper: of each pointer that is loaded by an instruction the kernel looks up, among the names of all its
  /// types, whether it may be trusted (kernel/bpf/btf.c, btf_nested_type_is_trusted), which takes half a millisecond.
  Status follow(int object, int place, const BpfIterator::Word& word) {
    for (bool first = true; const auto& field : word) {
      code_.push_back(first ? bpf::move(3, object) : bpf::load(3, frame, place));
      code_.push_back(add(3, TRY(offset(field))));
      code_.push_back(bpf::move(1, frame));
      code_.push_back(add(1, place));
      code_.push_back(bpf::set(2, sizeof(uint64_t)));
      code_.push_back(bpf::helper(BPF_FUNC_probe_read_kernel));  // leaves 0 where nothing is
      first = false;
    }
    return {};
  }

  Status load(int to, int from, const BpfIterator::Field& field) {
    code_.push_back(bpf::load(to, from, TRY(offset(field))));
    return {};
  }

  Result<int> offset(const BpfIterator::Field& field) {
    const auto found = types_.field(field.structure, field.name);
    if (!found || found->size != sizeof(uint64_t)) {
      return fail(Error::unsupported(fmt::format("iterate over {}", what_),
                                     fmt::format("this kernel has no {}.{} of 8 bytes", field.structure, field.name)));
    }
    return static_cast<int>(found->offset);
  }

  const KernelTypes& types_;
  std::string_view what_;
  std::vector<bpf_insn> code_;
};

}  // namespace

Result<BpfIterator> BpfIterator::load(std::string what, const char* target, const char* object,
                                      const std::vector<Word>& words) {
  const auto types = TRY(KernelTypes::read());
  const auto function = types.function(fmt::format("bpf_iter_{}", target));
  if (!function)
    return fail(Error::unsupported(fmt::format("iterate over {}", what), "this kernel has no iterator for them"));
  const auto program = TRY(Writer(types, what).write(fmt::format("bpf_iter__{}", target), object, words));
  bpf_attr attributes{};
  attributes.prog_type = BPF_PROG_TYPE_TRACING;
  attributes.expected_attach_type = BPF_TRACE_ITER;
  attributes.attach_btf_id = *function;
  attributes.insns = reinterpret_cast<uint64_t>(program.data());
  attributes.insn_cnt = static_cast<uint32_t>(program.size());
  attributes.license = reinterpret_cast<uint64_t>("GPL");  // the helper asks for it
  BpfIterator iterator;
  iterator.program_ = UniqueFd(static_cast<int>(bpf::call(BPF_PROG_LOAD, attributes)));
  if (!iterator.program_.valid()) return fail_errno(fmt::format("load a BPF program that iterates over {}", what));
  iterator.what_ = std::move(what);
  return iterator;
}

Result<Bytes> BpfIterator::read(const bpf_iter_link_info& whose, const std::string& subject) const {
  const auto failed = [&] { return fail_errno(fmt::format("iterate over {}", what_), subject); };
  bpf_attr link{};
  link.link_create.prog_fd = static_cast<uint32_t>(program_.get());
  link.link_create.attach_type = BPF_TRACE_ITER;
  link.link_create.iter_info = reinterpret_cast<uint64_t>(&whose);
  link.link_create.iter_info_len = sizeof whose;
  const UniqueFd attached(static_cast<int>(bpf::call(BPF_LINK_CREATE, link)));
  if (!attached.valid()) return failed();
  bpf_attr iterator{};
  iterator.iter_create.link_fd = static_cast<uint32_t>(attached.get());
  const UniqueFd reading(static_cast<int>(bpf::call(BPF_ITER_CREATE, iterator)));
  if (!reading.valid()) return failed();

  Bytes bytes;
  constexpr size_t step = 64 << 10;
  for (;;) {
    const size_t before = bytes.size();
    bytes.resize(before + step);
    const ssize_t count = ::read(reading.get(), bytes.data() + before, step);
    bytes.resize(before + static_cast<size_t>(std::max<ssize_t>(count, 0)));
    if (count < 0 && errno != EINTR && errno != EAGAIN) return failed();
    if (count == 0) break;
  }
  return bytes;
}

}  // namespace stasis::kernel
