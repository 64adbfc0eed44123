#include "cuda/common/launch.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/kernels.h"

namespace pagedcore::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxRows = 2;  // cuBLASLt is faster beyond: bench/bench_cuda_ops.py
constexpr int kUnroll = 4;   // 16-byte loads in flight a lane and weight row
// Of a multiprocessor; float32 needs the registers of one more.
template <typename T>
constexpr int kMinBlocks = sizeof(T) == 2 ? 6 : 5;

template <typename T>
struct Vector {
  static constexpr int kSize = 16 / sizeof(T);
};

__device__ inline uint4 load_once(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

__device__ inline void widen(const uint4& raw, float (&v)[4], float) {
  v[0] = __uint_as_float(raw.x), v[1] = __uint_as_float(raw.y);
  v[2] = __uint_as_float(raw.z), v[3] = __uint_as_float(raw.w);
}
__device__ inline void widen(const uint4& raw, float (&v)[8], __nv_bfloat16) {
  const std::uint32_t w[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    v[2 * j] = __uint_as_float(w[j] << 16);
    v[2 * j + 1] = __uint_as_float(w[j] & 0xffff0000u);
  }
}
__device__ inline void widen(const uint4& raw, float (&v)[8], __half) {
  const std::uint32_t w[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 f = __half22float2(reinterpret_cast<const __half2&>(w[j]));
    v[2 * j] = f.x, v[2 * j + 1] = f.y;
  }
}

// Adds the products of two rows of weights with the rows of x: lane l takes vectors l, l + 32, ...
// The first weights are under way before x is there.
template <typename T, int kRows>
__device__ void accumulate(const T* w0, const T* w1, const T* x, std::int64_t x_stride,
                           std::int64_t size, float (&sum)[2][kRows]) {
  constexpr int kSize = Vector<T>::kSize;
  constexpr std::int64_t kStep = 32 * kSize;
  const auto add = [&](const uint4& raw0, const uint4& raw1, std::int64_t at) {
    float a0[kSize], a1[kSize], b[kSize];
    widen(raw0, a0, T{});
    widen(raw1, a1, T{});
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      widen(*reinterpret_cast<const uint4*>(x + r * x_stride + at), b, T{});
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        sum[0][r] = fmaf(a0[j], b[j], sum[0][r]);
        sum[1][r] = fmaf(a1[j], b[j], sum[1][r]);
      }
    }
  };
  uint4 raw0[kUnroll], raw1[kUnroll];
  const auto load = [&](std::int64_t at) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      raw0[u] = load_once(w0 + at + u * kStep);
      raw1[u] = load_once(w1 + at + u * kStep);
    }
  };
  std::int64_t i = threadIdx.x % 32 * kSize;
  const auto whole = [&] { return i + (kUnroll - 1) * kStep < size; };
  if (whole()) load(i);
  await_inputs();
  while (whole()) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) add(raw0[u], raw1[u], i + u * kStep);
    i += kUnroll * kStep;
    if (whole()) load(i);
  }
  for (; i < size; i += kStep) add(load_once(w0 + i), load_once(w1 + i), i);
}

