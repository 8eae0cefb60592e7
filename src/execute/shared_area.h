// The agent area of a restore, as stasis sees it.
#pragma once

#include <pthread.h>

#include <cstdint>
#include <span>
#include <utility>

#include "agent/abi.h"
#include "base/result.h"
#include "base/types.h"

namespace stasis::execute {

/// Mapped in stasis at the address it has in every process being built.
class SharedArea {
 public:
  static Result<SharedArea> create(AddressRange where);
  SharedArea(SharedArea&& other) noexcept : base_(std::exchange(other.base_, nullptr)), size_(other.size_) {}
  SharedArea& operator=(SharedArea&&) = delete;
  ~SharedArea();

  uint8_t* base() const { return base_; }
  ByteView bytes() const { return {base_, size_}; }
  std::span<uint8_t> memory() const { return {base_, size_}; }
  agent::Header& header() const { return *reinterpret_cast<agent::Header*>(base_ + agent::code_space); }
  agent::Slot& slot(uint32_t index) const { return reinterpret_cast<agent::Slot*>(base_ + header().slots)[index]; }
  uint32_t state(uint32_t slot_index) const { return __atomic_load_n(&slot(slot_index).state, __ATOMIC_ACQUIRE); }
  std::span<const agent::Instruction> program(const agent::Slot& slot) const {
    return {reinterpret_cast<const agent::Instruction*>(base_ + slot.instructions), slot.instruction_count};
  }
  uint32_t ready() const { return __atomic_load_n(&counters()[agent::ready_counter], __ATOMIC_ACQUIRE); }
  std::span<uint32_t> counters() const {
    return {reinterpret_cast<uint32_t*>(base_ + header().counters), header().counter_count};
  }
  uint32_t failed() const { return __atomic_load_n(&header().failed, __ATOMIC_ACQUIRE); }
  /// Makes every waiting slot give up, as a slot that fails does.
  void cancel() const {
    uint32_t nobody = 0;
    __atomic_compare_exchange_n(&header().failed, &nobody, agent::failing, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
  }

 private:
  SharedArea(uint8_t* base, uint64_t size) : base_(base), size_(size) {}
  uint8_t* base_;
  uint64_t size_;
};

/// While it lives, so do those who run the agent: they end with the thread that has made this (agent::Supervision), and
/// that thread has to take it away before the area is unmapped.
class Supervision {
 public:
  /// In an area that has been laid out.
  static Result<Supervision> begin(agent::Header&);
  Supervision(Supervision&& other) noexcept : mutex_(std::exchange(other.mutex_, nullptr)) {}
  Supervision& operator=(Supervision&&) = delete;
  ~Supervision();

 private:
  explicit Supervision(pthread_mutex_t* mutex) : mutex_(mutex) {}
  pthread_mutex_t* mutex_;
};

}  // namespace stasis::execute
