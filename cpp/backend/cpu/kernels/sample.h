#pragma once

#include <cstdint>

namespace pagedcore::cpu {

// A row of logits is read in blocks of this many; each keeps one maximum a
// vector lane and one sum.
inline constexpr std::int64_t kMaxSampleLanes = 16;
inline constexpr std::int64_t kSampleBlock = 256;

inline constexpr std::int64_t num_sample_blocks(std::int64_t vocab_size) {
  return (vocab_size + kSampleBlock - 1) / kSampleBlock;
}

// Workspace of one thread: a row of weights, as many (value, id) candidates, a maximum a lane of
// each block twice (kept, and selected from), a sum a block. A multiple of 64 bytes.
inline constexpr std::int64_t sample_workspace_bytes_per_thread(std::int64_t vocab_size) {
  const std::int64_t blocks = num_sample_blocks(vocab_size);
  return (kSampleBlock * 3 + kMaxSampleLanes * 3) * blocks * 4;
}

}  // namespace pagedcore::cpu
