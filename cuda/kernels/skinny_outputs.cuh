#pragma once

#include "cuda/common/barrier.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/row_factor.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/skinny_tile.cuh"
#include "cuda/kernels/wgmma.cuh"

namespace pagedcore::cuda {

// What SkinnyLinear does with its sums: each thread block of a cluster adds the slices of some
// rows, in order, and stores what becomes of them.
template <int kTokens>
struct SkinnyOutputs : SkinnyTile<kTokens> {
  using Tile = SkinnyTile<kTokens>;
  using Work = typename Tile::Work;
  using Shared = typename Tile::Shared;
  using Tile::kOutputs;
  using Tile::kThreads;

  // One warp: where the rows' keys begin in the cache, -1 being nowhere, and their positions.
  __device__ static void find_rows(const SkinnyLinearArgs& args, const Work& work, Shared& s) {
    const RopeAndCacheParams& p = args.rope;
    const KvCacheView& cache = p.cache;
    const int lane = threadIdx.x % 32, row = work.first_row + lane;
    if (args.rotates && has_row(args, work)) {
      const int shift = __ffs(static_cast<int>(cache.block_size)) - 1;
      const std::int64_t slot = p.slots[row];
      s.cache_rows[lane] = slot < 0 ? slot
                                    : (slot >> shift) * cache.block_stride() +
                                          p.layer * cache.layer_stride() +
                                          (slot & (cache.block_size - 1)) * cache.head_dim;
      s.positions[lane] = p.cos_sin == nullptr ? 0 : p.positions[row];
    }
    __syncwarp();
  }
  __device__ static bool has_row(const SkinnyLinearArgs& args, const Work& work) {
    const int lane = threadIdx.x % 32;
    return lane < work.rows && work.first_row + lane < args.op.num_rows;
  }

  // The same warp, once the inputs are there: what else store() reads beside the sums.
  __device__ static void prepare(const SkinnyLinearArgs& args, const Work& work, Shared& s) {
    const LinearParams& p = args.op;
    const int lane = threadIdx.x % 32, row = work.first_row + lane;
    const bool adds = p.epilogue == LinearEpilogue::kAccumulate;
    const auto width = static_cast<int>(p.weights[work.weight].out_features) - work.first;
    const int bytes = min(kOutputs, width) * static_cast<int>(sizeof(float));
    const std::uint32_t complete = smem_address(&s.complete);
    if (has_row(args, work)) {
      if (adds) {
        const float* y = static_cast<const float*>(p.y) + row * p.y_stride;
        sm90::copy_bytes(smem_address(s.y[lane]), y + work.y_column + work.first, bytes, complete);
      }
      s.factors[lane] = row_factor({p.x_squares, p.in_features, p.x_epsilon}, row);
    }
    const int num_rows = __popc(__ballot_sync(0xffffffffu, has_row(args, work)));
    if (lane == 0) sm90::barrier_arrive_expecting(complete, adds ? num_rows * bytes : 0);
  }

  // Adds the slices of kVec outputs of one of this block's rows, in their order, and ends the split
  // norm of x.
  __device__ static void add_slices(const Shared& s, const Work& work, int row, int column,
                                    bool live, float (&v)[kVec]) {
#pragma unroll
    for (int j = 0; j < kVec; ++j) v[j] = 0.0f;
    if (!live) return;
#pragma unroll 2
    for (int at = row; at < kTokens; at += work.rows) {
      const float4* from = reinterpret_cast<const float4*>(&s.sums[at][column]);
      const float4 a = from[0], b = from[1];
      v[0] += a.x, v[1] += a.y, v[2] += a.z, v[3] += a.w;
      v[4] += b.x, v[5] += b.y, v[6] += b.z, v[7] += b.w;
    }
#pragma unroll
    for (int j = 0; j < kVec; ++j) v[j] *= s.factors[row];
  }

