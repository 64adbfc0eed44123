#pragma once

#include "cuda/common/barrier.cuh"
#include "cuda/common/cluster.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/kernels/skinny_outputs.cuh"
#include "cuda/kernels/wgmma.cuh"

namespace pagedcore::cuda {

// A linear layer of at most kTokens rows: y^T = W x^T on Hopper's tensor cores.
//
// Grid: (blocks of 128 outputs, or of 64 gates and the same 64 ups) * num_slices; the thread blocks
// of a cluster each take one slice of the inputs of the same outputs. Block: four warps that
// multiply, one that loads weights, one that loads x, one that prepares what the outputs need.
// Shared memory: Shared, at most half a processor's, so that the next product's weights arrive
// while this one ends. Weights and x come by tensor copies into a ring of stages of 64 inputs; the
// first weights are on their way before x is there. Each thread block of the cluster adds the
// slices of some rows, in order, and stores them (SkinnyOutputs): an output depends on its row of x
// and on num_slices alone.
template <typename T, int kTokens>
struct SkinnyLinear : SkinnyTile<kTokens> {
  using Tile = SkinnyTile<kTokens>;
  using Outputs = SkinnyOutputs<kTokens>;
  using Work = typename Tile::Work;
  using Shared = typename Tile::Shared;
  using Tile::kHalf;
  using Tile::kPitch;
  using Tile::kStages;
  static constexpr int kLoader = 4;  // first warp that loads
  static constexpr int kInFlight = 3;
  static constexpr int kRun = 8;  // stages that the tensor cores add up; they round sums down
  static constexpr int kSharedBytes = 1024 + sizeof(Shared);

  // Where a role is in the ring.
  struct Cursor {
    int index = 0, parity = 0;
    __device__ void next() {
      if (++index == kStages) index = 0, parity ^= 1;
    }
  };

  // One thread: loads the weights, with at most kInFlight stages under way: more would wait in
  // the memory's queues, and x behind them.
  __device__ static void load_weights(const SkinnyLinearArgs& args, const Work& work, Shared& s) {
    const bool gated = args.is_gated();
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

  // Four warps: multiply, and send the slice's sums to the thread blocks that store their rows.
  __device__ static void multiply(const SkinnyLinearArgs& args, const Work& work, Shared& s) {
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
    sync_multiplying();  // the sums take the stages' place
#pragma unroll
    for (int n = 0; n < kTokens / 8; ++n) {
      const int row = 8 * n + lane % 4 * 2;  // and the next, of the same block
      const bool stays = row >= work.first_row && row < work.first_row + work.rows;
      float* to = &(stays ? s.sums : s.slice)[row][warp * 16 + lane / 4];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        to[i % 2 * kPitch + i / 4 * 64 + i / 2 % 2 * 8] = sum[i / 4][4 * n + i % 4];
      }
    }
    sm90::proxy_fence();
    sync_multiplying();
    const auto to = static_cast<int>(threadIdx.x);
    if (to == work.slice) barrier_arrive(smem_address(&s.complete));
    if (to < args.num_slices && to != work.slice) send(work, s, to);
  }

  __device__ static void sync_multiplying() { asm volatile("bar.sync 1, 128;" ::: "memory"); }

  // Sends the sums of a block's rows to it.
  __device__ static void send(const Work& work, Shared& s, int to) {
    cluster_copy(cluster_address(smem_address(s.sums[work.first_row]), to),
                 smem_address(s.slice[to * work.rows]), work.rows * sizeof(s.slice[0]),
                 cluster_address(smem_address(&s.complete), to));
  }

  __device__ static void run(const SkinnyLinearArgs& args, char* raw) {
    Shared& s = *reinterpret_cast<Shared*>(raw + (1024 - smem_address(raw) % 1024) % 1024);
    const Work work = Tile::find_work(args);
    if (threadIdx.x == 32 * kLoader) {
      for (int i = 0; i < kStages; ++i) {
        barrier_init(smem_address(&s.weights_full[i]), 1);
        barrier_init(smem_address(&s.x_full[i]), 1);
        barrier_init(smem_address(&s.empty[i]), 4);
      }
      barrier_init(smem_address(&s.complete), 3);
      barrier_init_fence();
      sm90::barrier_arrive_expecting(smem_address(&s.complete),
                                     (kTokens - work.rows) * sizeof(s.sums[0]));
    }
    __syncthreads();
    cluster_arrive();
    const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
    const bool prepares = warp == Tile::kWarps - 1;
    if (warp != kLoader) cluster_wait();  // all blocks of the cluster have begun
    if (prepares) {
      Outputs::find_rows(args, work, s);
    } else if (warp >= kLoader) {
      if (threadIdx.x % 32 == 0) {
        warp == kLoader ? load_weights(args, work, s) : load_x(args, work, s);
      }
      __syncwarp();
    } else {
      multiply(args, work, s);
    }
    if (warp == kLoader) cluster_wait();  // not before the first weights were on their way
    // One warp goes through the motions of storing before, so that the code, its parameters and
    // the weights that it reads are in the caches.
#pragma unroll 1
    for (bool live = !prepares;; live = true) {
      if (live) {
        await_inputs();
        if (prepares) Outputs::prepare(args, work, s);
        barrier_wait(smem_address(&s.complete), 0);
        cluster_arrive();
      }
      Outputs::store(args, work, s, live);
      if (live) break;
    }
    cluster_wait();  // a thread block stays until the others have its sums
  }
};

}  // namespace pagedcore::cuda
