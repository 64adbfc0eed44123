#include "cuda/common/launch.cuh"
#include "cuda/common/row_factor.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/kernels.h"

namespace pagedcore::cuda {
namespace {

constexpr int kThreads = 256;

// One thread block per (token, kThreads * kVec columns): copies a row of the table.
__global__ void embed_kernel(const __grid_constant__ EmbedParams p, bool vec) {
  allow_next();
  await_inputs();
  const std::int64_t token = blockIdx.x;
  const std::int64_t column = (std::int64_t{blockIdx.y} * kThreads + threadIdx.x) * kVec;
  if (column >= p.width) return;
  const std::int64_t row = p.ids[token] + p.id_offset;
  float v[kVec];
  load_row(p.table, p.table_dtype, row, p.width, column, vec, v);
  if (p.accumulate) {
    float y[kVec];
    load_row(p.y, p.y_dtype, token, p.width, column, vec, y);
#pragma unroll
    for (int j = 0; j < kVec; ++j) v[j] += y[j];
  }
  store_row(p.y, p.y_dtype, token, p.width, column, vec, v);
}

// One thread a vector: y = activation(gate) * up.
__global__ void gated_activation_kernel(const __grid_constant__ GatedActivationParams p,
                                        const __grid_constant__ RowSquares squares, bool vec) {
  allow_next();
  await_inputs();
  const std::int64_t row = blockIdx.x;
  const std::int64_t column = (std::int64_t{blockIdx.y} * kThreads + threadIdx.x) * kVec;
  if (column >= p.width) return;
  float gate[kVec], up[kVec];
  load_row(p.gate_up, p.dtype, 2 * row, p.width, column, vec, gate);
  load_row(p.gate_up, p.dtype, 2 * row + 1, p.width, column, vec, up);
  const float factor = row_factor(squares, row);
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    gate[j] = activate(p.activation, gate[j] * factor) * (up[j] * factor);
  }
  store_row(p.y, p.y_dtype, row, p.width, column, vec, gate);
}

// One thread an element; the rows of y need not be dense.
__global__ void bias_activation_kernel(const __grid_constant__ BiasActivationParams p) {
  allow_next();
  await_inputs();
  const std::int64_t column = std::int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (column >= p.width) return;
  const std::int64_t i = blockIdx.x * p.y_stride + column;
  float v = p.keep_y ? load1(p.y, p.y_dtype, i) * row_factor(p.squares, blockIdx.x) : 0.0f;
  if (p.bias != nullptr) v += load1(p.bias, p.bias_dtype, column);
  store1(p.y, p.y_dtype, i, activate(p.activation, v));
}

__device__ float block_sum(float v, float* shared) {
  v = warp_sum(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < kThreads / 32; ++w) sum += shared[w];
  return sum;
}

constexpr int kCached = 4;  // vectors of a row that a thread keeps in registers

// One thread block per row. Rows of at most kCached vectors a thread are read once, and their
// weights before the row itself is there; wider rows are read two (RMS) or three times. Each row's
// sum has one order, whatever the number of rows.
__global__ void __launch_bounds__(kThreads)
    norm_kernel(const __grid_constant__ NormParams p, bool vec) {
  __shared__ float shared[kThreads / 32];
  allow_next();
  constexpr std::int64_t kStep = kThreads * kVec;
  const std::int64_t first = threadIdx.x * kVec;
  const bool cached = p.width <= kCached * kStep;
  float v[kCached][kVec], w[kVec] = {};
  const auto load_weight = [&](std::int64_t i) {
    if (p.weight != nullptr && i < p.width) {
      load_row(p.weight, p.weight_dtype, 0, p.width, i, vec, w);
    }
  };
  load_weight(first);
  await_inputs();
  const std::int64_t row = p.rows == nullptr ? blockIdx.x : p.rows[blockIdx.x];
  const auto load = [&](std::int64_t i, float (&to)[kVec]) {
    load_row(p.x, p.x_dtype, row, p.width, i, vec, to);
  };
#pragma unroll
  for (int n = 0; n < kCached; ++n) {
    if (cached && first + n * kStep < p.width) load(first + n * kStep, v[n]);
  }
  // Calls f(index, its vector) for each of the thread's vectors.
  const auto for_each = [&](auto&& f) {
    if (cached) {
#pragma unroll
      for (int n = 0; n < kCached; ++n) {
        if (first + n * kStep < p.width) f(first + n * kStep, v[n]);
      }
      return;
    }
    for (std::int64_t i = first; i < p.width; i += kStep) {
      load(i, v[0]);
      f(i, v[0]);
    }
  };
  float mean = 0.0f, inverse = 1.0f;
  if (p.kind == NormKind::kLayer) {
    float sum = 0.0f;
    for_each([&](std::int64_t, const float (&x)[kVec]) {
#pragma unroll
      for (int j = 0; j < kVec; ++j) sum += x[j];
    });
    mean = block_sum(sum, shared) / p.width;
  }
  if (p.kind != NormKind::kNone) {
    float squares = 0.0f;
    for_each([&](std::int64_t i, const float (&x)[kVec]) {
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const float d = i + j < p.width ? x[j] - mean : 0.0f;
        squares += d * d;
      }
    });
    inverse = 1.0f / sqrtf(block_sum(squares, shared) / p.width + p.epsilon);
  }
  for_each([&](std::int64_t i, float (&x)[kVec]) {
    float b[kVec];
    if (i != first) load_weight(i);
    if (p.bias != nullptr) load_row(p.bias, p.weight_dtype, 0, p.width, i, vec, b);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      x[j] = (x[j] - mean) * inverse;
      if (p.weight != nullptr) x[j] *= w[j];
      if (p.bias != nullptr) x[j] += b[j];
    }
    store_row(p.y, p.y_dtype, blockIdx.x, p.width, i, vec, x);
  });
}

dim3 grid_of(std::int64_t rows, std::int64_t columns, std::int64_t columns_a_block) {
  return dim3(static_cast<unsigned>(rows),
              static_cast<unsigned>(ceil_div(columns, columns_a_block)));
}

}  // namespace

void launch_embed(const EmbedParams& p, cudaStream_t stream) {
  const bool vec = rows_allow_vectors(p.table, p.width) && rows_allow_vectors(p.y, p.width);
  launch_dependent(embed_kernel, grid_of(p.num_tokens, p.width, kThreads * kVec), kThreads, 0,
                   stream, p, vec);
}

void launch_gated_activation(const GatedActivationParams& p, const RowSquares& squares,
                             cudaStream_t stream) {
  const bool vec = rows_allow_vectors(p.gate_up, p.width) && rows_allow_vectors(p.y, p.width);
  launch_dependent(gated_activation_kernel, grid_of(p.num_rows, p.width, kThreads * kVec), kThreads,
                   0, stream, p, squares, vec);
}

void launch_bias_activation(const BiasActivationParams& p, cudaStream_t stream) {
  launch_dependent(bias_activation_kernel, grid_of(p.num_rows, p.width, kThreads), kThreads, 0,
                   stream, p);
}

void launch_norm(const NormParams& p, cudaStream_t stream) {
  const bool vec = rows_allow_vectors(p.x, p.width) && rows_allow_vectors(p.y, p.width) &&
                   rows_allow_vectors(p.weight, p.width) && rows_allow_vectors(p.bias, p.width);
  launch_dependent(norm_kernel, dim3(static_cast<unsigned>(p.num_rows)), kThreads, 0, stream, p,
                   vec);
}

}  // namespace pagedcore::cuda
