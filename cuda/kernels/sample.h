#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "pagedcore/sampling_ops.h"

namespace pagedcore::cuda {

// A range of one of the concatenated lists of SampleArgs.
struct Range {
  std::int32_t begin = 0, end = 0;
};

// A SampleRow on the device.
struct SampleTask {
  std::int32_t logit_row, top_k, num_top, given_token;
  float temperature, top_p, min_p;
  float repetition_penalty, presence_penalty, frequency_penalty;
  std::int64_t seed, position;
  Range seen, bias, allowed, banned;
};

struct SampleArgs {
  const float* logits;  // [.., vocab_size]
  std::int64_t vocab_size;
  std::int32_t num_samples;
  const SampleTask* tasks;  // [num_samples], pinned host memory
  const SeenToken* seen;
  const LogitBias* bias;
  const TokenId* allowed;
  const TokenId* banned;
  float* workspace;  // [num_slots, row_stride]
  std::int64_t row_stride;
  std::int32_t num_slots;  // thread blocks
  TokenId* device_tokens;  // [num_samples]
  // Pinned host memory:
  TokenId* tokens;      // [num_samples]
  float* logprobs;      // [num_samples]
  std::int32_t* ranks;  // [num_samples]
  std::int32_t max_top;
  TokenId* top_tokens;  // [num_samples, max_top]
  float* top_logprobs;  // [num_samples, max_top]
};

constexpr std::int32_t kMaxSortedTop = 2048;  // num_top and the top_k that is drawn from in order

void launch_sample(const SampleArgs& args, cudaStream_t stream);

}  // namespace pagedcore::cuda
