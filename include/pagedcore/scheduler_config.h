#pragma once

#include <cstdint>

#include "pagedcore/export.h"

namespace pagedcore {

// How a group that must give way loses its KV: computed again, moved to host blocks while there are
// any, or whichever costs less by PreemptionCosts.
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

// What PreemptionMode::kAuto goes by, measured by the caller; what is 0 is not known yet. A choice
// is priced by how long it holds up the other requests (Kwon et al. 2023, section 4.5):
//   swap       moves each block that is taken, shared ones once, out and back;
//   recompute  computes the tokens in blocks that the group alone holds; what other requests hold,
//              too, is found again, and the rest is taken for lost because blocks are short. Steps
//              that decode read all weights whatever they compute, so some tokens ride along free.
struct PAGEDCORE_API PreemptionCosts {
  double prefill_tokens_per_s = 0;  // of steps bound by arithmetic
  double swap_blocks_per_s = 0;     // one way
  double min_step_s = 0;            // of a step with hardly a token

  double swap_seconds(std::int32_t num_blocks) const;
  // `num_decoding` sequences share the step in which the tokens are computed again.
  double recompute_seconds(std::int64_t num_tokens, std::int32_t num_decoding) const;
};

}  // namespace pagedcore
