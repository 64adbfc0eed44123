#pragma once

#include <cuda_fp8.h>

#include "cuda/common/mma.cuh"
#include "cuda/kernels/kernels.h"

// What decode and prefill attention share. Scores are kept in units of log2, so that the softmax
// is exp2 of differences.
namespace pagedcore::cuda {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kNegativeInfinity = -__builtin_huge_valf();

// The 16-bit type that a KV type is multiplied in: e4m3 is exact in float16.
template <typename KV>
struct MmaType {
  using type = KV;
};
template <>
struct MmaType<__nv_fp8_e4m3> {
  using type = __half;
};

// Replaces scores x, in units of log2, by softcap * tanh(x / softcap), by way of
// tanh(x) = 1 - 2 / (1 + e^2x): absolute error about 2e-7 softcap.
template <int kTiles>
__device__ inline void cap_scores(float (&s)[kTiles][4], float softcap) {
  const float cap = softcap * kLog2E;
  const float factor = 2.0f * kLog2E / cap;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      s[n][c] = cap - __fdividef(2.0f * cap, 1.0f + exp2_approx(fminf(s[n][c] * factor, 126.0f)));
    }
  }
}

// The first cached position that a query at `position` sees.
__device__ inline std::int32_t window_start(std::int32_t position, std::int32_t sliding_window) {
  return sliding_window > 0 ? max(0, position - sliding_window + 1) : 0;
}

// What scores are taken relative to: a row that has seen nothing yet has no maximum.
__device__ inline float finite_max(float m) { return m == kNegativeInfinity ? 0.0f : m; }

// Turns 16 e4m3 bytes into two 16-byte chunks of float16.
__device__ inline void widen_fp8(const uint4& raw, uint4& low, uint4& high) {
  const std::uint32_t in[4] = {raw.x, raw.y, raw.z, raw.w};
  std::uint32_t out[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const __half2_raw h = __nv_cvt_fp8x2_to_halfraw2(
        static_cast<__nv_fp8x2_storage_t>(in[i / 2] >> (i % 2 * 16)), __NV_E4M3);
    out[i] = reinterpret_cast<const std::uint32_t&>(h);
  }
  low = make_uint4(out[0], out[1], out[2], out[3]);
  high = make_uint4(out[4], out[5], out[6], out[7]);
}

// Widens rows [first, first + step, ...) of a raw fp8 tile into a float16 tile.
template <int kHeadDim>
__device__ inline void widen_tile(const char* raw, char* wide, int num_rows, int thread,
                                  int num_threads) {
  using Raw = TileLayout<kHeadDim>;
  using Wide = TileLayout<2 * kHeadDim>;
  for (int i = thread; i < num_rows * Raw::kChunks; i += num_threads) {
    const int row = i / Raw::kChunks, chunk = i % Raw::kChunks;
    uint4 low, high;
    widen_fp8(*reinterpret_cast<const uint4*>(raw + Raw::offset(row, chunk)), low, high);
    *reinterpret_cast<uint4*>(wide + Wide::offset(row, 2 * chunk)) = low;
    *reinterpret_cast<uint4*>(wide + Wide::offset(row, 2 * chunk + 1)) = high;
  }
}

}  // namespace pagedcore::cuda
