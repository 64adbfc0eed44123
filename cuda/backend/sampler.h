#pragma once

#include <vector>

#include "cuda/backend/upload_ring.h"
#include "cuda/kernels/sample.h"
#include "pagedcore/sampling_ops.h"

namespace pagedcore::cuda {

// Runs the sampling kernel: brings the rows' parameters to the device and the tokens back.
class Sampler {
 public:
  explicit Sampler(Backend& backend) : inputs_(backend) {}

  static std::int64_t workspace_bytes(std::int64_t vocab_size, std::int32_t max_samples);

  // Device memory for calls of up to `max_samples` rows without token lists.
  static std::int64_t device_bytes(std::int64_t max_samples);
  void reserve(std::int64_t max_samples);

  // Waits for the result.
  void sample(const SampleParams& params, int num_sms, cudaStream_t stream);

 private:
  UploadRing ring_;
  std::vector<SampleTask> tasks_;
  std::vector<SeenToken> seen_;
  std::vector<LogitBias> bias_;
  std::vector<TokenId> allowed_, banned_;
  Scratch inputs_;
  PinnedScratch results_;
};

}  // namespace pagedcore::cuda
