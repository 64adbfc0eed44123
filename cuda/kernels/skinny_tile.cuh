#pragma once

#include <cuda.h>

#include <cstdint>

#include "pagedcore/ops.h"

namespace pagedcore::cuda {

struct SkinnyLinearArgs {
  LinearParams op;
  RopeAndCacheParams rope;  // of y, in whose place it writes query and cache; none: see `rotates`
  bool rotates = false;
  CUtensorMap x;           // boxes of [kTokens, 64]
  CUtensorMap weights[3];  // boxes of [64, 64]
  int num_slices = 2;      // of the inputs; thread blocks a cluster

  __device__ bool is_gated() const { return op.epilogue == LinearEpilogue::kGated; }
};

// What the two halves of SkinnyLinear share: the work of a thread block, and its shared memory.
template <int kTokens>
struct SkinnyTile {
  static constexpr int kWarps = 7;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kOutputs = 128;
  static constexpr int kHalf = 64 * 128;  // bytes of a stage's weights of 64 outputs
  static constexpr int kStageBytes = 2 * kHalf + kTokens * 128;
  static constexpr int kPitch = kOutputs + 4;  // of the sums; lanes write to different banks
  static constexpr int kSumBytes = kTokens * kPitch * static_cast<int>(sizeof(float));
  static constexpr int kMaxRows = kTokens / 2;  // that a block stores; there are two slices or more
  static constexpr int kYBytes = kMaxRows * kOutputs * static_cast<int>(sizeof(float));
  static constexpr int kStages = ((112 << 10) - kSumBytes - kYBytes) / kStageBytes;

  struct Shared {
    union {
      char stages[kStages][kStageBytes];
      float slice[kTokens][kPitch];  // then, this block's sums for the others
    };
    float sums[kTokens][kPitch];        // of the rows that it stores, those of slice 0 first
    float y[kMaxRows][kOutputs];        // where they are added to it
    float factors[kMaxRows];            // end the split norm of x, else 1
    std::int64_t cache_rows[kMaxRows];  // where their keys begin in the cache; -1: nowhere
    int positions[kMaxRows];
    std::uint64_t weights_full[kStages], x_full[kStages], empty[kStages];
    std::uint64_t complete;  // all that store() reads is there
  };

  struct Work {
    int weight;              // of the first 64 outputs
    int first;               // output of that weight
    int y_column;            // of the weight's first output
    int slice;               // of the inputs
    int first_row, rows;     // that this block stores
    int begin, size, shift;  // stages of inputs, and where this block begins among them
    __device__ int stage(int i) const {
      const int at = i + shift;
      return begin + (at < size ? at : at - size);
    }
  };

  __device__ static Work find_work(const SkinnyLinearArgs& args) {
    const LinearParams& p = args.op;
    const int outputs = args.is_gated() ? kOutputs / 2 : kOutputs;
    const int block = static_cast<int>(blockIdx.x) / args.num_slices;
    Work work{.first = block * outputs, .slice = static_cast<int>(blockIdx.x) % args.num_slices};
    while (!args.is_gated()) {
      const auto size = static_cast<int>(p.weights[work.weight].out_features);
      if (work.first < size) break;
      work.first -= (size + kOutputs - 1) / kOutputs * kOutputs;
      work.y_column += size;
      ++work.weight;
    }
    work.rows = kTokens / args.num_slices;
    work.first_row = work.slice * work.rows;
    const int stages = (static_cast<int>(p.in_features) + 63) / 64;
    work.begin = stages * work.slice / args.num_slices;
    work.size = stages * (work.slice + 1) / args.num_slices - work.begin;
    // Thread blocks that run in step read different parts of x.
    work.shift = block % max(work.size, 1);
    return work;
  }
};

}  // namespace pagedcore::cuda
