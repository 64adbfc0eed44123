#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

#include "pagedcore/ops.h"

namespace pagedcore::cuda {

// Elements of a dtype known at run time, as float32. The branch is uniform over the grid, so the
// memory-bound kernels take it instead of one instantiation a combination.

__device__ inline float load1(const void* p, DType dtype, std::int64_t i) {
  switch (dtype) {
    case DType::kFloat16:
      return __half2float(static_cast<const __half*>(p)[i]);
    case DType::kBFloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
    case DType::kFp8E4M3:
      return static_cast<float>(static_cast<const __nv_fp8_e4m3*>(p)[i]);
    default:
      return static_cast<const float*>(p)[i];
  }
}

__device__ inline void store1(void* p, DType dtype, std::int64_t i, float v) {
  switch (dtype) {
    case DType::kFloat16:
      static_cast<__half*>(p)[i] = __float2half_rn(v);
      break;
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(p)[i] = __float2bfloat16_rn(v);
      break;
    case DType::kFp8E4M3:
      static_cast<__nv_fp8_e4m3*>(p)[i] = __nv_fp8_e4m3(v);
      break;
    default:
      static_cast<float*>(p)[i] = v;
  }
}

__device__ inline std::uint32_t pack_half2(float a, float b) {
  const __half2 h = __floats2half2_rn(a, b);
  return reinterpret_cast<const std::uint32_t&>(h);
}
__device__ inline std::uint32_t pack_bf162(float a, float b) {
  const __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const std::uint32_t&>(h);
}

// Two neighbours at an even index.
__device__ inline void store2(void* p, DType dtype, std::int64_t i, float a, float b) {
  if (dtype == DType::kFloat32) {
    *reinterpret_cast<float2*>(static_cast<float*>(p) + i) = make_float2(a, b);
  } else {
    *reinterpret_cast<std::uint32_t*>(static_cast<std::uint16_t*>(p) + i) =
        dtype == DType::kBFloat16 ? pack_bf162(a, b) : pack_half2(a, b);
  }
}

constexpr int kVec = 8;  // elements of one vector access: 16 bytes of a 16-bit dtype

// REQUIRES: dtype is float32, float16 or bfloat16; p + i is 16-byte aligned.
__device__ inline void load8(const void* p, DType dtype, std::int64_t i, float (&v)[kVec]) {
  if (dtype == DType::kFloat32) {
    const float4* q = reinterpret_cast<const float4*>(static_cast<const float*>(p) + i);
    const float4 a = q[0], b = q[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    return;
  }
  const uint4 raw = *reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(p) + i);
  const std::uint32_t w[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (dtype == DType::kBFloat16) {
      v[2 * j] = __uint_as_float(w[j] << 16);
      v[2 * j + 1] = __uint_as_float(w[j] & 0xffff0000u);
    } else {
      const float2 f = __half22float2(reinterpret_cast<const __half2&>(w[j]));
      v[2 * j] = f.x, v[2 * j + 1] = f.y;
    }
  }
}

__device__ inline void store8(void* p, DType dtype, std::int64_t i, const float (&v)[kVec]) {
  if (dtype == DType::kFloat32) {
    float4* q = reinterpret_cast<float4*>(static_cast<float*>(p) + i);
    q[0] = make_float4(v[0], v[1], v[2], v[3]);
    q[1] = make_float4(v[4], v[5], v[6], v[7]);
    return;
  }
  uint4 raw;
  std::uint32_t* w = reinterpret_cast<std::uint32_t*>(&raw);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    w[j] = dtype == DType::kBFloat16 ? pack_bf162(v[2 * j], v[2 * j + 1])
                                     : pack_half2(v[2 * j], v[2 * j + 1]);
  }
  *reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(p) + i) = raw;
}

// As store8(), and to fp8.
__device__ inline void store8_or_fp8(void* p, DType dtype, std::int64_t i, const float (&v)[kVec]) {
  if (dtype != DType::kFp8E4M3) return store8(p, dtype, i, v);
  const __nv_fp8x4_e4m3 low(make_float4(v[0], v[1], v[2], v[3]));
  const __nv_fp8x4_e4m3 high(make_float4(v[4], v[5], v[6], v[7]));
  *reinterpret_cast<uint2*>(static_cast<char*>(p) + i) = make_uint2(low.__x, high.__x);
}

// Elements [i, i + kVec) of a row of `width`; `vec` says that the row allows vector accesses.
__device__ inline void load_row(const void* p, DType dtype, std::int64_t row, std::int64_t width,
                                std::int64_t i, bool vec, float (&v)[kVec]) {
  if (vec) return load8(p, dtype, row * width + i, v);
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    v[j] = i + j < width ? load1(p, dtype, row * width + i + j) : 0.0f;
  }
}

__device__ inline void store_row(void* p, DType dtype, std::int64_t row, std::int64_t width,
                                 std::int64_t i, bool vec, const float (&v)[kVec]) {
  if (vec) return store8(p, dtype, row * width + i, v);
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    if (i + j < width) store1(p, dtype, row * width + i + j, v[j]);
  }
}

__device__ inline float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}

__device__ inline float activate(Activation kind, float x) {
  switch (kind) {
    case Activation::kSilu:
      return x / (1.0f + expf(-x));
    case Activation::kGelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case Activation::kRelu:
      return fmaxf(x, 0.0f);
    default:
      return x;
  }
}

// Chooses once for all elements, so that little code lies between them.
__device__ inline void activate(Activation kind, float (&v)[kVec]) {
  const auto each = [&](auto chosen) {
#pragma unroll
    for (int j = 0; j < kVec; ++j) v[j] = activate(chosen.value, v[j]);
  };
  switch (kind) {
    case Activation::kSilu:
      return each(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kGelu:
      return each(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kGeluTanh:
      return each(std::integral_constant<Activation, Activation::kGeluTanh>{});
    case Activation::kRelu:
      return each(std::integral_constant<Activation, Activation::kRelu>{});
    default:
      return;
  }
}

}  // namespace pagedcore::cuda