  __device__ static void add_bias(const LinearWeight& weight, int output, float (&v)[kVec]) {
    if (weight.bias == nullptr) return;
    float bias[kVec];
    load8(weight.bias, weight.bias_dtype, output, bias);
#pragma unroll
    for (int j = 0; j < kVec; ++j) v[j] += bias[j];
  }

  // The sum over `size` neighbouring lanes, a power of two; all of them call it.
  __device__ static float sum_lanes(float v, int size) {
    const int lane = threadIdx.x % 32;
    const unsigned lanes = (size == 32 ? ~0u : (1u << size) - 1) << lane / size * size;
    for (int d = size / 2; d > 0; d /= 2) v += __shfl_xor_sync(lanes, v, d);
    return v;
  }

  // Begins the split norm of y: kVec outputs of a row, all lanes of a row at once. `v` is zero
  // where there are no outputs.
  __device__ static void begin_norm(const LinearParams& p, const Work& work, int row, int column,
                                    const float (&v)[kVec], bool live) {
    static_assert(kOutputs == SplitNorm::kWidth);
    const std::int64_t outputs = p.weights[0].out_features, output = work.first + column;
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < kVec; ++j) squares += v[j] * v[j];
    squares = sum_lanes(squares, kOutputs / kVec);
    if (column == 0 && live) {
      p.norm.squares[row * ceil_div(outputs, kOutputs) + work.first / kOutputs] = squares;
    }
    if (output >= outputs) return;
    float scaled[kVec];
    load8(p.norm.weight, p.norm.weight_dtype, output, scaled);
#pragma unroll
    for (int j = 0; j < kVec; ++j) scaled[j] *= v[j];
    if (live) store8(p.norm.scaled, p.x_dtype, row * outputs + output, scaled);
  }

  // Outputs as LinearParams says, in vectors.
  __device__ static void store_linear(const SkinnyLinearArgs& args, const Work& work,
                                      const Shared& s, bool live) {
    const LinearParams& p = args.op;
    const bool gated = args.is_gated(), adds = p.epilogue == LinearEpilogue::kAccumulate;
    const int vectors = (gated ? kOutputs / 2 : kOutputs) / kVec;
    const LinearWeight& weight = p.weights[work.weight];
#pragma unroll 1
    for (int i = live ? threadIdx.x : threadIdx.x % 32; i < work.rows * vectors;
         i += live ? kThreads : kTokens * vectors) {
      const int of = i / vectors, row = work.first_row + of;
      const int column = i % vectors * kVec, output = work.first + column;
      if (row >= p.num_rows) break;
      float v[kVec] = {};
      if (output < weight.out_features) {
        const std::int64_t at = row * p.y_stride + work.y_column + output;
        float other[kVec] = {};
        if (adds && live) load8(s.y[of], DType::kFloat32, column, other);
        add_slices(s, work, of, column, live, v);
        add_bias(weight, output, v);
        if (gated) {
          add_slices(s, work, of, kOutputs / 2 + column, live, other);
          add_bias(p.weights[1], output, other);
        }
        activate(p.activation, v);
#pragma unroll
        for (int j = 0; j < kVec; ++j) v[j] = gated ? v[j] * other[j] : v[j] + other[j];
        if (live) store8(p.y, p.y_dtype, at, v);
      }
      if (p.norm.weight != nullptr) begin_norm(p, work, row, column, v, live);
    }
  }

