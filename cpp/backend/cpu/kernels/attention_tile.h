#pragma once

#include "cpp/backend/cpu/kernels/any.h"
#include "cpp/backend/cpu/kernels/attention_scratch.h"

// Where the tiles of a pass lie in the cache, and copies of those that are not used there.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// The tiles of a pass that a task has: [first, end), and the positions [oldest, newest] that its
// queries see.
struct PassTiles {
  std::int32_t seq = 0;
  std::int32_t first = 0;
  std::int32_t end = 0;
  std::int32_t oldest = 0;
  std::int32_t newest = 0;

  bool empty() const { return first >= end; }
};

[[gnu::noinline]] inline PassTiles tiles_of(const AttentionJob& job, const AttentionTask& task,
                                            const AttentionPass& pass) {
  const AttentionSpan* spans = job.plan.spans();
  const std::int32_t window = job.params.sliding_window;
  PassTiles tiles;
  tiles.seq = spans[pass.first_span].seq;
  tiles.oldest = spans[pass.first_span].first_position;
  for (std::int32_t s = pass.first_span; s < pass.end_span; ++s) {
    const std::int32_t first = spans[s].first_position;
    const std::int32_t last = first + spans[s].num_queries - 1;
    if (first < tiles.oldest) tiles.oldest = first;
    if (last > tiles.newest) tiles.newest = last;
  }
  tiles.oldest = window > 0 && tiles.oldest >= window ? tiles.oldest - window + 1 : 0;
  // Of spans that skip tiles here none has met a tile before.
  const std::int32_t seen = tiles.oldest / kTile;
  tiles.first = pass.first_tile > seen ? pass.first_tile : seen;
  if (task.first_tile > tiles.first) tiles.first = task.first_tile;
  tiles.end = task.end_tile < pass.end_tile ? task.end_tile : pass.end_tile;
  return tiles;
}

// Positions [begin, end) of the tile at `start`, and where their keys lie in the first KV head:
// bytes from the start of the layer in block 0.
struct Tile {
  std::int32_t start = 0;
  std::int32_t begin = 0;
  std::int32_t end = 0;
  const BlockId* table = nullptr;
  // Of every fourth position where blocks hold four and more: memory of the cache, with anything
  // in it for positions outside.
  std::int64_t quads[kTile / 4];
};

// Where the key at a tile's `position` lies. REQUIRES: begin <= position < end, since no table
// entry is read for positions that none of the queries sees.
inline std::int64_t row_offset(const AttentionJob& job, const Tile& tile, int position) {
  const std::int32_t at = tile.start + position;
  const std::int32_t block = at >> job.block_shift;
  const std::int32_t slot = at - (block << job.block_shift);
  return tile.table[block] * job.block_bytes + slot * job.row_bytes;
}

[[gnu::noinline]] inline void locate(const AttentionJob& job, const PassTiles& tiles,
                                     std::int32_t index, Tile* tile) {
  const ForwardBatch& batch = job.batch;
  const std::int32_t start = index * kTile;
  tile->start = start;
  tile->begin = tiles.oldest > start ? tiles.oldest - start : 0;
  tile->end = tiles.newest + 1 - start < kTile ? tiles.newest + 1 - start : kTile;
  tile->table = batch.block_tables + batch.table_rows[tiles.seq] * batch.table_stride;
  for (int quad = 0; quad < kTile / 4; ++quad) {
    const int i = nearest(4 * quad, tile->begin, tile->end);
    tile->quads[quad] = row_offset(job, *tile, i) - i % 4 * job.row_bytes;
  }
}

// An int8 row and the float32 behind it that times it is the row -> out.
template <typename Element>
void dequantize(const std::int8_t* row, std::int64_t head_dim, Element* out) {
  float scale = 0.0f;
  __builtin_memcpy(&scale, row + head_dim, sizeof(scale));
  for_each_vector(head_dim, [&](std::int64_t d, int n) {
    float numbers[kLanes] = {};
    for (int i = 0; i < n; ++i) numbers[i] = static_cast<float>(row[d + i]);
    store(out + d, load(numbers) * splat(scale));
  });
}

// A tile's keys, or values, from `base` on -> copy [kTile][width], while those of the tile that is
// read next are fetched.
template <typename Element>
[[gnu::noinline]] void copy_rows(const AttentionJob& job, const std::byte* base, const Tile& tile,
                                 const std::byte* next_base, const Tile& next, Element* copy) {
  const DType dtype = job.params.cache.dtype;
  for (int i = tile.begin; i < tile.end; ++i) {
    const std::byte* row = base + row_offset(job, tile, i);
    const std::byte* next_row = next_base + row_offset(job, next, nearest(i, next.begin, next.end));
    for (std::int64_t at = 0; at < job.row_bytes; at += kLineBytes) prefetch_l2(next_row + at);
    Element* to = copy + i * job.width;
    if (dtype == DType::kInt8) {
      dequantize(reinterpret_cast<const std::int8_t*>(row), job.head_dim, to);
      continue;
    }
    for_each_vector(job.head_dim,
                    [&](std::int64_t d, int n) { store(to + d, load_any(dtype, row, d, n)); });
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
