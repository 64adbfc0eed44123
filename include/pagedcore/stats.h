#pragma once

#include <cstdint>
#include <vector>

#include "pagedcore/types.h"

namespace pagedcore {

// A snapshot of the engine's counters. Totals count since construction.
struct Stats {
  std::int32_t num_waiting = 0;    // requests
  std::int32_t num_running = 0;    // requests
  std::int32_t num_preempted = 0;  // requests that wait to resume
  std::int32_t num_held = 0;       // finished requests kept by hold

  std::int32_t num_blocks = 0;  // == used + cached + free
  std::int32_t used_blocks = 0;
  std::int32_t cached_blocks = 0;  // no owner, content findable
  std::int32_t free_blocks = 0;
  std::int32_t used_host_blocks = 0;

  std::int64_t total_slots = 0;     // == used + reserved + cached + free
  std::int64_t used_slots = 0;      // hold a token's KV of a live or held sequence
  std::int64_t reserved_slots = 0;  // in used blocks too, no token yet
  std::int64_t cached_slots = 0;    // in cached blocks
  std::int64_t free_slots = 0;      // in free blocks
  std::int64_t saved_slots = 0;     // further ones that sequences would need if none were shared

  std::int64_t num_steps = 0;
  std::int64_t num_requests = 0;
  std::int64_t num_prompt_tokens = 0;
  std::int64_t num_output_tokens = 0;
  std::int64_t num_computed_tokens = 0;
  // Prompt tokens of admitted requests, without those that fork() or load() brought, and how many
  // of these the prefix cache had.
  std::int64_t num_prefix_queried_tokens = 0;
  std::int64_t num_prefix_hit_tokens = 0;
  std::int64_t num_recomputed_tokens = 0;
  std::int64_t num_tail_preemptions = 0;  // took only the last blocks
  std::int64_t num_recompute_preemptions = 0;
  std::int64_t num_swap_preemptions = 0;
  std::int64_t num_copied_blocks = 0;
  std::int64_t num_swapped_out_blocks = 0;
  std::int64_t num_swapped_in_blocks = 0;

  // Microseconds: the last step's own work on the host, without forward pass, sampling kernels and
  // block moves; then the last step's and all steps' time in those. Work on the host while the
  // device computes is part of the latter.
  double step_host_us = 0.0;
  double step_device_us = 0.0;
  double total_host_us = 0.0;
  double total_device_us = 0.0;

  double waste() const {  // share of the used blocks' slots that hold no token
    const std::int64_t in_use = used_slots + reserved_slots;
    return in_use == 0 ? 0.0 : static_cast<double>(reserved_slots) / in_use;
  }
  double shared_savings() const {  // share of the slots of unshared sequences that sharing saves
    const std::int64_t unshared = saved_slots + used_slots + reserved_slots;
    return unshared == 0 ? 0.0 : static_cast<double>(saved_slots) / unshared;
  }
};

}  // namespace pagedcore
