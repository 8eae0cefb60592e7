#include "execute/shared_area.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>

#include "base/unique_fd.h"

namespace stasis::execute {

Result<SharedArea> SharedArea::create(AddressRange where) {
  const UniqueFd memory(memfd_create("stasis-agent", MFD_CLOEXEC));
  if (!memory.valid()) return fail_errno("memfd_create", "the agent area");
  if (ftruncate(memory.get(), static_cast<off_t>(where.size())) != 0) return fail_errno("ftruncate", "the agent area");
  void* mapped = mmap(reinterpret_cast<void*>(where.begin), where.size(), PROT_READ | PROT_WRITE | PROT_EXEC,
                      MAP_SHARED | MAP_FIXED_NOREPLACE, memory.get(), 0);
  if (mapped == MAP_FAILED) return fail_errno("mmap", fmt::format("the agent area at {:#x}", where.begin));
  return SharedArea(static_cast<uint8_t*>(mapped), where.size());
}

SharedArea::~SharedArea() {
  if (base_ != nullptr) munmap(base_, size_);
}

Result<Supervision> Supervision::begin(agent::Header& header) {
  static_assert(sizeof(pthread_mutex_t) <= sizeof(agent::Supervision));
  static_assert(offsetof(agent::Header, supervision) % alignof(pthread_mutex_t) == 0);
  static_assert(offsetof(pthread_mutex_t, __data.__lock) == offsetof(agent::Supervision, word));
  auto* mutex = reinterpret_cast<pthread_mutex_t*>(&header.supervision);
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  int error = pthread_mutex_init(mutex, &attributes);
  pthread_mutexattr_destroy(&attributes);
  if (error == 0) error = pthread_mutex_lock(mutex);
  if (error != 0) return fail(Error::system("guard the processes", error, "by a robust mutex"));
  return Supervision(mutex);
}

Supervision::~Supervision() {
  if (mutex_ != nullptr) pthread_mutex_unlock(mutex_);
}

}  // namespace stasis::execute
