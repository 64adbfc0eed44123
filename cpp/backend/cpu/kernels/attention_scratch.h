#pragma once

#include <cstddef>

#include "cpp/backend/cpu/kernels/attention_few.h"
#include "cpp/backend/cpu/kernels/attention_panels.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr std::int64_t round_up(std::int64_t n, std::int64_t step) {
  return (n + step - 1) / step * step;
}

// Cuts memory, or nothing, into arrays at cache lines and counts their bytes.
struct ArrayCarver {
  std::byte* memory;
  std::int64_t bytes = 0;

  template <typename T>
  void take(T*& array, std::int64_t count) {
    array = reinterpret_cast<T*>(memory + bytes);
    bytes += round_up(count * sizeof(T), 64);
  }
};

// What every task of one call shares.
struct AttentionJob {
  const ForwardBatch& batch;
  const PagedAttentionParams& params;
  const AttentionPlan& plan;
  std::int64_t head_dim;
  std::int64_t width;        // head_dim rounded up to two vectors
  std::int64_t row_bytes;    // of one position's key or value in the cache
  std::int64_t block_bytes;  // of all layers
  int block_shift;           // log2 of block_size
  int group;                 // query heads of a KV head
};

// What the tasks of split units leave to the one that ends last.
struct AttentionPartials {
  std::int32_t* tasks_left;  // [units]
  float* largest;            // [partials]; minus infinity: none of the part's positions is seen
  float* sum;                // [partials]
  float* values;             // [partials][width]

  AttentionPartials(const AttentionJob& job, std::byte* memory) { lay_out(job, memory); }

  static std::int64_t bytes(const AttentionJob& job) {
    return AttentionPartials(job, nullptr).lay_out(job, nullptr);
  }

 private:
  std::int64_t lay_out(const AttentionJob& job, std::byte* memory) {
    ArrayCarver carver{memory};
    const std::int64_t partials = job.plan.num_partials();
    carver.take(tasks_left, job.plan.num_units());
    carver.take(largest, partials);
    carver.take(sum, partials);
    carver.take(values, partials * job.width);
    return carver.bytes;
  }
};

// One thread's arrays, carved from the workspace. Elements are those of words; `rows` are those of
// a task, rounded up to whole panels.
template <typename Element>
struct AttentionScratch {
  Element* query;          // [rows][width]
  float* part_values;      // [rows][width]
  float* total_values;     // same
  float* part_largest;     // [rows]
  float* part_sum;         // [rows]
  float* total_largest;    // [rows]
  float* total_sum;        // [rows]
  std::int32_t* position;  // [rows] of each row's query
  Element* keys;           // [kTile][width], of a cache that is not made of Elements
  Element* values;         // same
  Element* value_words;    // [kTile][width]
  Element* query_panels;   // [rows / kLanes][width][kLanes]
  float* value_panels;     // same
  float* panel_position;   // [rows]
  float* scores;           // [kMaxPanels][kTile][kLanes], or [kFewRows][kTile]
  Element* weights;        // same

  AttentionScratch(const AttentionJob& job, std::byte* memory) { lay_out(job, memory); }

  static std::int64_t bytes(const AttentionJob& job) {
    return AttentionScratch(job, nullptr).lay_out(job, nullptr);
  }

 private:
  std::int64_t lay_out(const AttentionJob& job, std::byte* memory) {
    const std::int64_t rows = round_up(job.plan.max_task_rows(), kLanes) + kLanes;
    ArrayCarver carver{memory};
    carver.take(query, rows * job.width);
    carver.take(part_values, rows * job.width);
    carver.take(total_values, rows * job.width);
    for (float** array : {&part_largest, &part_sum, &total_largest, &total_sum}) {
      carver.take(*array, rows);
    }
    carver.take(position, rows);
    carver.take(keys, kTile * job.width);
    carver.take(values, kTile * job.width);
    carver.take(value_words, kTile * job.width);
    carver.take(query_panels, rows * job.width);
    carver.take(value_panels, rows * job.width);
    carver.take(panel_position, rows);
    carver.take(scores, kMaxPanels * kTile * kLanes);
    carver.take(weights, kMaxPanels * kTile * kLanes);
    return carver.bytes;
  }
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
