// JSON as text: what is common to the forms of trees and of programs.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "base/result.h"

namespace stasis::plan {

/// Errors say where it is no JSON, or which field an object has twice.
Result<nlohmann::ordered_json> parse_json(std::string_view text, const char* operation);

}  // namespace stasis::plan
