// Kernel objects in one sweep: a BPF iterator writes some words of each (Documentation/bpf/bpf_iterators.rst; since
// Linux 5.8, those of one process since 6.1; CAP_BPF, CAP_PERFMON, a kernel with CONFIG_DEBUG_INFO_BTF).
#pragma once

#include <linux/bpf.h>

#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "base/unique_fd.h"
#include "kernel/kernel_memory.h"

namespace stasis::kernel {

class BpfIterator {
 public:
  struct Field {
    const char *structure, *name;
  };
  /// From the object of the iteration to a word of 8 bytes: fields of which each but the last is a pointer to what the
  /// next is part of. Behind a null pointer everything is 0.
  using Word = std::vector<Field>;

  /// `target` is the kernel's name of the iterator ("task"), `object` that of its context's field ("task"). `what` is
  /// for errors: what is iterated over.
  static Result<BpfIterator> load(std::string what, const char* target, const char* object,
                                  const std::vector<Word>& words);

  /// The words of each object, in the order in which they were asked for. A Record consists of just these.
  template <typename Record>
  Result<std::vector<Record>> run(const bpf_iter_link_info& whose, const std::string& subject) const {
    static_assert(std::is_trivially_copyable_v<Record> && std::has_unique_object_representations_v<Record>);
    const Bytes bytes = TRY(read(whose, subject));
    std::vector<Record> records(bytes.size() / sizeof(Record));
    if (!records.empty()) std::memcpy(records.data(), bytes.data(), records.size() * sizeof(Record));
    return records;
  }

 private:
  Result<Bytes> read(const bpf_iter_link_info& whose, const std::string& subject) const;

  std::string what_;
  UniqueFd program_;
};

}  // namespace stasis::kernel
