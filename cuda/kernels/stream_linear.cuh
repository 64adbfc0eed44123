#pragma once

#include "cuda/common/bulk.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/kernels/kernels.h"

namespace pagedcore::cuda {

// What one launch shares out: the outputs to thread blocks, and the columns of a weight to
// `splits` of them, whose sums lie in `partial` until the last of them to arrive adds them in
// order.
struct StreamPlan {
  std::int32_t outputs = 0;  // of all weights; of one where gated
  int splits = 1;
  float* partial = nullptr;           // [splits, num_rows, outputs]
  std::uint32_t* arrivals = nullptr;  // [thread blocks / splits], zero between launches
};

// Linear of few rows on Hopper: every weight is read once, at the speed of memory.
//
// One thread block a processor takes an even share of the outputs, kPassRows weight rows ("a pass")
// at a time. A copying warp brings chunks of kChunk columns of these rows through a ring in shared
// memory; it starts before the kernel's input is there, so that the ring is full when the kernel
// before ends. Each of the other warps multiplies columns of its own of every chunk on the tensor
// cores, 16 weight rows by 8 rows of x; then the warps' sums are added in order.
// An output's sum has one order, whatever the number of rows up to kMaxRows.
// Gated: a group of 16 weight rows is 8 of the gate and the 8 of the up beside them.
template <typename T, int kTiles>  // of 8 rows of x
struct StreamLinear {
  static constexpr int kMaxRows = 8 * kTiles;
  static constexpr int kWarps = 8;  // that multiply
  static constexpr int kThreads = 32 * (kWarps + 1);
  static constexpr int kGroups = kTiles == 1 ? 2 : 4;  // of 16 weight rows, a pass
  static constexpr int kPassRows = 16 * kGroups;
  static constexpr int kSteps = kTiles == 1 ? 2 : 1;  // of 32 columns, a warp and chunk
  static constexpr int kWarpColumns = 32 * kSteps;
  static constexpr int kChunk = kWarps * kWarpColumns;
  static constexpr int kPitch = kChunk * 2 + 64;  // bytes; neighbours lie in different banks
  static constexpr int kStages = 3;
  static constexpr int kStageBytes = kPassRows * kPitch;
  static constexpr int kShared = kTiles == 1 ? 2 : 1;  // groups whose sums are added at once
  static constexpr int kSumBytes = kWarps * kShared * 128 * 4;
  static constexpr int kSharedBytes = kStages * kStageBytes + kSumBytes + 2 * kStages * 8;
  static_assert(2 * (kSharedBytes + 1024) <= 228 * 1024, "two kernels' rings lie side by side");

  const LinearParams& p;
  const StreamPlan& plan;
  std::int32_t first, end;      // units of 8 outputs
  std::int32_t k_first, k_end;  // columns
  std::int32_t split;
  std::uint32_t ring;
  float* sums;

  __device__ StreamLinear(const LinearParams& params, const StreamPlan& stream_plan, char* shared)
      : p(params), plan(stream_plan) {
    const std::int64_t units = (plan.outputs + 7) / 8;
    const std::int64_t share = blockIdx.x / plan.splits, shares = gridDim.x / plan.splits;
    first = static_cast<std::int32_t>(units * share / shares);
    end = static_cast<std::int32_t>(units * (share + 1) / shares);
    split = static_cast<std::int32_t>(blockIdx.x) % plan.splits;
    const std::int32_t columns = static_cast<std::int32_t>(p.in_features) / plan.splits;
    k_first = columns * split;
    k_end = k_first + columns;
    ring = smem_address(shared);
    sums = reinterpret_cast<float*>(shared + kStages * kStageBytes);
  }

  __device__ std::uint32_t full(int stage) const {
    return ring + kStages * kStageBytes + kSumBytes + 8 * stage;
  }
  __device__ std::uint32_t empty(int stage) const { return full(stage) + 8 * kStages; }
  __device__ bool gated() const { return p.epilogue == LinearEpilogue::kGated; }
  // Units a pass.
  __device__ std::int32_t step() const { return gated() ? kGroups : 2 * kGroups; }

