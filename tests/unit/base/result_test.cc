#include "base/result.h"

#include <gtest/gtest.h>

#include "base/advice.h"
#include "base/checked.h"
#include "base/diagnostics.h"

namespace stasis {
namespace {

Result<int> half(int number) {
  if (number % 2 != 0)
    return fail(Error::invalid("halve", "it is odd", std::to_string(number)).advise("pass an even number"));
  return number / 2;
}

Result<int> quarter(int number) {
  const int first = TRY_IN("take the first half", half(number));
  return TRY(half(first));
}

TEST(Result, TryPassesValuesAndErrors) {
  EXPECT_EQ(quarter(8), 2);
  EXPECT_FALSE(quarter(6));
  EXPECT_EQ(quarter(6).error().message(), "halve (3): it is odd; pass an even number");
  EXPECT_EQ(quarter(7).error().message(), "take the first half: halve (7): it is odd; pass an even number");
}

TEST(Result, ASystemErrorKeepsItsErrnoAndTellsDeathApart) {
  EXPECT_EQ(Error::system("kill", ESRCH).code(), ErrorCode::gone);
  const Error error = Error::system("open", ENOENT, "/nowhere");
  EXPECT_EQ(error.errno_value(), ENOENT);
  EXPECT_EQ(error.message(), "open (/nowhere): No such file or directory");
}

TEST(Result, AnAdviceGoesOnInLowerCaseUnlessItBeginsWithAName) {
  EXPECT_EQ(with_advice("it failed", ""), "it failed");
  EXPECT_EQ(with_advice("it failed", "Run as root"), "it failed; run as root");
  EXPECT_EQ(with_advice("it failed", "run as root"), "it failed; run as root");
  EXPECT_EQ(with_advice("it failed", "SIGCONT lets it go on"), "it failed; SIGCONT lets it go on");
  EXPECT_EQ(with_advice("it failed", "--tree names it"), "it failed; --tree names it");
  EXPECT_EQ(Error::conflict("do", "it failed").advise("Run as root").message(), "do: it failed; run as root");
  Diagnostics diagnostics;
  diagnostics.refuse("task 7", "is traced", "End the debugger");
  EXPECT_EQ(diagnostics.all().front().text(), "task 7: is traced; end the debugger");
}

TEST(Checked, NeverWrapsAround) {
  EXPECT_EQ(checked_add(~0ull, 1), std::nullopt);
  EXPECT_EQ(checked_multiply(1ull << 33, 1ull << 33), std::nullopt);
  const Bytes bytes(10);
  EXPECT_FALSE(checked_slice(bytes, 5, ~0ull - 2));
  EXPECT_FALSE(checked_slice(bytes, 8, 3));
  EXPECT_EQ(checked_slice(bytes, 8, 2)->size(), 2u);
}

}  // namespace
}  // namespace stasis
