#include "cuda/backend/step_stage.h"

#include <algorithm>
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

// Tokens, positions, slots and logit rows; four arrays of sequences; items; padding.
std::int64_t input_bytes(std::int64_t tokens, std::int64_t seqs) {
  return aligned16(tokens * 20) + aligned16(seqs * 16) +
         seqs * kMaxSplits * static_cast<std::int64_t>(sizeof(DecodeItem) + sizeof(DecodeMember)) +
         1024;
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
  }
  decodes_.reserve(seqs);
  shared_.reserve(seqs);
  items_.reserve(seqs * kMaxSplits);
  members_.reserve(seqs * kMaxSplits);
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

void StepStage::plan_attention(const ForwardBatch& host) {
  decodes_.clear();
  prefill_.clear();
  inputs_.prefill_lens.clear();
  std::int32_t num_slots = 0;
  for (std::int32_t s = 0; s < host.num_seqs; ++s) {
    const std::int32_t query_len = host.query_starts[s + 1] - host.query_starts[s];
    if (query_len > 1) {
      prefill_.push_back(s);
      inputs_.prefill_lens.push_back(query_len);
    } else if (query_len == 1) {
      const std::int32_t length = host.context_lens[s] + 1;
      const std::int32_t size = split_tokens(length);
      const std::int32_t num_splits = (length + size - 1) / size;
      decodes_.push_back(
          {host.query_starts[s], host.table_rows[s], length, size, num_slots, num_splits});
      num_slots += num_splits;
    }
  }
  plan_decode(host);
}

// Sequences whose tables begin with one block, and whose splits are of one size, may share more.
void StepStage::plan_decode(const ForwardBatch& host) {
  items_.clear();
  members_.clear();
  std::size_t num_long = 0;
  if (host.block_tables != nullptr && host.block_size > 0) {
    for (Decode& d : decodes_) {
      if (d.num_splits < 2) continue;
      d.first_block = host.block_tables[d.table_row * host.table_stride];
      ++num_long;
    }
  }
  if (num_long >= 2) {
    const auto key = [](const Decode& d) { return std::pair(d.first_block, d.size); };
    std::sort(decodes_.begin(), decodes_.end(), [&](const Decode& a, const Decode& b) {
      return std::pair(key(a), a.token) < std::pair(key(b), b.token);
    });
    for (std::size_t first = 0, i = 1; i <= decodes_.size(); ++i) {
      if (i < decodes_.size() && key(decodes_[i]) == key(decodes_[first])) continue;
      if (i - first >= 2 && decodes_[first].first_block >= 0) share_splits(host, first, i);
      first = i;
    }
  }
  for (const Decode& d : decodes_) {
    for (std::int32_t split = d.num_planned; split < d.num_splits; ++split) {
      items_.push_back({d.token, d.table_row, d.length, split, d.first_slot});
    }
  }
  // Members lie behind the items.
  constexpr std::size_t kMembersAnItem = sizeof(DecodeItem) / sizeof(DecodeMember);
  for (DecodeItem& item : items_) {
    item.first_member += static_cast<std::int32_t>(items_.size() * kMembersAnItem);
  }
}

void StepStage::share_splits(const ForwardBatch& host, std::size_t first, std::size_t end) {
  shared_.assign(end - first, 0);
  std::int32_t most = 0;
  for (std::size_t i = first; i + 1 < end; ++i) {
    const Decode &a = decodes_[i], &b = decodes_[i + 1];
    // The last split of each holds its own new token.
    const std::int32_t splits = std::min(a.num_splits, b.num_splits) - 1;
    const std::int32_t blocks = splits * a.size / host.block_size;
    const BlockId* entries = host.block_tables + a.table_row * host.table_stride;
    const BlockId* others = host.block_tables + b.table_row * host.table_stride;
    const auto same = std::mismatch(entries, entries + blocks, others).first - entries;
    shared_[i - first] = static_cast<std::int32_t>(same * host.block_size / a.size);
    most = std::max(most, shared_[i - first]);
  }
  for (std::int32_t split = 0; split < most; ++split) {
    for (std::size_t i = first; i < end;) {
      std::size_t next = i + 1;
      while (next < end && next - i < kMaxMembers && shared_[next - 1 - first] > split) ++next;
      const Decode& d = decodes_[i];
      if (split < d.num_splits) {
        DecodeItem item{d.token, d.table_row, d.length, split, d.first_slot};
        item.count = static_cast<std::int32_t>(next - i);
        item.first_member = static_cast<std::int32_t>(members_.size());
        for (std::size_t m = i; m < next && item.count > 1; ++m) {
          members_.push_back({decodes_[m].token, decodes_[m].length, decodes_[m].first_slot});
          item.length = std::min(item.length, decodes_[m].length);
        }
        items_.push_back(item);
      }
      i = next;
    }
  }
  for (std::size_t i = first; i < end; ++i) {
    decodes_[i].num_planned = std::min(most, decodes_[i].num_splits);
  }
}

ForwardBatch StepStage::stage(const ForwardBatch& host, cudaStream_t stream) {
  PAGEDCORE_CHECK(host.num_tokens <= max_tokens_ && host.num_seqs <= max_seqs_,
                  "reserve_steps() was called for fewer: ", host.num_tokens, " tokens, ",
                  host.num_seqs, " sequences");
  PAGEDCORE_CHECK(host.table_stride <= table_stride_, host.table_stride);
  update_tables(host, stream);
  plan_attention(host);

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
  const StepHeader header{host.num_tokens, host.num_seqs, static_cast<std::int32_t>(items_.size()),
                          static_cast<std::int32_t>(prefill_.size()),
                          members_.empty() ? 1 : kMaxMembers};
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
  inputs_.items = pack.add<DecodeItem>(items_.data(), header.num_items, header.num_items, {});
  pack.add<DecodeMember>(members_.data(), members_.size(), members_.size(), {});
  inputs_.num_items = header.num_items;
  PAGEDCORE_CHECK(pack.bytes() <= device_.bytes(), pack.bytes(), " of ", device_.bytes());
  inputs_ring_.submit(device_.as<char>(), pack.bytes(), stream);

  b.block_tables = tables_.as<BlockId>();
  b.table_stride = table_stride_;
  return b;
}

}  // namespace pagedcore::cuda
