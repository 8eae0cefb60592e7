// docs/plan-language.md against src/plan/command.h: every command with just the fields that it has, and none besides.
#include <gmock/gmock.h>

#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <utility>

#include "plan/command.h"

namespace stasis::plan {
namespace {

using Fields = std::set<std::string>;
using Language = std::map<std::string, Fields>;

template <typename One>
void add(Language& language) {
  auto& fields = language[std::string(One::name)];
  const One one;
  One::fields(one, [&](const char* field, const auto&) { fields.insert(field); });
}
template <size_t... Index>
Language language_of(std::index_sequence<Index...>) {
  Language language;
  (add<std::variant_alternative_t<Index, Action>>(language), ...);
  return language;
}

/// Cells of a row of a table.
std::vector<std::string> cells(const std::string& line) {
  std::vector<std::string> found;
  std::istringstream rest(line.substr(1));
  for (std::string cell; std::getline(rest, cell, '|');) {
    const auto begin = cell.find_first_not_of(' '), end = cell.find_last_not_of(' ');
    found.push_back(begin == std::string::npos ? "" : cell.substr(begin, end - begin + 1));
  }
  return found;
}

/// "fd, status (of exit(2))": names, each with a remark or without.
Fields names_in(const std::string& cell) {
  Fields names;
  std::string name;
  int depth = 0;
  for (const char c : cell + ",") {
    if (c == '(') ++depth;
    if (c == ')') --depth;
    if (depth == 0 && (std::islower(c) != 0 || c == '_')) name += c;
    if (depth == 0 && c == ',' && !name.empty()) names.insert(std::exchange(name, ""));
  }
  return names;
}

Language documented() {
  Language language;
  std::ifstream text(STASIS_SOURCE_DIR "/docs/plan-language.md");
  for (std::string line; std::getline(text, line);) {
    if (!line.starts_with("| ")) continue;
    const auto row = cells(line);
    const bool is_command = row.size() == 6 && row[0].find_first_of("abcdefghijklmnopqrstuvwxyz") == std::string::npos;
    if (is_command) language[row[0]] = names_in(row[1]);
  }
  return language;
}

TEST(Language, IsDocumentedAsItIs) {
  auto language = language_of(std::make_index_sequence<std::variant_size_v<Action>>());
  const auto perform = language.extract("PERFORM");  // has a section of its own
  EXPECT_EQ(documented(), language);
  std::ifstream file(STASIS_SOURCE_DIR "/docs/plan-language.md");
  std::stringstream text;
  text << file.rdbuf();
  const auto all = text.str();
  const auto section = all.substr(all.find("## Everything else: PERFORM"));
  for (const auto& field : perform.mapped())
    EXPECT_THAT(section.substr(0, section.find("\n## ", 1)), testing::HasSubstr(field));
}

}  // namespace
}  // namespace stasis::plan
