#include "base/diagnostics.h"

#include <algorithm>
#include <utility>

namespace stasis {

std::string Diagnostic::text() const {
  std::string line = subject.empty() ? problem : subject + ": " + problem;
  if (!advice.empty()) line += "; " + advice;
  return line;
}

void Diagnostics::refuse(std::string subject, std::string problem, std::string advice) {
  all_.push_back({Diagnostic::Severity::refusal, std::move(subject), std::move(problem), std::move(advice)});
}

void Diagnostics::warn(std::string subject, std::string problem, std::string advice) {
  all_.push_back({Diagnostic::Severity::warning, std::move(subject), std::move(problem), std::move(advice)});
}

void Diagnostics::note(std::string subject, std::string text) {
  all_.push_back({Diagnostic::Severity::note, std::move(subject), std::move(text), {}});
}

bool Diagnostics::refused() const {
  return std::ranges::any_of(all_, [](const Diagnostic& d) { return d.severity == Diagnostic::Severity::refusal; });
}

}  // namespace stasis
