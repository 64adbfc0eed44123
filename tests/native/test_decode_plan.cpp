// The work list of CUDA's decode attention, which is made on the host: every part of every sequence
// is in it once, and what sequences hold in the same blocks is theirs together.
#include "cuda/backend/decode_plan.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/native/check.h"

namespace {

using namespace pagedcore;
using namespace pagedcore::cuda;

constexpr std::int32_t kBlockSize = 16, kTableStride = 300;

// Sequences with one token, of which each holds its first `shared` tokens in a family's blocks.
struct Batch {
  std::vector<std::int32_t> query_starts{0}, context_lens, table_rows;
  std::vector<BlockId> tables;
  BlockId next_block = 1'000'000;

  void add(std::int32_t length, std::int32_t family, std::int32_t shared) {
    query_starts.push_back(query_starts.back() + 1);
    table_rows.push_back(static_cast<std::int32_t>(table_rows.size()));
    context_lens.push_back(length - 1);
    for (std::int32_t i = 0; i < kTableStride; ++i) {
      const bool common = (i + 1) * kBlockSize <= shared;
      tables.push_back(common ? family * kTableStride + i : next_block++);
    }
  }
  std::int32_t size() const { return static_cast<std::int32_t>(context_lens.size()); }
  ForwardBatch view() const {
    ForwardBatch b;
    b.num_seqs = b.num_tokens = size();
    b.query_starts = query_starts.data();
    b.context_lens = context_lens.data();
    b.table_rows = table_rows.data();
    b.block_tables = tables.data();
    b.table_stride = kTableStride;
    b.block_size = kBlockSize;
    return b;
  }
};

// Whether sequences `a` and `b` hold the tokens of the split in the same blocks.
bool same_blocks(const Batch& batch, std::int32_t a, std::int32_t b, std::int32_t split,
                 std::int32_t size) {
  const BlockId* first = batch.tables.data() + a * kTableStride + split * size / kBlockSize;
  const BlockId* other = batch.tables.data() + b * kTableStride + split * size / kBlockSize;
  return std::equal(first, first + size / kBlockSize, other);
}

// Checks all that the kernel relies on; returns how many items are of several sequences.
std::int64_t expect_sound(const Batch& batch, const DecodePlan& plan) {
  std::int64_t max_splits = 0, num_several = 0;
  std::vector<std::vector<std::int32_t>> slots(batch.size());  // written for each sequence
  std::vector<std::int32_t> first_slot(batch.size(), -1), num_shared(batch.size(), 0);
  std::vector<bool> ended(batch.size(), false);
  std::vector<std::int32_t> last_item(batch.size(), -1);
  const auto num_items = static_cast<std::int32_t>(plan.items().size());
  for (std::int32_t index = 0; index < num_items; ++index) {
    const DecodeItem& item = plan.items()[index];
    if (item.count == 0) {
      const std::int32_t s = item.token;
      CHECK(item.length == batch.context_lens[s] + 1 && item.table_row == batch.table_rows[s]);
      CHECK(item.part >= item.num_shared && !ended[s]);
      const std::int32_t size = split_tokens(item.length);
      const std::int32_t end = item.part % kFold == 0 ? item.part + kFold : item.part + 1;
      for (std::int32_t split = item.part; split < end && split * size < item.length; ++split) {
        slots[s].push_back(item.first_slot + (kChains - 1) * item.num_shared + split);
      }
      // The kernel finds the items of a sequence's other groups beside this one.
      CHECK(last_item[s] < 0 || last_item[s] == index - 1);
      last_item[s] = index;
      first_slot[s] = item.first_slot, num_shared[s] = item.num_shared;
      ended[s] = end * size >= item.length;
      continue;
    }
    ++num_several;
    const std::int32_t size = split_tokens(item.length), split = item.part / kChains;
    CHECK(item.count <= kMaxMembers);
    for (std::int32_t m = 0; m < item.count; ++m) {
      const DecodeMember& member = plan.members()[item.first_member - 2 * num_items + m];
      const std::int32_t s = member.token;
      CHECK(!ended[s] && member.length == batch.context_lens[s] + 1);
      CHECK(member.length >= item.length && split_tokens(member.length) == size);
      CHECK((split + 1) * size < member.length);
      CHECK(same_blocks(batch, item.table_row, batch.table_rows[s], split, size));
      slots[s].push_back(member.first_slot + item.part);
    }
  }
  std::vector<std::int32_t> all;
  for (std::int32_t s = 0; s < batch.size(); ++s) {
    const std::int32_t length = batch.context_lens[s] + 1, size = split_tokens(length);
    const std::int32_t num_splits = (length + size - 1) / size;
    max_splits = std::max<std::int64_t>(max_splits, num_splits);
    CHECK(ended[s] && num_shared[s] < num_splits);
    std::ranges::sort(slots[s]);
    CHECK(std::ssize(slots[s]) == num_splits + (kChains - 1) * num_shared[s]);
    for (std::size_t i = 0; i < slots[s].size(); ++i) {
      CHECK(slots[s][i] == first_slot[s] + static_cast<std::int32_t>(i));
    }
    all.insert(all.end(), slots[s].begin(), slots[s].end());
  }
  std::ranges::sort(all);
  CHECK(std::ranges::adjacent_find(all) == all.end());
  CHECK(all.empty() || all.back() < DecodePlan::max_slots(batch.size(), max_splits));
  CHECK(static_cast<std::int64_t>(plan.items().size() * sizeof(DecodeItem) +
                                  plan.members().size() * sizeof(DecodeMember)) <=
        DecodePlan::max_bytes(batch.size()));
  return num_several;
}

void common_prefixes_are_read_once() {
  DecodePlan plan;
  for (const std::int32_t count : {2, 16, 17, 40}) {
    Batch batch;
    for (std::int32_t s = 0; s < count; ++s) batch.add(1088, 0, 1024);
    plan.make(batch.view());
    const std::int32_t splits = 1024 / split_tokens(1088);
    CHECK(expect_sound(batch, plan) ==
          splits * kChains * ((count + kMaxMembers - 1) / kMaxMembers));
  }
}

void without_tables_nothing_is_shared() {
  Batch batch;
  for (int s = 0; s < 8; ++s) batch.add(1088, 0, 1024);
  ForwardBatch view = batch.view();
  view.block_tables = nullptr;
  DecodePlan plan;
  plan.make(view);
  CHECK(expect_sound(batch, plan) == 0);
}

void random_batches_are_planned_soundly() {
  std::mt19937 random(1);
  DecodePlan plan;
  for (int round = 0; round < 300; ++round) {
    Batch batch;
    const std::int32_t count = 1 + random() % (round % 10 == 0 ? 400 : 30);
    for (std::int32_t s = 0; s < count; ++s) {
      const auto length = static_cast<std::int32_t>(1 + random() % 4500);
      batch.add(length, random() % 3, random() % 4 == 0 ? 0 : random() % length);
    }
    plan.make(batch.view());
    expect_sound(batch, plan);
  }
}

void splits_are_few_and_whole_rounds() {
  for (std::int32_t length = 1; length < 300'000; length += 1 + length / 50) {
    const std::int32_t size = split_tokens(length);
    CHECK(size % (16 * kChains) == 0 && (length + size - 1) / size <= max_splits(length));
    CHECK(max_splits(length) <= kMaxSplits);
  }
}

void tensor_copies_fill_a_tile() {
  for (const int block_size : {1, 2, 4}) CHECK(prefill_box_tokens(block_size) == 0);
  for (const int block_size : {8, 16, 32, 64, 128, 256, 1024}) {
    const int box = prefill_box_tokens(block_size);
    CHECK(box >= 8 && kPrefillTileTokens % box == 0 && block_size % box == 0);
    CHECK(kPrefillTileTokens / box <= 16);
  }
}

}  // namespace

int main() {
  common_prefixes_are_read_once();
  without_tables_nothing_is_shared();
  random_batches_are_planned_soundly();
  splits_are_few_and_whole_rounds();
  tensor_copies_fill_a_tile();
}
