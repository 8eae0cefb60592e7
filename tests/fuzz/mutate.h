// Changes that random bytes would hardly ever make: a bundle is taken apart into files and records, one thing in it is
// changed (a number, a field, a record, a file), and it is put together again.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace stasis::fuzz {

using Input = std::vector<uint8_t>;

/// False if the input is no bundle, or nothing could be changed.
bool mutate_bundle(Input& input, std::mt19937_64& random);
/// Bytes changed, moved, taken out.
void damage(Input& input, std::mt19937_64& random);

}  // namespace stasis::fuzz
