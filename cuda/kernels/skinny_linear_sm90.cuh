#pragma once

#include <cuda.h>

#include "cuda/common/cluster.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/common/vec.cuh"
#include "cuda/kernels/wgmma.cuh"
#include "pagedcore/ops.h"

namespace pagedcore::cuda {

struct SkinnyLinearArgs {
  LinearParams op;
  CUtensorMap x;           // boxes of [kTokens, 64]
  CUtensorMap weights[3];  // boxes of [64, 64]
  int num_slices = 1;      // of the inputs; thread blocks a cluster
};

// A linear layer of at most kTokens rows: y^T = W x^T on Hopper's tensor cores.
//
// Grid: (blocks of 128 outputs, or of 64 gates and the same 64 ups) * num_slices; the thread blocks
// of a cluster each take one slice of the inputs of the same outputs. Block: four warps that
// multiply, one that loads weights, one that loads x. Shared memory: Shared, at most half a
// processor's, so that the next product's weights arrive while this one ends.
// Weights and x come by tensor copies into a ring of stages of 64 inputs; the first weights are on
// their way before x is there. Each thread block of the cluster adds the slices of some rows, in
// order, and stores them: an output depends on its row of x and on num_slices alone.
template <typename T, int kTokens>
struct SkinnyLinear {
  static constexpr int kWarps = 6;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kLoader = 4;  // first warp that loads
  static constexpr int kOutputs = 128;
  static constexpr int kMaxSlices = 8;
  static constexpr int kHalf = 64 * 128;  // bytes of a stage's weights of 64 outputs
  static constexpr int kStageBytes = 2 * kHalf + kTokens * 128;
  static constexpr int kStages = (111 << 10) / kStageBytes;
  static constexpr int kPitch = kOutputs + 4;  // of the sums; lanes write to different banks
  static constexpr int kInFlight = 3;
  static constexpr int kRun = 8;  // stages that the tensor cores add up; they round sums down

  struct Shared {
    union {
      char stages[kStages][kStageBytes];
      float sums[kTokens][kPitch];
    };
    std::uint64_t weights_full[kStages], x_full[kStages], empty[kStages];
  };
  static constexpr int kSharedBytes = 1024 + sizeof(Shared);

  // Where a role is in the ring.
  struct Cursor {
    int index = 0, parity = 0;
    __device__ void next() {
      if (++index == kStages) index = 0, parity ^= 1;
    }
  };

  struct Work {
    int weight;              // of the first 64 outputs
    int first;               // output of that weight
    int y_column;            // of the weight's first output
    int begin, size, shift;  // stages of inputs, and where this block begins among them
    __device__ int stage(int i) const {
      const int at = i + shift;
      return begin + (at < size ? at : at - size);
    }
  };

  __device__ static bool is_gated(const SkinnyLinearArgs& args) {
    return args.op.epilogue == LinearEpilogue::kGated;
  }

  __device__ static Work find_work(const SkinnyLinearArgs& args) {
    const LinearParams& p = args.op;
    const int outputs = is_gated(args) ? kOutputs / 2 : kOutputs;
    const int block = static_cast<int>(blockIdx.x) / args.num_slices;
    const int slice = static_cast<int>(blockIdx.x) % args.num_slices;
    Work work{.first = block * outputs};
    while (!is_gated(args)) {
      const auto size = static_cast<int>(p.weights[work.weight].out_features);
      if (work.first < size) break;
      work.first -= static_cast<int>(ceil_div(size, outputs)) * outputs;
      work.y_column += size;
      ++work.weight;
    }
    const int stages = static_cast<int>(ceil_div(p.in_features, 64));
    work.begin = stages * slice / args.num_slices;
    work.size = stages * (slice + 1) / args.num_slices - work.begin;
    // Thread blocks that run in step read different parts of x.
    work.shift = block % work.size;
    return work;
  }

  // One thread: loads the weights, with at most kInFlight stages under way: more would wait in
  // the memory's queues, and x behind them.
  __device__ static void load_weights(const SkinnyLinearArgs& args, const Work& work, Shared& s) {
    const bool gated = is_gated(args);
    const CUtensorMap& map = args.weights[work.weight];
    const CUtensorMap& other = gated ? args.weights[1] : map;
    const int second = gated ? work.first : work.first + 64;
    Cursor at, arrived;
    for (int i = 0; i < work.size; ++i, at.next()) {
      const std::uint32_t to = smem_address(s.stages[at.index]);
      const std::uint32_t full = smem_address(&s.weights_full[at.index]);
      if (i >= kInFlight) {
        barrier_wait(smem_address(&s.weights_full[arrived.index]), arrived.parity);
        arrived.next();
      }
      barrier_wait(smem_address(&s.empty[at.index]), at.parity ^ 1);
      sm90::barrier_arrive_expecting(full, 2 * kHalf);
      sm90::copy_box(to, map, work.stage(i) * 64, work.first, full);
      sm90::copy_box(to + kHalf, other, work.stage(i) * 64, second, full);
    }
    allow_next();
  }

