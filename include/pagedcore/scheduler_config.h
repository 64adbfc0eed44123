#pragma once

#include <cstdint>

namespace pagedcore {

// How a group that must give way loses its KV: computed again, moved to host blocks, or whichever
// costs less by PreemptionCosts.
enum class PreemptionMode : std::int8_t { kRecompute, kSwap, kAuto };

// How many blocks an admission leaves for what already runs.
enum class HeadroomPolicy : std::int8_t {
  kWatermark,  // a fixed share of the pool
  kGrowth,     // a number of tokens for each running sequence, at most 1/16 of the pool
};

struct SchedulerConfig {
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 16;
  std::int32_t max_num_seqs = 256;  // sequences that run at once
  std::int32_t max_num_batched_tokens = 2048;
  std::int32_t max_model_len = 2048;
  bool enable_prefix_caching = true;
  std::int32_t num_host_blocks = 0;  // swap space
  PreemptionMode preemption_mode = PreemptionMode::kRecompute;
  bool tail_preemption = true;    // take only the blocks that are needed, where that suffices
  bool partial_admission = true;  // the last free blocks go to the next prompt's first tokens
  HeadroomPolicy headroom = HeadroomPolicy::kGrowth;
  double watermark = 0.01;            // kWatermark: of num_blocks
  std::int32_t headroom_tokens = 16;  // kGrowth: for each running sequence
  std::int32_t max_waiting = 0;       // 0: unbounded; else add() throws QueueFull beyond it
};

// Measured by the caller.
struct PreemptionCosts {
  double prefill_tokens_per_s = 0;
  double swap_blocks_per_s = 0;  // one way
};

}  // namespace pagedcore
