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

// The largest step that a Decoder's workspace has room for.
struct DecoderLimits {
  std::int32_t max_tokens = 0;
  std::int32_t max_logit_rows = 0;  // tokens of a step whose logits are wanted
  std::int32_t max_positions = 0;   // longest sequence; 0: max_position_embeddings
};

// One decoder-only transformer on one backend: batches of spans to logits. Written once against
// Backend and driven by ModelConfig. On a host backend the weights are used where they lie; else
// they are uploaded unchanged, and those that one linear op reads lie next to each other where
// their sizes are multiples of 256 bytes.
class PAGEDCORE_API Decoder {
 public:
  // Takes all memory that it will ever need. Throws InvalidArgument naming the field of `config`
  // that is wrong, or the tensor that is missing or has the wrong shape or dtype.
  Decoder(const ModelConfig& config, Weights weights, Backend& backend,
          const DecoderLimits& limits);
  ~Decoder();

  // Computes the spans of a staged batch: writes their K and V into the cache and gives the logits
  // of the first max_logit_rows of batch.logit_rows: [.., vocab_size] float32 in the backend's
  // memory, valid until the next call.
  const float* forward(const ForwardBatch& batch, const KvCacheView& cache);
  // The logits of `count` of batch.logit_rows from `first` on, of the batch last given to
  // forward().
  const float* logits(const ForwardBatch& batch, std::int32_t first, std::int32_t count);

  const ModelConfig& config() const;
  const DecoderLimits& limits() const;
  // Bytes that the constructor takes from the backend: workspace, and weights where they must be
  // copied to the device. Throws what the constructor throws.
  static std::int64_t workspace_bytes(const ModelConfig& config, const Weights& weights,
                                      const Backend& backend, const DecoderLimits& limits);
  // The one dtype of the layers' matrices; of the token embedding where these are quantised.
  // Throws what the constructor throws.
  static DType weight_dtype(const ModelConfig& config, const Weights& weights);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pagedcore