  // One thread: loads x once it is there.
  __device__ static void load_x(const SkinnyLinearArgs& args, const Work& work, Shared& s) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&args.x) : "memory");
    await_inputs();
    Cursor at;
    for (int i = 0; i < work.size; ++i, at.next()) {
      const std::uint32_t full = smem_address(&s.x_full[at.index]);
      barrier_wait(smem_address(&s.empty[at.index]), at.parity ^ 1);
      sm90::barrier_arrive_expecting(full, kTokens * 128);
      sm90::copy_box(smem_address(s.stages[at.index]) + 2 * kHalf, args.x, work.stage(i) * 64, 0,
                     full);
    }
  }

  // Four warps: multiply, and leave the slice's sums in shared memory.
  __device__ static void multiply(const Work& work, Shared& s) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float part[2][kTokens / 2], sum[2][kTokens / 2] = {};
    Cursor at;
    for (int first = 0; first < work.size; first += kRun) {
      const int size = min(kRun, work.size - first);
      int last = 0;
      for (int i = 0; i < size; ++i, at.next()) {
        barrier_wait(smem_address(&s.x_full[at.index]), at.parity);
        barrier_wait(smem_address(&s.weights_full[at.index]), at.parity);
        const std::uint32_t weights = smem_address(s.stages[at.index]), x = weights + 2 * kHalf;
        sm90::mma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const std::uint64_t b = sm90::describe(x + k * 32, 16);
          const bool add = i > 0 || k > 0;
          sm90::mma_shared(part[0], sm90::describe(weights + k * 32, 16), b, add, T{});
          sm90::mma_shared(part[1], sm90::describe(weights + kHalf + k * 32, 16), b, add, T{});
        }
        sm90::mma_commit();
        sm90::mma_wait<1>();
        if (i > 0 && lane == 0) barrier_arrive(smem_address(&s.empty[last]));
        last = at.index;
      }
      sm90::mma_wait<0>();
      if (lane == 0) barrier_arrive(smem_address(&s.empty[last]));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) sum[half][i] += part[half][i];
      }
    }
    asm volatile("bar.sync 1, 128;" ::: "memory");  // the sums take the stages' place
    float* to = &s.sums[lane % 4 * 2][warp * 16 + lane / 4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) {
        to[(i / 4 * 8 + i % 2) * kPitch + half * 64 + i / 2 % 2 * 8] = sum[half][i];
      }
    }
  }

  // Adds the slices of kVec outputs of a row, in their order.
  __device__ static void add_slices(const float* sums, int num_slices, float (&v)[kVec]) {
    float4 part[kMaxSlices][2];
    const std::uint32_t from = smem_address(sums);
#pragma unroll
    for (int i = 0; i < kMaxSlices; ++i) {
      if (i >= num_slices) continue;
      part[i][0] = load_cluster4(from, i);
      part[i][1] = load_cluster4(from + 16, i);
    }
#pragma unroll
    for (int i = 0; i < kMaxSlices; ++i) {
      if (i >= num_slices) continue;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const float x = reinterpret_cast<const float*>(part[i])[j];
        v[j] = i == 0 ? x : v[j] + x;
      }
    }
  }

  __device__ static void add_bias(const LinearWeight& weight, int output, float (&v)[kVec]) {
    if (weight.bias == nullptr) return;
    float bias[kVec];
    load8(weight.bias, weight.bias_dtype, output, bias);
#pragma unroll
    for (int j = 0; j < kVec; ++j) v[j] += bias[j];
  }

  // All threads: this thread block's rows of y, every num_slices'th, in vectors.
  __device__ static void store(const SkinnyLinearArgs& args, const Work& work, const Shared& s) {
    const LinearParams& p = args.op;
    const bool gated = is_gated(args), adds = p.epilogue == LinearEpilogue::kAccumulate;
    const int vectors = (gated ? kOutputs / 2 : kOutputs) / kVec;
    const int slice = static_cast<int>(blockIdx.x) % args.num_slices;
    const LinearWeight& weight = p.weights[work.weight];
#pragma unroll 1
    for (int i = threadIdx.x; i < kTokens * vectors; i += kThreads) {
      const int row = slice + i / vectors * args.num_slices, column = i % vectors * kVec;
      const int output = work.first + column;
      if (row >= p.num_rows) break;
      if (output >= weight.out_features) continue;
      const std::int64_t at = row * p.y_stride + work.y_column + output;
      float v[kVec], other[kVec] = {};
      if (adds) load8(p.y, p.y_dtype, at, other);
      add_slices(&s.sums[row][column], args.num_slices, v);
      add_bias(weight, output, v);
      if (gated) {
        add_slices(&s.sums[row][kOutputs / 2 + column], args.num_slices, other);
        add_bias(p.weights[1], output, other);
      }
      activate(p.activation, v);
#pragma unroll
      for (int j = 0; j < kVec; ++j) v[j] = gated ? v[j] * other[j] : v[j] + other[j];
      store8(p.y, p.y_dtype, at, v);
    }
  }

  __device__ static void run(const SkinnyLinearArgs& args, char* raw) {
    Shared& s = *reinterpret_cast<Shared*>(raw + (1024 - smem_address(raw) % 1024) % 1024);
    const Work work = find_work(args);
    if (threadIdx.x == 32 * kLoader) {
      for (int i = 0; i < kStages; ++i) {
        barrier_init(smem_address(&s.weights_full[i]), 1);
        barrier_init(smem_address(&s.x_full[i]), 1);
        barrier_init(smem_address(&s.empty[i]), 4);
      }
      barrier_init_fence();
    }
    __syncthreads();
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
    if (warp >= kLoader) {
      if (threadIdx.x % 32 == 0) {
        warp == kLoader ? load_weights(args, work, s) : load_x(args, work, s);
      }
      __syncwarp();
    } else {
      multiply(work, s);
    }
    await_inputs();
    if (args.num_slices == 1) {
      __syncthreads();
      return store(args, work, s);
    }
    cluster_sync();
    store(args, work, s);
    cluster_sync();  // a thread block stays until the others have read its sums
  }
};

}  // namespace pagedcore::cuda
