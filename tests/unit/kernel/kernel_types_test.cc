#include <gtest/gtest.h>

#include <cstring>

#include "kernel/kernel_memory.h"

namespace stasis::kernel {
namespace {

/// Writes BTF (Documentation/bpf/btf.rst).
class Text {
 public:
  uint32_t name(std::string_view text) {
    const auto at = static_cast<uint32_t>(strings_.size());
    strings_.append(text).push_back('\0');
    return at;
  }
  void words(std::initializer_list<uint32_t> values) { types_.insert(types_.end(), values); }

  Bytes bytes() const {
    const auto size = static_cast<uint32_t>(types_.size() * sizeof(uint32_t));
    const uint32_t header[] = {0x0001eb9f, 24, 0, size, size, static_cast<uint32_t>(strings_.size())};
    Bytes all(sizeof header + size + strings_.size());
    std::memcpy(all.data(), header, sizeof header);
    std::memcpy(all.data() + sizeof header, types_.data(), size);
    std::memcpy(all.data() + sizeof header + size, strings_.data(), strings_.size());
    return all;
  }

 private:
  std::vector<uint32_t> types_;
  std::string strings_ = std::string(1, '\0');
};

constexpr uint32_t of_kind(uint32_t kind, uint32_t count = 0, bool bit_fields = false) {
  return kind << 24 | count | (bit_fields ? 1u << 31 : 0);
}

/// struct outer { int first; struct { int bits : 3; struct outer *inner; }; };
Text an_example() {
  Text text;
  text.words({text.name("int"), of_kind(1), 4, 32});                            // 1
  text.words({0, of_kind(2), 4});                                               // 2: a pointer to 4
  text.words({0, of_kind(4, 2, true), 16,                                       // 3
              text.name("bits"), 1, 3u << 24 | 5, text.name("inner"), 2, 64});  //
  text.words({text.name("outer"), of_kind(4, 2), 24,                            // 4
              text.name("first"), 1, 0, 0, 3, 64});
  return text;
}

TEST(KernelTypes, FieldsOfUnnamedMembersAreTheStructures) {
  const auto text = an_example().bytes();
  const auto types = KernelTypes::parse(text);
  ASSERT_TRUE(types) << types.error().message();
  EXPECT_EQ(types->field("outer", "first"), (KernelField{0, 4, 0, 0}));
  EXPECT_EQ(types->field("outer", "inner"), (KernelField{16, 8, 0, 0}));
  EXPECT_EQ(types->field("outer", "bits"), (KernelField{8, 0, 5, 3}));
  EXPECT_EQ(types->field("outer", "other"), std::nullopt);
  EXPECT_EQ(types->field("another", "first"), std::nullopt);
}

TEST(KernelTypes, WhateverIsCutOffIsAnError) {
  const auto whole = an_example().bytes();
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_FALSE(KernelTypes::parse(ByteView(whole).first(size))) << size;
}

TEST(KernelTypes, WhatIsInAStructureOfItselfEnds) {
  Text text;
  text.words({text.name("loop"), of_kind(4, 1), 8, 0, 1, 0});
  const auto bytes = text.bytes();
  const auto types = KernelTypes::parse(bytes);
  ASSERT_TRUE(types);
  EXPECT_EQ(types->field("loop", "any"), std::nullopt);
}

TEST(KernelTypes, UnknownKindsAreErrors) {
  Text text;
  text.words({0, of_kind(20), 0});
  EXPECT_FALSE(KernelTypes::parse(text.bytes()));
}

}  // namespace
}  // namespace stasis::kernel