  // A weight row of a pass: which weight it belongs to (-1: none), and its number there.
  struct WeightRow {
    std::int32_t weight = -1;
    std::int32_t row = 0;
    std::int32_t output = 0;
  };
  __device__ WeightRow find(std::int32_t unit, int place) const {
    WeightRow r;
    const std::int32_t its_unit = unit + (gated() ? place / 16 : place / 8);
    r.output = its_unit * 8 + place % 8;
    if (its_unit >= end || r.output >= plan.outputs) return r;
    r.row = r.output;
    if (gated()) {
      r.weight = place % 16 / 8;
      return r;
    }
    r.weight = 0;
    while (r.row >= p.weights[r.weight].out_features) {
      r.row -= static_cast<std::int32_t>(p.weights[r.weight++].out_features);
    }
    return r;
  }

  __device__ void copy() const {
    const int lane = threadIdx.x % 32;
    int tile = 0;
    for (std::int32_t unit = first; unit < end; unit += step()) {
      const T* from[kPassRows / 32];
      std::uint32_t num_rows = 0;
#pragma unroll
      for (int i = 0; i < kPassRows / 32; ++i) {
        const WeightRow r = find(unit, i * 32 + lane);
        from[i] = nullptr;
        if (r.weight >= 0) {
          from[i] = static_cast<const T*>(p.weights[r.weight].data) + r.row * p.in_features;
        }
        num_rows += __popc(__ballot_sync(0xffffffffu, r.weight >= 0));
      }
      for (std::int32_t k = k_first; k < k_end; k += kChunk, ++tile) {
        const int stage = tile % kStages;
        const auto bytes = static_cast<std::uint32_t>(min(k_end - k, kChunk) * 2);
        barrier_wait(empty(stage), tile / kStages % 2 ^ 1);
        if (lane == 0) barrier_arrive_expecting(full(stage), bytes * num_rows);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < kPassRows / 32; ++i) {
          const std::uint32_t to = ring + stage * kStageBytes + (i * 32 + lane) * kPitch;
          if (from[i] != nullptr) bulk_copy(to, from[i] + k, bytes, full(stage));
        }
      }
    }
  }

  __device__ static uint4 load_shared(std::uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
  }

  // Adds a chunk to the sums. Lane l brings columns 8 (l % 4) .. + 8 of every 32, of weight rows
  // l / 4 and l / 4 + 8 and of row l / 4 of x: both sides in the same order, so that it is a sum
  // over all columns.
  __device__ static void multiply(std::uint32_t stage, const uint4 (&x)[kSteps][kTiles],
                                  float (&sum)[kGroups][kTiles][4]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::uint32_t from = stage + lane / 4 * kPitch + warp * kWarpColumns * 2 + lane % 4 * 16;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const uint4 low = load_shared(from + g * 16 * kPitch + s * 64);
        const uint4 high = load_shared(from + (g * 16 + 8) * kPitch + s * 64);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          mma(sum[g][t], {low.x, high.x, low.y, high.y}, x[s][t].x, x[s][t].y, T{});
          mma(sum[g][t], {low.z, high.z, low.w, high.w}, x[s][t].z, x[s][t].w, T{});
        }
      }
    }
  }

  __device__ void compute() const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int column = warp * kWarpColumns + lane % 4 * 8;
    std::int32_t x_rows[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const auto row = min(t * 8 + lane / 4, static_cast<std::int32_t>(p.num_rows) - 1);
      x_rows[t] = row * static_cast<std::int32_t>(p.x_stride) + column;
    }
    uint4 x[kSteps][kTiles];
    // Before the chunk's weights are waited for.
    const auto load_x = [&](std::int32_t k) {
      if (k + warp * kWarpColumns >= k_end) return;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const T* from = static_cast<const T*>(p.x) + (x_rows[t] + k + s * 32);
          x[s][t] = __ldcg(reinterpret_cast<const uint4*>(from));
        }
      }
    };
    int tile = 0;
    for (std::int32_t unit = first; unit < end; unit += step()) {
      float sum[kGroups][kTiles][4] = {};
      for (std::int32_t k = k_first; k < k_end; k += kChunk, ++tile) {
        load_x(k);
        const int stage = tile % kStages;
        barrier_wait(full(stage), tile / kStages % 2);
        if (k + warp * kWarpColumns < k_end) multiply(ring + stage * kStageBytes, x, sum);
        __syncwarp();
        if (lane == 0) barrier_arrive(empty(stage));
      }
#pragma unroll
      for (int g = 0; g < kGroups; g += kShared) {
        if (find(unit, g * 16).weight < 0) break;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          share_sums(sum, g, t);
          store(unit, g, t);
        }
      }
    }
    if (plan.splits > 1) merge_splits();
  }

  __device__ static void sync_warps() {
    asm volatile("bar.sync 1, %0;" ::"n"(32 * kWarps) : "memory");
  }

  // Leaves the sums of kShared groups and a tile in shared memory, [warp][group][x row][row].
  __device__ void share_sums(const float (&sum)[kGroups][kTiles][4], int group, int tile) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    sync_warps();  // the last ones are read
