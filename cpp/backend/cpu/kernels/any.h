#pragma once

#include PAGEDCORE_SIMD_HEADER

#include "cpp/base/thread_pool.h"
#include "pagedcore/dtype.h"

// Vectors of arrays whose dtype is known at run time only, for kernels whose time is that of
// memory: a switch that always goes the same way costs less than an instantiation for every dtype.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// The first n <= kLanes numbers from p[i]; missing lanes are 0.
inline Vec load_any(DType dtype, const void* p, std::int64_t i, int n = kLanes) {
  switch (dtype) {
    case DType::kBFloat16: {
      const auto* x = static_cast<const BFloat16*>(p) + i;
      return n == kLanes ? load(x) : load_n(x, n);
    }
    case DType::kFloat16: {
      const auto* x = static_cast<const Float16*>(p) + i;
      return n == kLanes ? load(x) : load_n(x, n);
    }
    default: {
      const auto* x = static_cast<const float*>(p) + i;
      return n == kLanes ? load(x) : load_n(x, n);
    }
  }
}

// The first n <= kLanes lanes to p[i], rounded to nearest even.
inline void store_any(DType dtype, void* p, std::int64_t i, Vec a, int n = kLanes) {
  switch (dtype) {
    case DType::kBFloat16: {
      auto* x = static_cast<BFloat16*>(p) + i;
      return n == kLanes ? store(x, a) : store_n(x, a, n);
    }
    case DType::kFloat16: {
      auto* x = static_cast<Float16*>(p) + i;
      return n == kLanes ? store(x, a) : store_n(x, a, n);
    }
    default: {
      auto* x = static_cast<float*>(p) + i;
      return n == kLanes ? store(x, a) : store_n(x, a, n);
    }
  }
}

// Calls f(i, n) for each vector of `count` numbers: from i on, n = kLanes but for the last.
template <typename F>
[[gnu::always_inline]] inline void for_each_vector(std::int64_t count, F&& f) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i, kLanes);
  if (i < count) f(i, static_cast<int>(count - i));
}

// Calls f(begin, end) with the rows of each thread; on the caller alone where the work is less
// than waking a thread costs. `row_elements` is what one row reads and writes.
template <typename F>
inline void for_each_row_range(ThreadPool& pool, std::int64_t rows, std::int64_t row_elements,
                               F&& f) {
  constexpr std::int64_t kMinElements = 1 << 13;
  if (pool.size() == 1 || rows == 1 || rows * row_elements < kMinElements) {
    f(std::int64_t{0}, rows);
    return;
  }
  pool.run([&](int thread) {
    const std::int64_t begin = rows * thread / pool.size();
    const std::int64_t end = rows * (thread + 1) / pool.size();
    if (begin < end) f(begin, end);
  });
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
