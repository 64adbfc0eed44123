#pragma once

#include <cstdint>
#include <memory>

#include "pagedcore/backend.h"
#include "pagedcore/export.h"
#include "pagedcore/forward_batch.h"
#include "pagedcore/kv_cache.h"
#include "pagedcore/model_config.h"
#include "pagedcore/tensor.h"

namespace pagedcore {

// One decoder-only transformer on one backend: batches of spans to logits. Written once against
// Backend and driven by ModelConfig. On a host backend the weights are used where they lie.
class PAGEDCORE_API Decoder {
 public:
  // Takes workspace for steps of at most `max_tokens` tokens of which `max_logit_rows` are asked
  // for. Throws InvalidArgument naming the tensor that is missing or has the wrong shape or dtype.
  Decoder(const ModelConfig& config, Weights weights, Backend& backend, std::int32_t max_tokens,
          std::int32_t max_logit_rows);
  ~Decoder();

  // Computes the spans of a staged batch: writes their K and V into the cache and gives
  // [num_logit_rows, vocab_size] float32 logits in the backend's memory, valid until the next call.
  const float* forward(const ForwardBatch& batch, const KvCacheView& cache);

  const ModelConfig& config() const;

  // Bytes that the constructor takes from the backend: workspace, and weights where they must be
  // copied to the device.
  static std::int64_t workspace_bytes(const ModelConfig& config, DType weights, Backend& backend,
                                      std::int32_t max_tokens, std::int32_t max_logit_rows);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pagedcore
