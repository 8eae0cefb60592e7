// Cutting kernel text into pieces without copying it. Internal to src/kernel.
#pragma once

#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>

namespace stasis::kernel {

/// A view that is eaten from the front.
class TextCursor {
 public:
  explicit TextCursor(std::string_view text) : rest_(text) {}
  bool done() const { return rest_.empty(); }
  std::string_view rest() const { return rest_; }
  void skip(size_t count) { rest_.remove_prefix(count < rest_.size() ? count : rest_.size()); }

  /// The text up to (not including) the separator, which is eaten too; all of it if there is none.
  std::string_view until(char separator) {
    const size_t at = rest_.find(separator);
    const auto piece = rest_.substr(0, at);
    skip(at == std::string_view::npos ? rest_.size() : at + 1);
    return piece;
  }
  std::string_view line() { return until('\n'); }
  void skip_blanks() {
    const size_t at = rest_.find_first_not_of(" \t");
    skip(at == std::string_view::npos ? rest_.size() : at);
  }
  /// The next word; words are separated by blanks and tabs.
  std::string_view word() {
    skip_blanks();
    const size_t at = rest_.find_first_of(" \t\n");
    const auto piece = rest_.substr(0, at);
    skip(piece.size());
    return piece;
  }
  template <typename T>
  std::optional<T> number(int base = 10) {
    skip_blanks();
    T value{};
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value, base);
    if (error != std::errc{}) return std::nullopt;
    skip(static_cast<size_t>(end - rest_.data()));
    return value;
  }

 private:
  std::string_view rest_;
};

template <typename T>
std::optional<T> to_number(std::string_view text, int base = 10) {
  TextCursor cursor(text);
  return cursor.number<T>(base);
}

}  // namespace stasis::kernel
