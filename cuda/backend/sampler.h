#pragma once

#include <array>
#include <vector>

#include "cuda/backend/resources.h"
#include "cuda/kernels/sample.h"
#include "pagedcore/sampling_ops.h"

namespace pagedcore::cuda {

// Runs the sampling kernel: brings the rows' parameters to the device and the tokens back. The
// kernel reads what every row has, and writes its results, in pinned host memory by itself: a copy
// before or behind it would take longer. Lists of tokens are copied.
class Sampler {
 public:
  explicit Sampler(Backend& backend);

  static std::int64_t workspace_bytes(std::int64_t vocab_size, std::int32_t max_samples);

  // Device memory for calls of up to `max_samples` rows without token lists.
  static std::int64_t device_bytes(std::int64_t max_samples);
  void reserve(std::int64_t max_samples);

  // Of two calls at most the results may be outstanding.
  void start(const SampleParams& params, int num_sms, cudaStream_t stream);
  // Waits for the results of the earliest call and takes them to its outputs.
  void finish();
  // [samples of the last call] on the device
  const TokenId* tokens() const { return tokens_.as<TokenId>(); }

 private:
  struct Call {
    PinnedScratch inputs, results;
    Event done;
    SampleOutputs outputs;
    std::int64_t num_samples = 0;
  };
  void pack(const SampleParams& params);

  std::array<Call, 2> calls_;
  int num_started_ = 0, next_ = 0;
  std::vector<SampleTask> tasks_;
  std::vector<SeenToken> seen_;
  std::vector<LogitBias> bias_;
  std::vector<TokenId> allowed_, banned_;
  Scratch lists_, tokens_;
};

}  // namespace pagedcore::cuda
