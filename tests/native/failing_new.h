#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

// Replaces the global operator new of the executable, and with it that of the libraries it loads.
// Include it in one source.

namespace pagedcore::test {

inline std::int64_t allocations_until_failure = -1;  // -1: none fails
inline std::int64_t num_allocations = 0;             // alive

inline void* allocate(std::size_t size, std::size_t alignment) {
  if (allocations_until_failure >= 0 && allocations_until_failure-- == 0) return nullptr;
  const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
  num_allocations += memory != nullptr;
  return memory;
}

inline void deallocate(void* memory) {
  num_allocations -= memory != nullptr;
  std::free(memory);
}

inline void* allocate_or_throw(std::size_t size, std::size_t alignment) {
  if (void* memory = allocate(size, alignment)) return memory;
  throw std::bad_alloc();
}

}  // namespace pagedcore::test

void* operator new(std::size_t size) {
  return pagedcore::test::allocate_or_throw(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__);
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return pagedcore::test::allocate_or_throw(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return pagedcore::test::allocate(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__);
}
void operator delete(void* memory) noexcept { pagedcore::test::deallocate(memory); }
void operator delete(void* memory, std::size_t) noexcept { pagedcore::test::deallocate(memory); }
void operator delete(void* memory, std::align_val_t) noexcept {
  pagedcore::test::deallocate(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  pagedcore::test::deallocate(memory);
}
void operator delete(void* memory, const std::nothrow_t&) noexcept {
  pagedcore::test::deallocate(memory);
}
