// Kernel memory, for what no interface tells of an object.
//
// A BPF program of a few instructions reads a word of it (bpf_probe_read_kernel; an address where nothing is gives an
// error), and the kernel's description of its own types says where fields are (/sys/kernel/btf/vmlinux,
// Documentation/bpf/btf.rst). That needs CAP_BPF and CAP_PERFMON, and a kernel with CONFIG_DEBUG_INFO_BTF. Nothing is
// ever written. What is read must not change meanwhile: it belongs to tasks that stand still.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "kernel/bpf.h"

namespace stasis::kernel {

/// Where a field of a structure is. Fields of unnamed members count as the structure's own.
struct KernelField {
  uint64_t offset = 0;  ///< in bytes
  uint32_t size = 0;    ///< likewise; of a bit field 0
  uint32_t bit = 0, bits = 0;
  friend bool operator==(const KernelField&, const KernelField&) = default;
};

/// The kernel's types, from the text of BTF. Hostile input is an error.
class KernelTypes {
 public:
  /// `holder` keeps the text.
  static Result<KernelTypes> parse(ByteView btf, std::shared_ptr<const void> holder = nullptr);
  /// Of the running kernel: a millisecond where it lets its text be mapped (Linux 6.17), some more where it is copied.
  static Result<KernelTypes> read();
  /// Nothing: there is no such structure or field.
  std::optional<KernelField> field(std::string_view structure, std::string_view name) const;
  /// The number of a function's type, by which programs are attached to it.
  std::optional<uint32_t> function(std::string_view name) const;

 private:
  static constexpr size_t size_of_type = 12;  ///< without its members
  struct Type {
    uint32_t name = 0, info = 0, size_or_type = 0;
    size_t more = 0;  ///< where its members are
  };
  static uint32_t kind(const Type& type) { return type.info >> 24 & 31; }
  static uint32_t count(const Type& type) { return type.info & 0xffff; }
  Type type(uint32_t id) const { return id == 0 ? Type{} : type_at(places_[id]); }
  Type type_at(size_t offset) const {
    return {word_at(offset), word_at(offset + 4), word_at(offset + 8), offset + size_of_type};
  }
  std::optional<uint32_t> named(uint32_t kind, std::string_view name) const;
  bool has_name(uint32_t offset, std::string_view name) const;
  uint32_t word_at(size_t offset) const {
    uint32_t word = 0;
    std::memcpy(&word, text_.data() + offset, sizeof word);
    return word;
  }
  std::optional<KernelField> find(const Type& structure, std::string_view name, int depth) const;
  uint32_t size_of(uint32_t type) const;

  std::shared_ptr<const void> holder_;
  ByteView text_;
  size_t strings_ = 0;
  std::vector<uint32_t> places_;  ///< of the types in the text, by number; number 0 is void, which has none
};

/// For one thread at a time.
class KernelMemory {
 public:
  static Result<KernelMemory> open();

  bool has(std::string_view structure, std::string_view name) const { return find(structure, name).has_value(); }
  /// In bytes; 0: it is an array, or a bit field.
  uint32_t size(std::string_view structure, std::string_view name) const {
    return find(structure, name).value_or(KernelField{}).size;
  }
  /// The address of a field of the object at `address`.
  Result<uint64_t> address(uint64_t object, std::string_view structure, std::string_view name) const;
  /// Its value: a number or a pointer.
  Result<uint64_t> get(uint64_t object, std::string_view structure, std::string_view name) const;
  /// 8 bytes.
  Result<uint64_t> word(uint64_t address) const;
  /// The objects in the list (struct list_head) at an address, in which `member` of each hangs it.
  Result<std::vector<uint64_t>> listed(uint64_t head, std::string_view structure, std::string_view member) const;

  /// struct task_struct of a thread.
  Result<uint64_t> task(pid_t tid) const;
  /// struct file behind a descriptor of ours.
  Result<uint64_t> file(int fd) const;
  /// What its kind has put into that file.
  Result<uint64_t> private_data(int fd) const;
  /// struct sock of a socket: those of its family (struct inet_sock, struct tcp_sock …) begin with it.
  Result<uint64_t> socket(int fd) const;

 private:
  Result<KernelField> field(std::string_view structure, std::string_view name) const;

  /// As KernelTypes::field, which looks through all types: what is asked of each socket is found once.
  std::optional<KernelField> find(std::string_view structure, std::string_view name) const;

  KernelTypes types_;
  using Fields = std::map<std::string, std::optional<KernelField>, std::less<>>;  ///< by name
  mutable std::map<std::string, Fields, std::less<>> found_;                      ///< by structure
  bpf::Question reader_;  ///< of the word at an address; of address 0 the calling thread's struct task_struct
};

}  // namespace stasis::kernel
