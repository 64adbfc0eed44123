#pragma once

#include "cuda/kernels/sample.h"

namespace pagedcore::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr float kNegativeInfinity = -__builtin_huge_valf();
constexpr unsigned kAll = 0xffffffffu;

// A place in the order of weights: heavier first, then lower id. Weights are >= 0, so that their
// bits compare as integers do.
struct Place {
  std::int32_t bits = 0;
  std::int32_t id = 0;
  __device__ bool is_after(float weight, std::int32_t i) const {
    return __float_as_int(weight) > bits - static_cast<std::int32_t>(i < id);
  }
};

// Orders scores as unsigned integers; NaN lies below all.
__device__ std::uint32_t order_key(float x) {
  if (isnan(x)) return 0;
  const std::uint32_t u = __float_as_uint(x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
__device__ float from_order_key(std::uint32_t k) {
  return __uint_as_float(k & 0x80000000u ? k & 0x7fffffffu : ~k);
}

template <typename T>
__device__ T warp_max(T v) {
  for (int d = 16; d > 0; d /= 2) v = max(v, __shfl_xor_sync(kAll, v, d));
  return v;
}
template <typename T>
__device__ T warp_total(T v) {
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(kAll, v, d);
  return v;
}

struct Shared {
  double partial[kWarps];
  std::uint32_t partial_key[kWarps];
  unsigned long long candidates[kMaxSortedTop];  // order_key(score) << 32 | ~id
  float thread_max[kThreads];
  std::int32_t count;
  double total;
  TokenId token;
  SampleTask task;
};

// What one thread block finds in a row of scores. Every method is called by all of its threads.
class RowSearch {
 public:
  __device__ RowSearch(std::int32_t size, Shared& shared) : size_(size), s_(shared) {}

  // Sums and maxima over the thread block; all threads get the result, made in one order.
  __device__ double total(double v) {
    v = warp_total(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s_.partial[threadIdx.x / 32] = v;
    __syncthreads();
    double sum = 0.0;
    for (int w = 0; w < kWarps; ++w) sum += s_.partial[w];
    return sum;
  }
  __device__ std::int32_t count(std::int32_t v) {
    return static_cast<std::int32_t>(total(static_cast<double>(v)));
  }
  __device__ std::uint32_t max_key(std::uint32_t v) {
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s_.partial_key[threadIdx.x / 32] = v;
    __syncthreads();
    std::uint32_t best = 0;
    for (int w = 0; w < kWarps; ++w) best = max(best, s_.partial_key[w]);
    return best;
  }

  // The highest score, -infinity where there is none but NaN. Leaves each thread's own behind.
  __device__ float max_of(const float* scores) {
    std::uint32_t best = order_key(kNegativeInfinity);
#pragma unroll 8
    for (std::int32_t i = threadIdx.x; i < size_; i += kThreads) {
      best = max(best, order_key(scores[i]));
    }
    s_.thread_max[threadIdx.x] = from_order_key(best);
    return from_order_key(max_key(best));
  }

  __device__ float candidate_score(std::int32_t i) const {
    return from_order_key(static_cast<std::uint32_t>(s_.candidates[i] >> 32));
  }
  __device__ TokenId candidate_id(std::int32_t i) const {
    return static_cast<TokenId>(~static_cast<std::uint32_t>(s_.candidates[i]));
  }

  // Sorts the first `size` (a power of two) candidates, highest first. Bitonic.
  __device__ void sort_candidates(std::int32_t size) {
    for (std::int32_t k = 2; k <= size; k *= 2) {
      for (std::int32_t j = k / 2; j > 0; j /= 2) {
        __syncthreads();
        for (std::int32_t i = threadIdx.x; i < size; i += kThreads) {
          const std::int32_t other = i ^ j;
          if (other <= i) continue;
          const unsigned long long a = s_.candidates[i], b = s_.candidates[other];
          if ((i & k) == 0 ? a < b : a > b) s_.candidates[i] = b, s_.candidates[other] = a;
        }
      }
    }
    __syncthreads();
  }

  // Keeps the scores for which `wanted(key, id)` as candidates and gives their number, which may
  // exceed kMaxSortedTop; then only so many are kept.
  template <typename Wanted>
  __device__ std::int32_t collect(const float* scores, Wanted wanted) {
    __syncthreads();
    if (threadIdx.x == 0) s_.count = 0;
    __syncthreads();
    for (std::int32_t i = threadIdx.x; i < size_; i += kThreads) {
      const std::uint32_t key = order_key(scores[i]);
      if (key <= order_key(kNegativeInfinity) || !wanted(key, i)) continue;
      const std::int32_t at = atomicAdd(&s_.count, 1);
      if (at < kMaxSortedTop) {
        s_.candidates[at] = std::uint64_t{key} << 32 | ~static_cast<std::uint32_t>(i);
      }
    }
    __syncthreads();
    return s_.count;
  }

  // The place of the wanted-th highest score: `key` and the ids below `id_end` that share it.
  // One counting pass a bit: only where collect() found too many.
  __device__ void find_place(const float* scores, std::int32_t wanted, std::uint32_t& key,
                             std::int32_t& id_end) {
    key = 0;
    for (std::uint32_t bit = 0x80000000u; bit != 0; bit /= 2) {
      std::int32_t reach = 0;
      for (std::int32_t i = threadIdx.x; i < size_; i += kThreads) {
        reach += order_key(scores[i]) >= (key | bit);
      }
      if (count(reach) >= wanted) key |= bit;
    }
    std::int32_t above = 0;
    for (std::int32_t i = threadIdx.x; i < size_; i += kThreads) {
      above += order_key(scores[i]) > key;
    }
    const std::int32_t ties = wanted - count(above);
    std::int32_t low = 0;
    id_end = size_;  // the least bound with `ties` equal scores below it
    while (id_end - low > 1) {
      const std::int32_t middle = low + (id_end - low) / 2;
      std::int32_t equal = 0;
      for (std::int32_t i = threadIdx.x; i < middle; i += kThreads) {
        equal += order_key(scores[i]) == key;
      }
      (count(equal) >= ties ? id_end : low) = middle;
    }
  }

  // The `wanted` <= kMaxSortedTop highest scores (fewer where fewer are above -infinity) as sorted
  // candidates; gives their number. REQUIRES: max_of(scores) came last.
  __device__ std::int32_t select_top(const float* scores, std::int32_t wanted) {
    // At least `wanted` scores reach the wanted-th highest of the threads' maxima.
    std::uint32_t floor = 0;
    if (wanted <= kThreads) {
      __syncthreads();
      s_.candidates[threadIdx.x] = std::uint64_t{order_key(s_.thread_max[threadIdx.x])};
      sort_candidates(kThreads);
      floor = static_cast<std::uint32_t>(s_.candidates[wanted - 1]);
    }
    std::int32_t found =
        collect(scores, [floor](std::uint32_t key, std::int32_t) { return key >= floor; });
    if (found > kMaxSortedTop) {
      std::uint32_t least = 0;
      std::int32_t id_end = 0;
      find_place(scores, wanted, least, id_end);
      found = collect(scores, [least, id_end](std::uint32_t key, std::int32_t i) {
        return key > least || (key == least && i < id_end);
      });
    }
    std::int32_t size = 2;
    while (size < found) size *= 2;
    for (std::int32_t i = found + threadIdx.x; i < size; i += kThreads) s_.candidates[i] = 0;
    sort_candidates(size);
    return min(found, wanted);
  }

 protected:
  std::int32_t size_;
  Shared& s_;
};

}  // namespace
}  // namespace pagedcore::cuda
