#pragma once

#include <cstdint>

#include "cpp/engine/request_state.h"

namespace pagedcore {

// What a step needs of a sequence that goes on decoding as it did in the last step, side by side
// with those of the others: such a step reads neither its state nor its request. Lane i stands for
// span i of the last batch; where that one decodes otherwise, or has ended, `sequence` is null.
// Invariant: the span was token i of the batch and RequestState::decodes_plainly(), its sample was
// `sample`, and that is the sequence's last token.
struct DecodeLane {
  Sequence* sequence = nullptr;
  SequenceState* state = nullptr;
  std::uint64_t stop_filter = 0;  // bit t % 64 of each stop token t
  std::int32_t sample = 0;
  std::int32_t last_position = 0;  // where a token is the sequence's last, whichever it is
  std::int32_t update = -1;        // index of its last update; -1: none from this lane
  bool has_ended = false;          // those behind it move up in the next batch
};

}  // namespace pagedcore