  // Of a head of q or k, the lanes of a head at once: RMS norm, and rotation of the pairs a and b
  // of the first half's dimensions from `place` on.
  __device__ static void turn(const RopeAndCacheParams& p, const void* norm, int position, int low,
                              int high, bool turns, float (&a)[kVec], float (&b)[kVec]) {
    if (norm != nullptr) {
      float squares = 0.0f, of_a[kVec], of_b[kVec];
#pragma unroll
      for (int j = 0; j < kVec; ++j) squares += a[j] * a[j] + b[j] * b[j];
      const auto head_dim = static_cast<int>(p.cache.head_dim);
      squares = sum_lanes(squares, head_dim / (2 * kVec));
      const float inverse = 1.0f / sqrtf(squares / head_dim + p.epsilon);
      load8(norm, p.norm_dtype, low, of_a);
      load8(norm, p.norm_dtype, high, of_b);
#pragma unroll
      for (int j = 0; j < kVec; ++j) a[j] *= inverse * of_a[j], b[j] *= inverse * of_b[j];
    }
    if (!turns) return;
    const std::int64_t from = position * p.rotary_dim;
    float cosine[kVec], sine[kVec];
    load8(p.cos_sin, DType::kFloat32, from + low, cosine);
    load8(p.cos_sin, DType::kFloat32, from + high, sine);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float x = a[j], y = b[j];
      a[j] = x * cosine[j] - y * sine[j];
      b[j] = y * cosine[j] + x * sine[j];
    }
  }

  // Heads of q, k and v as RopeAndCacheParams says: kVec pairs of dimensions a thread.
  // Method: rotary embedding, Su et al. 2021, pairs (i, i + rotary_dim / 2).
  __device__ static void store_heads(const SkinnyLinearArgs& args, const Work& work,
                                     const Shared& s, bool live) {
    const RopeAndCacheParams& p = args.rope;
    const KvCacheView& cache = p.cache;
    const LinearWeight& weight = args.op.weights[work.weight];
    const auto head_dim = static_cast<int>(cache.head_dim);
    const auto num_heads = static_cast<int>(p.num_heads);
    const auto num_kv_heads = static_cast<int>(cache.num_kv_heads);
    const int turning = p.cos_sin == nullptr ? 0 : static_cast<int>(p.rotary_dim) / 2;
    constexpr int kVectors = kOutputs / (2 * kVec);
#pragma unroll 1
    for (int i = live ? threadIdx.x : threadIdx.x % 32; i < work.rows * kVectors;
         i += live ? kThreads : kTokens * kVectors) {
      const int of = i / kVectors, row = work.first_row + of;
      const int pair = i % kVectors * kVec, column = pair / (head_dim / 2) * head_dim;
      const int place = pair % (head_dim / 2), output = work.first + column;
      if (row >= args.op.num_rows || output >= weight.out_features) continue;
      const bool turns = place < turning;
      const int low = turns ? place : turning + place;
      const int high = turns ? turning + place : head_dim / 2 + place;
      float a[kVec], b[kVec];
      add_slices(s, work, of, column + low, live, a);
      add_slices(s, work, of, column + high, live, b);
      add_bias(weight, output + low, a);
      add_bias(weight, output + high, b);
      const int head = (work.y_column + output) / head_dim;
      const bool is_query = head < num_heads, is_value = head >= num_heads + num_kv_heads;
      if (!is_value)
        turn(p, is_query ? p.q_norm : p.k_norm, s.positions[of], low, high, turns, a, b);
      void* out = p.query;
      DType dtype = p.query_dtype;
      std::int64_t to = (std::int64_t{row} * num_heads + head) * head_dim;
      if (!is_query) {
        if (s.cache_rows[of] < 0) continue;
        out = cache.data;
        dtype = cache.dtype;
        to = s.cache_rows[of] + (is_value ? cache.kv_stride() : 0) +
             (head - num_heads) % num_kv_heads * cache.head_stride();
        const float factor = 1.0f / (is_value ? cache.v_scale : cache.k_scale);
#pragma unroll
        for (int j = 0; j < kVec; ++j) a[j] *= factor, b[j] *= factor;
      }
      if (!live) continue;
      store8_or_fp8(out, dtype, to + low, a);
      store8_or_fp8(out, dtype, to + high, b);
    }
  }

  // All threads. Not `live`: one warp, which stores nothing.
  __device__ static void store(const SkinnyLinearArgs& args, const Work& work, const Shared& s,
                               bool live) {
    args.rotates ? store_heads(args, work, s, live) : store_linear(args, work, s, live);
  }
};

}  // namespace pagedcore::cuda