// kParts warps per pair of outputs, each with one part of the inputs: two neighbours of one weight,
// or the gate and the up of one. Reads each weight once. An output's sum has one order, whatever
// the number of rows up to kMaxRows. The next kernel may start once the weights are here: before,
// its thread blocks would take the registers of those that have still to load.
template <typename T, int kRows, int kParts>
__global__ void __launch_bounds__(kWarps * 32, kMinBlocks<T>)
    gemv_kernel(const __grid_constant__ LinearParams p) {
  __shared__ float parts[kWarps][2 * kRows];
  const bool gated = p.epilogue == LinearEpilogue::kGated;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = warp % kParts;
  std::int64_t first = std::int64_t{blockIdx.x} * (kWarps / kParts) + warp / kParts;
  if (!gated) first *= 2;
  int which = 0;
  std::int64_t y_offset = 0;
  while (which < p.num_weights && first >= p.weights[which].out_features) {
    first -= p.weights[which].out_features;
    y_offset += p.weights[which].out_features;
    if (gated || ++which == p.num_weights) break;
  }
  const bool exists = which < p.num_weights && first < p.weights[which].out_features;
  float sum[2][kRows] = {};
  const LinearWeight& weight = p.weights[exists ? which : 0];
  const LinearWeight& other = gated ? p.weights[1] : weight;
  const std::int64_t second = gated ? first : min(first + 1, weight.out_features - 1);
  if (exists) {
    constexpr int kSize = Vector<T>::kSize;
    const std::int64_t size = ceil_div(p.in_features, kParts * kSize) * kSize;
    const std::int64_t begin = part * size;
    accumulate<T, kRows>(static_cast<const T*>(weight.data) + first * p.in_features + begin,
                         static_cast<const T*>(other.data) + second * p.in_features + begin,
                         static_cast<const T*>(p.x) + begin, p.x_stride,
                         min(size, p.in_features - begin), sum);
  } else {
    await_inputs();
  }
  allow_next();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    sum[0][r] = warp_sum(sum[0][r]);
    sum[1][r] = warp_sum(sum[1][r]);
  }
  if constexpr (kParts > 1) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (lane == 0) parts[warp][2 * r] = sum[0][r], parts[warp][2 * r + 1] = sum[1][r];
    }
    __syncthreads();
    if (part != 0) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int w = 1; w < kParts; ++w) {
        sum[0][r] += parts[warp + w][2 * r];
        sum[1][r] += parts[warp + w][2 * r + 1];
      }
    }
  }
  if (!exists || lane != 0) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (weight.bias != nullptr) sum[0][r] += load1(weight.bias, weight.bias_dtype, first);
    if (other.bias != nullptr) sum[1][r] += load1(other.bias, other.bias_dtype, second);
    const std::int64_t at = r * p.y_stride + y_offset + first;
    if (gated) {
      store1(p.y, p.y_dtype, at, activate(p.activation, sum[0][r]) * sum[1][r]);
      continue;
    }
    for (int n = 0; n <= second - first; ++n) {
      float v = activate(p.activation, sum[n][r]);
      if (p.epilogue == LinearEpilogue::kAccumulate) v += load1(p.y, p.y_dtype, at + n);
      store1(p.y, p.y_dtype, at + n, v);
    }
  }
}

template <typename T, int kParts>
void launch_parts(const LinearParams& p, std::int64_t outputs, cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(ceil_div(outputs, 2 * kWarps / kParts));
  const auto kernel = p.num_rows == 1 ? gemv_kernel<T, 1, kParts> : gemv_kernel<T, 2, kParts>;
  launch_dependent(kernel, dim3(grid), kWarps * 32, 0, stream, p);
}

template <typename T>
void launch(const LinearParams& p, cudaStream_t stream) {
  // Fewer outputs leave a processor too few warps to keep its share of the bandwidth busy.
  constexpr std::int64_t kFewOutputs = 4096;
  std::int64_t outputs = 0;
  for (int i = 0; i < p.num_weights; ++i) outputs += p.weights[i].out_features;
  outputs <= kFewOutputs ? launch_parts<T, 2>(p, outputs, stream)
                         : launch_parts<T, 1>(p, outputs, stream);
}

}  // namespace

bool gemv_serves(const LinearParams& p) {
  const int bits = dtype_bits(p.x_dtype);
  const std::int64_t vector = 128 / bits;
  bool serves = p.num_rows <= kMaxRows && p.in_features % vector == 0 && p.x_stride % vector == 0 &&
                reinterpret_cast<std::uintptr_t>(p.x) % 16 == 0;
  for (int i = 0; i < p.num_weights; ++i) {
    const LinearWeight& w = p.weights[i];
    // A warp's pair of outputs must not lie in two weights.
    const bool pairs =
        i + 1 == p.num_weights || p.epilogue == LinearEpilogue::kGated || w.out_features % 2 == 0;
    serves = serves && pairs && w.dtype == p.x_dtype && w.layout == WeightLayout::kOutIn &&
             reinterpret_cast<std::uintptr_t>(w.data) % 16 == 0;
  }
  return serves;
}

void launch_gemv(const LinearParams& p, cudaStream_t stream) {
  switch (p.x_dtype) {
    case DType::kBFloat16:
      launch<__nv_bfloat16>(p, stream);
      break;
    case DType::kFloat16:
      launch<__half>(p, stream);
      break;
    default:
      launch<float>(p, stream);
  }
}

}  // namespace pagedcore::cuda
