// Statements about the application (not faults of ours): collected, shown all at once, each with a remedy.
#pragma once

#include <string>
#include <vector>

namespace stasis {

struct Diagnostic {
  enum class Severity { refusal, warning, note };
  Severity severity = Severity::refusal;
  std::string subject;   ///< "task 4711 'nginx', descriptor 7 → socket:[123]"
  std::string problem;   ///< what is the matter with it
  std::string advice;    ///< the option to pass or the reason nothing can be done
  bool for_now = false;  ///< a refusal of a state in which programs are for a moment only
  std::string text() const;
};

class Diagnostics {
 public:
  void refuse(std::string subject, std::string problem, std::string advice);
  /// Of a state that ends when the program comes to its next accept() or receive(): worth another look a moment later.
  void refuse_for_now(std::string subject, std::string problem, std::string advice);
  void warn(std::string subject, std::string problem, std::string advice = {});
  void note(std::string subject, std::string text);
  const std::vector<Diagnostic>& all() const { return all_; }
  bool refused() const;
  bool refused_only_for_now() const;

 private:
  std::vector<Diagnostic> all_;
};

}  // namespace stasis
