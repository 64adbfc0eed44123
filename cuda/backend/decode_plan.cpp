#include "cuda/backend/decode_plan.h"

#include <algorithm>
#include <utility>

namespace pagedcore::cuda {

void DecodePlan::reserve(std::int64_t max_seqs) {
  sequences_.reserve(max_seqs);
  common_.reserve(max_seqs);
  items_.reserve(max_seqs * kMaxSplits + 2 * kMaxSharedSplits);
  members_.reserve(kMaxSharedSplits);
}

// An item of several has two sequences at least, and each of its chains is an item.
std::int64_t DecodePlan::max_bytes(std::int64_t max_seqs) {
  static_assert(kChains <= 4);
  return (max_seqs * kMaxSplits + 2 * kMaxSharedSplits) * std::int64_t{sizeof(DecodeItem)} +
         kMaxSharedSplits * std::int64_t{sizeof(DecodeMember)};
}

std::int64_t DecodePlan::max_slots(std::int64_t max_seqs, std::int64_t max_splits) {
  const std::int64_t splits = max_seqs * max_splits;
  return splits + (kChains - 1) * std::min<std::int64_t>(splits, kMaxSharedSplits);
}

void DecodePlan::make(const ForwardBatch& host) {
  sequences_.clear();
  items_.clear();
  members_.clear();
  common_.clear();
  num_shared_ = 0;
  for (std::int32_t s = 0; s < host.num_seqs; ++s) {
    if (host.query_starts[s + 1] - host.query_starts[s] != 1) continue;
    const std::int32_t length = host.context_lens[s] + 1, size = split_tokens(length);
    sequences_.push_back(
        {host.query_starts[s], host.table_rows[s], length, size, (length + size - 1) / size});
  }
  common_.resize(sequences_.size(), 0);
  const bool sorted = sort_by_first_block(host);
  const auto key = [](const Sequence& s) { return std::pair(s.first_block, s.size); };
  const auto for_runs = [&](auto&& f) {
    for (std::size_t first = 0, i = 1; i <= sequences_.size(); ++i) {
      if (i < sequences_.size() && key(sequences_[i]) == key(sequences_[first])) continue;
      if (i - first >= 2 && sequences_[first].first_block >= 0) f(first, i);
      first = i;
    }
  };
  if (sorted) for_runs([&](std::size_t a, std::size_t b) { find_shared(host, a, b); });
  std::int32_t num_slots = 0;
  for (Sequence& s : sequences_) {
    s.first_slot =
        std::exchange(num_slots, num_slots + s.num_splits + (kChains - 1) * s.num_shared);
  }
  if (num_shared_ > 0) for_runs([&](std::size_t a, std::size_t b) { add_shared_items(a, b); });
  num_splits_ = static_cast<std::int32_t>(items_.size());
  for (const Sequence& s : sequences_) {
    num_splits_ += s.num_splits - s.num_shared;
    for (std::int32_t split = s.num_shared; split < s.num_splits;) {
      items_.push_back({s.token, s.table_row, s.length, split, s.first_slot, s.num_shared});
      split += split % kFold == 0 ? kFold : 1;
    }
  }
  // Members lie behind the items.
  constexpr std::size_t kMembersAnItem = sizeof(DecodeItem) / sizeof(DecodeMember);
  for (DecodeItem& item : items_) {
    item.first_member += static_cast<std::int32_t>(items_.size() * kMembersAnItem);
  }
}

// Sequences whose tables begin with one block, and whose splits are of one size, may share more.
bool DecodePlan::sort_by_first_block(const ForwardBatch& host) {
  if (host.block_tables == nullptr || host.block_size == 0) return false;
  int num_long = 0;
  for (Sequence& s : sequences_) {
    if (s.num_splits < 2) continue;
    s.first_block = host.block_tables[s.table_row * host.table_stride];
    ++num_long;
  }
  if (num_long < 2) return false;
  const auto key = [](const Sequence& s) { return std::pair(s.first_block, s.size); };
  std::sort(sequences_.begin(), sequences_.end(), [&](const Sequence& a, const Sequence& b) {
    return std::pair(key(a), a.token) < std::pair(key(b), b.token);
  });
  return true;
}

void DecodePlan::find_shared(const ForwardBatch& host, std::size_t first, std::size_t end) {
  for (std::size_t i = first; i + 1 < end; ++i) {
    Sequence &a = sequences_[i], &b = sequences_[i + 1];
    // The last split of each holds its own new token.
    const std::int32_t splits = std::min(a.num_splits, b.num_splits) - 1;
    const std::int32_t blocks = splits * a.size / host.block_size;
    const BlockId* entries = host.block_tables + a.table_row * host.table_stride;
    const BlockId* others = host.block_tables + b.table_row * host.table_stride;
    const auto same = std::mismatch(entries, entries + blocks, others).first - entries;
    const auto common = static_cast<std::int32_t>(same * host.block_size / a.size);
    const std::int32_t more = std::max(0, common - a.num_shared) + common;
    if (num_shared_ + more > kMaxSharedSplits) return;
    num_shared_ += more;
    common_[i] = common;
    a.num_shared = std::max(a.num_shared, common);
    b.num_shared = common;
  }
}

void DecodePlan::add_shared_items(std::size_t first, std::size_t end) {
  std::int32_t most = 0;
  for (std::size_t i = first; i < end; ++i) most = std::max(most, common_[i]);
  for (std::int32_t split = 0; split < most; ++split) {
    for (std::size_t i = first; i < end;) {
      std::size_t next = i + 1;
      while (next < end && common_[next - 1] > split) ++next;
      if (next - i >= 2) {
        // Items of about one size.
        const std::size_t num_items = (next - i + kMaxMembers - 1) / kMaxMembers;
        for (std::size_t n = 0; n < num_items; ++n) {
          const std::size_t begin = i + (next - i) * n / num_items;
          const std::size_t stop = i + (next - i) * (n + 1) / num_items;
          DecodeItem item{0, sequences_[begin].table_row, sequences_[begin].length};
          item.count = static_cast<std::int32_t>(stop - begin);
          item.first_member = static_cast<std::int32_t>(members_.size());
          for (std::size_t m = begin; m < stop; ++m) {
            const Sequence& s = sequences_[m];
            members_.push_back({s.token, s.length, s.first_slot});
            item.length = std::min(item.length, s.length);
          }
          for (item.part = split * kChains; item.part < (split + 1) * kChains; ++item.part) {
            items_.push_back(item);
          }
        }
      }
      i = next;
    }
  }
}

}  // namespace pagedcore::cuda
