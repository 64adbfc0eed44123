#pragma once

#include <cstddef>

#include "cpp/backend/cpu/kernels/attention_tile.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

// Rows whose scores are held at a time.
inline constexpr int kScoreRows = 24;
inline constexpr std::int64_t round_up(std::int64_t n, std::int64_t step) {
  return (n + step - 1) / step * step;
}

// What every task of one call shares.
struct AttentionJob {
  const ForwardBatch& batch;
  const PagedAttentionParams& params;
  const AttentionPlan& plan;
  std::int64_t head_dim;
  int block_shift;  // log2 of block_size
  int group;        // query heads of a KV head
  int vectors;      // of a row of values
};

// One thread's arrays, carved from the workspace.
struct AttentionScratch {
  float* query;            // [rows][head_dim rounded up to vectors]; bfloat16 for pairs
  float* keys;             // [head_dim][kTile]
  float* values;           // [kTile][vectors * kLanes]
  float* scores;           // [kScoreRows][kTile]
  float* weights;          // [kScoreRows][kTile]
  float* part_values;      // [rows][vectors * kLanes]
  float* total_values;     // same
  float* part_largest;     // [rows]
  float* part_sum;         // [rows]
  float* total_largest;    // [rows]
  float* total_sum;        // [rows]
  std::int32_t* position;  // [rows] of each row's query

  static std::int64_t bytes(const AttentionJob& job) {
    const std::int64_t width = job.vectors * kLanes;
    const std::int64_t rows = round_up(job.plan.max_task_rows(), 16);
    return 4 * (3 * rows * width + 2 * kTile * width + 2 * kScoreRows * kTile + 5 * rows);
  }

  AttentionScratch(const AttentionJob& job, std::byte* memory) {
    const std::int64_t width = job.vectors * kLanes;
    const std::int64_t rows = round_up(job.plan.max_task_rows(), 16);
    auto* next = reinterpret_cast<float*>(memory);
    const auto take = [&](std::int64_t count) {
      float* taken = next;
      next += count;
      return taken;
    };
    query = take(rows * width);
    keys = take(kTile * width);
    values = take(kTile * width);
    scores = take(kScoreRows * kTile);
    weights = take(kScoreRows * kTile);
    part_values = take(rows * width);
    total_values = take(rows * width);
    part_largest = take(rows);
    part_sum = take(rows);
    total_largest = take(rows);
    total_sum = take(rows);
    position = reinterpret_cast<std::int32_t*>(take(rows));
  }
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
