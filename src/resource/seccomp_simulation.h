// What a chain of seccomp filters answers to a system call, without making it.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "model/task.h"

namespace stasis::resource {

/// The chain's answer: SECCOMP_RET_* with its data, the most restrictive of all filters' (seccomp(2)). A program that
/// the kernel would not take answers SECCOMP_RET_KILL_PROCESS. The instruction pointer counts as 0.
uint32_t seccomp_answer(std::span<const model::SeccompFilter> chain, uint32_t number,
                        const std::array<uint64_t, 6>& arguments = {});

/// Whether the call is made and its caller notices nothing.
bool seccomp_allows(std::span<const model::SeccompFilter> chain, uint32_t number,
                    const std::array<uint64_t, 6>& arguments = {});

}  // namespace stasis::resource
