#pragma once

#include <cstdint>

#include "cpp/engine/request_state.h"

namespace pagedcore {

// Where a step finds in its batch what it computes for whom.

// A sequence whose next tokens are sampled outside of the lanes.
struct SampleTarget {
  SequenceState* state;
  std::int32_t sample;  // the first one of its
  std::int32_t span;    // of the batch
};

// Tokens of a prompt whose logprobs are wanted.
struct PromptRows {
  RequestState* request;
  std::int32_t first_position;
  std::int32_t first_token;  // of the batch
  std::int32_t count;
};

}  // namespace pagedcore
