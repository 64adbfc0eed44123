#pragma once

#include "cpp/backend/cpu/kernels/any.h"
#include "cpp/backend/cpu/kernels/attention_scratch.h"

// Where the tiles of a pass lie in the cache.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// The tiles of a pass: [first, end), and the positions [oldest, newest] that its queries see.
struct PassTiles {
  std::int32_t seq = 0;
  std::int32_t first = 0;
  std::int32_t end = 0;
  std::int32_t oldest = 0;
  std::int32_t newest = 0;

  bool empty() const { return first >= end; }
};

[[gnu::noinline]] inline PassTiles tiles_of(const AttentionJob& job, const AttentionPass& pass) {
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
  tiles.end = pass.end_tile;
  return tiles;
}

// Positions [begin, end) of the tile at `start`, and where their keys lie in the first KV head:
// bytes from the start of the layer in block 0.
struct Tile {
  std::int32_t start = 0;
  std::int32_t begin = 0;
  std::int32_t end = 0;
  std::int64_t offsets[kTile];  // of the nearest for positions outside
  // Of every fourth position where blocks hold four and more: memory of the cache, with anything
  // in it for positions outside.
  std::int64_t quads[kTile / 4];
};

// No table entry is read for positions that none of the queries sees.
[[gnu::noinline]] inline void locate(const AttentionJob& job, const PassTiles& tiles,
                                     std::int32_t index, Tile* tile) {
  const KvCacheView& cache = job.params.cache;
  const ForwardBatch& batch = job.batch;
  const BlockId* table = batch.block_tables + batch.table_rows[tiles.seq] * batch.table_stride;
  const std::int32_t start = index * kTile;
  tile->start = start;
  tile->begin = tiles.oldest > start ? tiles.oldest - start : 0;
  tile->end = tiles.newest + 1 - start < kTile ? tiles.newest + 1 - start : kTile;
  for (int i = tile->begin; i < tile->end;) {
    const std::int32_t block = (start + i) >> job.block_shift;
    const std::int32_t left = ((block + 1) << job.block_shift) - start;
    const int end = left < tile->end ? left : tile->end;
    const std::int32_t slot = start + i - (block << job.block_shift);
    std::int64_t offset = table[block] * cache.block_bytes() + slot * job.row_bytes;
    for (; i < end; ++i, offset += job.row_bytes) tile->offsets[i] = offset;
  }
  for (int i = 0; i < tile->begin; ++i) tile->offsets[i] = tile->offsets[tile->begin];
  for (int i = tile->end; i < kTile; ++i) tile->offsets[i] = tile->offsets[tile->end - 1];
  for (int quad = 0; quad < kTile / 4; ++quad) {
    int i = 4 * quad > tile->begin ? 4 * quad : tile->begin;
    if (i >= tile->end) i = tile->end - 1;
    tile->quads[quad] = tile->offsets[i] - i % 4 * job.row_bytes;
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
