#pragma once

#include <vector>

#include "cuda/backend/upload_ring.h"
#include "cuda/kernels/sample.h"
#include "pagedcore/sampling_ops.h"

namespace pagedcore::cuda {

// Runs the sampling kernel: brings the rows' parameters to the device and the tokens back.
class Sampler {
 public:
  static std::int64_t workspace_bytes(std::int64_t vocab_size, std::int32_t max_samples);

  // Waits for the result.
  void sample(const SampleParams& params, int num_sms, cudaStream_t stream);

 private:
  UploadRing ring_;
  std::vector<SampleTask> tasks_;
  std::vector<SeenToken> seen_;
  std::vector<LogitBias> bias_;
  std::vector<TokenId> allowed_, banned_;
  Scratch inputs_{Scratch::Kind::kDevice};
  Scratch outputs_{Scratch::Kind::kDevice};
  Scratch results_{Scratch::Kind::kPinned};
};

}  // namespace pagedcore::cuda
