#include "base/result.h"

#include <cstring>

#include "base/advice.h"

namespace stasis {

Error Error::system(std::string operation, int errno_value, std::string subject) {
  Error error;
  error.code_ = errno_value == ESRCH ? ErrorCode::gone : ErrorCode::system;
  error.errno_ = errno_value;
  error.operation_ = std::move(operation);
  error.subject_ = std::move(subject);
  return error;
}

Error Error::make(ErrorCode code, std::string operation, std::string cause, std::string subject) {
  Error error;
  error.code_ = code;
  error.operation_ = std::move(operation);
  error.cause_ = std::move(cause);
  error.subject_ = std::move(subject);
  return error;
}

Error&& Error::within(std::string doing) && {
  context_.push_back(std::move(doing));
  return std::move(*this);
}

Error&& Error::advise(std::string advice) && {
  advice_ = std::move(advice);
  return std::move(*this);
}

Error&& Error::about(std::string subject) && {
  subject_ = std::move(subject);
  return std::move(*this);
}

std::string Error::message() const {
  std::string text;
  for (auto layer = context_.rbegin(); layer != context_.rend(); ++layer) text += *layer + ": ";
  text += operation_;
  if (!subject_.empty()) text += " (" + subject_ + ")";
  text += ": ";
  if (errno_ != 0) {
    char buffer[128];
    text += strerror_r(errno_, buffer, sizeof buffer);
  } else {
    text += cause_;
  }
  return with_advice(std::move(text), advice_);
}

}  // namespace stasis
