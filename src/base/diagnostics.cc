#include "base/diagnostics.h"

#include <algorithm>
#include <utility>

#include "base/advice.h"

namespace stasis {

std::string Diagnostic::text() const {
  return with_advice(subject.empty() ? problem : subject + ": " + problem, advice);
}

void Diagnostics::refuse(std::string subject, std::string problem, std::string advice) {
  all_.push_back({Diagnostic::Severity::refusal, std::move(subject), std::move(problem), std::move(advice)});
}

void Diagnostics::refuse_for_now(std::string subject, std::string problem, std::string advice) {
  refuse(std::move(subject), std::move(problem), std::move(advice));
  all_.back().for_now = true;
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

bool Diagnostics::refused_only_for_now() const {
  return refused() && std::ranges::all_of(all_, [](const Diagnostic& d) {
           return d.severity != Diagnostic::Severity::refusal || d.for_now;
         });
}

}  // namespace stasis
