#pragma once

#include <cstdint>
#include <vector>

#include "cuda/backend/decode_plan.h"
#include "cuda/backend/upload_ring.h"
#include "cuda/common/plan.h"
#include "pagedcore/backend.h"
#include "pagedcore/forward_batch.h"

namespace pagedcore::cuda {

// What a step's attention is made of: where it lies on the device, and its sizes on the host.
struct StepInputs {
  const StepHeader* header = nullptr;
  const DecodeItem* items = nullptr;
  const std::int32_t* prefill = nullptr;  // sequences with more than one token
  std::int64_t max_items = 0;  // at least as many as there are; of a padded step, a power of two
  std::vector<std::int32_t> prefill_lens;  // query_len of each of `prefill`
  bool padded = false;  // a decode step, laid out and padded so that a graph of it can be replayed
};

// Brings batches to the device: one upload of everything that is new, and the block tables, which
// stay there and only take the changed entries. A decode step is padded to padded_batch(num_seqs)
// sequences; the rows beyond the real ones store nothing and attend to nothing.
class StepStage {
 public:
  explicit StepStage(Backend& backend) : device_(backend), updates_(backend), tables_(backend) {}

  // Device memory that reserve() takes at first.
  static std::int64_t device_bytes(const StepLimits& limits);
  void reserve(const StepLimits& limits);
  // `samples` are the tokens of a batch that follows_samples, on the device.
  ForwardBatch stage(const ForwardBatch& host, const TokenId* samples, cudaStream_t stream);

  const StepInputs& inputs() const { return inputs_; }
  std::int64_t max_seqs() const { return max_seqs_; }
  std::int64_t table_stride() const { return table_stride_; }

  // The batch sizes for which decode steps are recorded: 1, 2, 4, 8, then steps of 8 to 64, of 16
  // to 256, of 64 beyond.
  static std::int32_t padded_batch(std::int32_t num_seqs);

 private:
  void update_tables(const ForwardBatch& host, cudaStream_t stream);
  std::int32_t max_tokens_ = 0;
  std::int32_t max_seqs_ = 0;
  std::int64_t table_stride_ = 0;
  StepInputs inputs_;
  DecodePlan decode_;
  std::vector<std::int32_t> prefill_;
  UploadRing inputs_ring_, updates_ring_;
  Scratch device_, updates_, tables_;
};

}  // namespace pagedcore::cuda
