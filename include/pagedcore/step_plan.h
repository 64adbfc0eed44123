#pragma once

#include <cstdint>
#include <vector>

#include "pagedcore/types.h"

namespace pagedcore {

class Sequence;

// The tokens of one sequence that a step computes: [num_computed, num_computed + query_len).
struct Span {
  Sequence* sequence = nullptr;
  std::int32_t context_len = 0;  // == num_computed before the step
  std::int32_t query_len = 0;
  // Entries of the sequence's table from here on may differ from those at its last span.
  std::int32_t first_changed_block = 0;
  std::int32_t num_recomputed = 0;  // of the span's tokens: computed before, and lost since
  bool reaches_end = false;         // the span holds the sequence's last token: sample from it
  bool table_changed = true;        // first_changed_block tells of a change
  // One token, the last, never computed before, right behind the sequence's last span.
  bool is_plain_decode = false;
};

// What one step does, in this order: swap_out, swap_in, copies, forward over the spans. A step has
// moves in one of the two directions at most.
struct StepPlan {
  std::vector<BlockCopy> swap_out;  // src: device block, dst: host block
  std::vector<BlockCopy> swap_in;   // src: host block, dst: device block
  std::vector<BlockCopy> copies;    // copy-on-write and partial prefix hits; no dst is a src
  std::vector<Span> spans;
  std::int32_t num_tokens = 0;
  std::vector<RequestId> preempted;  // groups that lost blocks in this step
  // Groups that do not fit even when nothing else runs: the caller ends them.
  std::vector<RequestId> capacity_exceeded;
};

}  // namespace pagedcore
