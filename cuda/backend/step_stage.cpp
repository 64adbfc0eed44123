#include "cuda/backend/step_stage.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "cuda/common/launch.h"
#include "cuda/kernels/kernels.h"
#include "pagedcore/error.h"

namespace pagedcore::cuda {
namespace {

constexpr std::int64_t kMaxUpdates = 16384;  // a pass

std::int64_t aligned16(std::int64_t bytes) { return ceil_div(bytes, 16) * 16; }

constexpr std::int64_t kUpdateBytes = kMaxUpdates * static_cast<std::int64_t>(sizeof(TableUpdate));

// Tokens, positions, slots and logit rows; four arrays of sequences; the plan; padding.
std::int64_t input_bytes(std::int64_t tokens, std::int64_t seqs) {
  return aligned16(tokens * 20) + aligned16(seqs * 16) + DecodePlan::max_bytes(seqs) + 1024;
}

std::int64_t table_bytes(std::int64_t seqs, std::int64_t table_stride) {
  return seqs * table_stride * static_cast<std::int64_t>(sizeof(BlockId));
}

// Lays arrays one behind the other, in pinned host memory and at the same offsets on the device.
class Packer {
 public:
  Packer(char* host, char* device) : host_(host), device_(device) {}

  // `count` elements of `from`, then `padded - count` of `fill`; gives the device's pointer.
  template <typename T>
  const T* add(const T* from, std::int64_t count, std::int64_t padded, T fill) {
    T* to = reinterpret_cast<T*>(host_ + bytes_);
    if (count > 0) std::memcpy(to, from, count * sizeof(T));
    std::fill(to + count, to + padded, fill);
    const T* result = reinterpret_cast<const T*>(device_ + bytes_);
    bytes_ += aligned16(padded * sizeof(T));
    return result;
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  char* host_;
  char* device_;
  std::int64_t bytes_ = 0;
};

}  // namespace

std::int32_t StepStage::padded_batch(std::int32_t n) {
  for (std::int32_t size : {1, 2, 4, 8}) {
    if (n <= size) return size;
  }
  const std::int32_t step = n <= 64 ? 8 : n <= 256 ? 16 : 64;
  return (n + step - 1) / step * step;
}

std::int64_t StepStage::device_bytes(const StepLimits& limits) {
  return input_bytes(limits.max_tokens, limits.max_seqs) + kUpdateBytes +
         table_bytes(limits.max_seqs, limits.table_stride);
}

void StepStage::reserve(const StepLimits& limits) {
  max_tokens_ = std::max(limits.max_tokens, max_tokens_);
  max_seqs_ = std::max(limits.max_seqs, max_seqs_);
  table_stride_ = std::max(limits.table_stride, table_stride_);
  const std::int64_t seqs = max_seqs_;
  device_.reserve(input_bytes(max_tokens_, seqs));
  updates_.reserve(kUpdateBytes);
  const std::int64_t bytes = table_bytes(seqs, table_stride_);
  if (bytes > tables_.bytes()) {
    tables_.reserve(bytes);
    PAGEDCORE_CUDA_CHECK(cudaMemset(tables_.as<char>(), 0, bytes));
    // Neither the host nor the steps' stream waits for that by itself.
    PAGEDCORE_CUDA_CHECK(cudaStreamSynchronize(cudaStreamLegacy));
  }
  decode_.reserve(seqs);
  prefill_.reserve(seqs);
  inputs_.prefill_lens.reserve(seqs);
}

void StepStage::update_tables(const ForwardBatch& host, cudaStream_t stream) {
  const auto total = static_cast<std::int64_t>(host.table_updates.size());
  for (std::int64_t first = 0; first < total; first += kMaxUpdates) {
    const std::int64_t count = std::min(kMaxUpdates, total - first);
    const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(TableUpdate));
    char* pinned = updates_ring_.begin(kUpdateBytes);
    std::memcpy(pinned, host.table_updates.data() + first, bytes);
    updates_ring_.submit(updates_.as<char>(), bytes, stream);
    launch_update_tables(tables_.as<BlockId>(), table_stride_, updates_.as<TableUpdate>(), count,
                         stream);
  }
}

ForwardBatch StepStage::stage(const ForwardBatch& host, const TokenId* samples,
                              cudaStream_t stream) {
  PAGEDCORE_CHECK(host.num_tokens <= max_tokens_ && host.num_seqs <= max_seqs_,
                  "reserve_steps() was called for fewer: ", host.num_tokens, " tokens, ",
                  host.num_seqs, " sequences");
  PAGEDCORE_CHECK(host.table_stride <= table_stride_, host.table_stride);
  update_tables(host, stream);
  decode_.make(host);
  prefill_.clear();
  inputs_.prefill_lens.clear();
  for (std::int32_t s = 0; s < host.num_seqs; ++s) {
    const std::int32_t query_len = host.query_starts[s + 1] - host.query_starts[s];
    if (query_len < 2) continue;
    prefill_.push_back(s);
    inputs_.prefill_lens.push_back(query_len);
  }

  const bool decode = host.max_query_len == 1 && host.num_seqs == host.num_tokens &&
                      host.num_logit_rows == host.num_tokens;
  ForwardBatch b = host;
  inputs_.padded = false;
  if (decode) {
    const std::int32_t limit = std::min(max_seqs_, max_tokens_);
    b.num_tokens = std::min(padded_batch(host.num_seqs), limit);
    b.num_seqs = b.num_logit_rows = b.num_tokens;
    inputs_.padded = true;
  }
  const auto& items = decode_.items();
  const auto& members = decode_.members();
  const StepHeader header{host.num_tokens, host.num_seqs, static_cast<std::int32_t>(items.size()),
                          static_cast<std::int32_t>(prefill_.size()), decode_.num_splits()};
  char* pinned = inputs_ring_.begin(device_.bytes());
  Packer pack(pinned, device_.as<char>());
  inputs_.header = pack.add(&header, 1, 1, {});
  b.tokens = pack.add(host.tokens, host.num_tokens, b.num_tokens, 0);
  b.positions = pack.add(host.positions, host.num_tokens, b.num_tokens, 0);
  b.slots = pack.add(host.slots, host.num_tokens, b.num_tokens, std::int64_t{-1});
  b.query_starts = pack.add(host.query_starts, host.num_seqs + 1, b.num_seqs + 1, host.num_tokens);
  b.context_lens = pack.add(host.context_lens, host.num_seqs, b.num_seqs, 0);
  b.table_rows = pack.add(host.table_rows, host.num_seqs, b.num_seqs, 0);
  b.logit_rows = pack.add(host.logit_rows, host.num_logit_rows, b.num_logit_rows, 0);
  inputs_.prefill =
      pack.add<std::int32_t>(prefill_.data(), header.num_prefill, header.num_prefill, 0);
  inputs_.items = pack.add<DecodeItem>(items.data(), header.num_items, header.num_items, {});
  pack.add<DecodeMember>(members.data(), members.size(), members.size(), {});
  inputs_.max_items = header.num_items;
  if (inputs_.padded)
    inputs_.max_items = std::bit_ceil(static_cast<std::uint32_t>(header.num_items));
  PAGEDCORE_CHECK(pack.bytes() <= device_.bytes(), pack.bytes(), " of ", device_.bytes());
  inputs_ring_.submit(device_.as<char>(), pack.bytes(), stream);
  if (host.follows_samples) {
    PAGEDCORE_CUDA_CHECK(cudaMemcpyAsync(const_cast<TokenId*>(b.tokens), samples,
                                         host.num_tokens * sizeof(TokenId),
                                         cudaMemcpyDeviceToDevice, stream));
  }

  b.block_tables = tables_.as<BlockId>();
  b.table_stride = table_stride_;
  return b;
}

}  // namespace pagedcore::cuda
