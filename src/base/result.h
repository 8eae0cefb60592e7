// Result<T>: either a value or an Error that explains itself.
//
// An Error is written for the operator who reads the log at night: it names the operation that failed, what it
// was done to (the subject), why (errno or a sentence), and what to do about it (advice). Each layer that lets
// an Error pass may add one line of context. No exceptions cross a module boundary in stasis.
#pragma once

#include <cerrno>
#include <expected>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace stasis {

enum class ErrorCode {
  system,         ///< a system call failed; `errno_value` says how
  invalid_input,  ///< an image, a program or an argument is malformed
  unsupported,    ///< the application (or this kernel) uses something stasis cannot handle
  conflict,       ///< the world is not as needed: a pid is taken, a file has changed
  gone,           ///< the target died meanwhile: an expected outcome, not a fault of ours
  internal,       ///< a bug in stasis
};

class [[nodiscard]] Error {
 public:
  /// A failed system call. Takes errno by value so that nothing in between can change it.
  static Error system(std::string operation, int errno_value, std::string subject = {});
  static Error make(ErrorCode code, std::string operation, std::string cause, std::string subject = {});
  static Error invalid(std::string operation, std::string cause, std::string subject = {}) {
    return make(ErrorCode::invalid_input, std::move(operation), std::move(cause), std::move(subject));
  }
  static Error unsupported(std::string operation, std::string cause, std::string subject = {}) {
    return make(ErrorCode::unsupported, std::move(operation), std::move(cause), std::move(subject));
  }
  static Error conflict(std::string operation, std::string cause, std::string subject = {}) {
    return make(ErrorCode::conflict, std::move(operation), std::move(cause), std::move(subject));
  }
  static Error gone(std::string operation, std::string subject) {
    return make(ErrorCode::gone, std::move(operation), "the task no longer exists", std::move(subject));
  }
  static Error internal(std::string operation, std::string cause) {
    return make(ErrorCode::internal, std::move(operation), std::move(cause));
  }

  /// Adds an outer layer: "while <doing>". The innermost layer is printed last.
  Error&& within(std::string doing) &&;
  /// What the operator can do: an option to pass, a capability to grant.
  Error&& advise(std::string advice) &&;
  Error&& about(std::string subject) &&;

  ErrorCode code() const { return code_; }
  int errno_value() const { return errno_; }  ///< 0 unless a system call failed
  const std::string& operation() const { return operation_; }
  const std::string& subject() const { return subject_; }
  const std::string& advice() const { return advice_; }

  /// One message: "<context>: <operation> failed on <subject>: <cause>. <advice>"
  std::string message() const;

 private:
  ErrorCode code_ = ErrorCode::internal;
  int errno_ = 0;
  std::string operation_;
  std::string cause_;
  std::string subject_;
  std::string advice_;
  std::vector<std::string> context_;
};

template <typename T>
using Result = std::expected<T, Error>;

using Status = Result<void>;

/// Turns an Error into any Result; `return fail(Error::…)`.
inline std::unexpected<Error> fail(Error error) { return std::unexpected<Error>(std::move(error)); }

/// A failed system call, errno taken here.
inline std::unexpected<Error> fail_errno(std::string operation, std::string subject = {}) {
  const int saved = errno;
  return fail(Error::system(std::move(operation), saved, std::move(subject)));
}

}  // namespace stasis

// TRY(expr): the value of a Result, or return its Error from this function.
// TRY_IN("doing x", expr): the same, adding a line of context. Statement expressions: g++ and clang, both supported.
#define TRY(expression)                                                           \
  ({                                                                              \
    auto&& stasis_result = (expression);                                          \
    if (!stasis_result) return std::unexpected(std::move(stasis_result).error()); \
    stasis::detail::take(std::move(stasis_result));                               \
  })
#define TRY_IN(doing, expression)                                                               \
  ({                                                                                            \
    auto&& stasis_result = (expression);                                                        \
    if (!stasis_result) return std::unexpected(std::move(stasis_result).error().within(doing)); \
    stasis::detail::take(std::move(stasis_result));                                             \
  })

namespace stasis::detail {
template <typename T>
T take(Result<T>&& result) {
  return std::move(*result);
}
inline void take(Result<void>&&) {}
}  // namespace stasis::detail