#pragma unroll
    for (int g = 0; g < kShared; ++g) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int row = lane / 4 + c / 2 * 8, x_row = lane % 4 * 2 + c % 2;
        sums[((warp * kShared + g) * 8 + x_row) * 16 + row] = sum[group + g][tile][c];
      }
    }
    sync_warps();
  }

  __device__ float with_bias(float v, std::int32_t weight, std::int64_t row) const {
    const LinearWeight& w = p.weights[weight];
    return w.bias == nullptr ? v : v + load1(w.bias, w.bias_dtype, row);
  }

  __device__ void store_output(std::int32_t x_row, std::int32_t output, float v) const {
    const std::int64_t at = x_row * p.y_stride + output;
    if (p.epilogue == LinearEpilogue::kAccumulate) v += load1(p.y, p.y_dtype, at);
    store1(p.y, p.y_dtype, at, v);
  }

  // One thread a row of x and a weight row.
  __device__ void store(std::int32_t unit, int group, int tile) const {
    if (threadIdx.x >= kShared * 128) return;
    const int row = threadIdx.x % 16, its_group = threadIdx.x / 128;
    const int in_tile = threadIdx.x / 16 % 8;
    const std::int32_t x_row = tile * 8 + in_tile;
    if (x_row >= p.num_rows || (gated() && row >= 8)) return;
    const WeightRow r = find(unit, (group + its_group) * 16 + row);
    if (r.weight < 0) return;
    const auto total = [&](int place) {
      float v = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        v += sums[((w * kShared + its_group) * 8 + in_tile) * 16 + place];
      }
      return v;
    };
    if (plan.splits > 1) {
      plan.partial[(split * p.num_rows + x_row) * plan.outputs + r.output] = total(row);
      return;
    }
    float v = activate(p.activation, with_bias(total(row), r.weight, r.row));
    if (gated()) v *= with_bias(total(row + 8), 1, r.row);
    store_output(x_row, r.output, v);
  }

  // The last of the splits of these outputs to arrive adds them, in the order of the splits.
  __device__ void merge_splits() const {
    std::uint32_t* arrivals = plan.arrivals + blockIdx.x / plan.splits;
    std::uint32_t* shared_before = reinterpret_cast<std::uint32_t*>(sums);
    sync_warps();
    if (threadIdx.x == 0) {
      // Releases what the thread block wrote and acquires what the others did.
      std::uint32_t before;
      asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                   : "=r"(before)
                   : "l"(arrivals)
                   : "memory");
      if (before + 1 == static_cast<std::uint32_t>(plan.splits)) *arrivals = 0;
      *shared_before = before;
    }
    sync_warps();
    if (*shared_before + 1 != static_cast<std::uint32_t>(plan.splits)) return;
    const std::int32_t begin = first * 8;
    const std::int32_t width = min(end * 8, plan.outputs) - begin;
    for (std::int32_t i = threadIdx.x; i < width * p.num_rows; i += 32 * kWarps) {
      const std::int32_t x_row = i / width, output = begin + i % width;
      float v = 0.0f;
      for (int s = 0; s < plan.splits; ++s) {
        v += __ldcg(plan.partial + (s * p.num_rows + x_row) * plan.outputs + output);
      }
      std::int64_t row = output;
      std::int32_t weight = 0;
      while (row >= p.weights[weight].out_features) row -= p.weights[weight++].out_features;
      store_output(x_row, output, activate(p.activation, with_bias(v, weight, row)));
    }
  }

  __device__ void run() const {
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < kStages; ++stage) {
        barrier_init(full(stage), 1);
        barrier_init(empty(stage), kWarps);
      }
      barrier_init_fence();
    }
    __syncthreads();
    allow_next();
    if (threadIdx.x / 32 == kWarps) return copy();
    await_inputs();
    compute();
  }
};

}  // namespace pagedcore::cuda
