#include "plan/json_text.h"

#include <fmt/format.h>

#include <set>
#include <string>
#include <vector>

namespace stasis::plan {

Result<nlohmann::ordered_json> parse_json(std::string_view text, const char* operation) {
  using Json = nlohmann::ordered_json;
  std::vector<std::set<std::string>> fields;  // of the objects that are open
  std::string twice;
  const auto note_fields = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) fields.emplace_back();
    if (event == Json::parse_event_t::object_end) fields.pop_back();
    if (event != Json::parse_event_t::key) return true;
    const auto [name, fresh] = fields.back().insert(parsed.get<std::string>());
    if (!fresh) twice = *name;
    return true;
  };
  try {
    auto json = Json::parse(text, note_fields);
    if (twice.empty()) return json;
    return fail(Error::invalid(operation, fmt::format("an object has the field '{}' twice", twice)));
  } catch (const Json::parse_error& problem) {
    const std::string_view what = problem.what();  // "[json.exception.parse_error.101] parse error at line 1, …"
    return fail(Error::invalid(operation, fmt::format("it is not JSON: {}", what.substr(what.find(']') + 2))));
  }
}

}  // namespace stasis::plan
