#include "resource/vdso.h"

#include <gtest/gtest.h>
#include <sys/auxv.h>

#include <cstring>

namespace stasis::resource {
namespace {

Bytes own() {
  const auto* base = reinterpret_cast<const uint8_t*>(getauxval(AT_SYSINFO_EHDR));
  return Bytes(base, base + page_size);  // headers and symbols stand in front
}

TEST(Vdso, knows_its_functions) {
  const auto functions = exported_functions(own());
  ASSERT_TRUE(functions);
  EXPECT_TRUE(functions->contains("__vdso_clock_gettime"));
  EXPECT_NE(functions->at("__vdso_clock_gettime"), 0u);
}

TEST(Vdso, survives_any_bytes) {
  const Bytes good = own();
  for (size_t length = 0; length < good.size(); length += 7) exported_functions({good.data(), length});
  for (size_t at = 0; at < good.size(); ++at) {
    for (const uint8_t value : {0x00, 0x7f, 0xff}) {
      Bytes bad = good;
      bad[at] = value;
      exported_functions(bad);
    }
  }
  EXPECT_FALSE(exported_functions(Bytes(4096, 0)));
}

}  // namespace
}  // namespace stasis::resource
