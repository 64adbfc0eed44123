#pragma once

#include <cstddef>

#include "cpp/backend/cpu/kernels/attention_words.h"

// Attention of a few query rows to a tile, with positions in the lanes: keys and values are used
// where they lie, so that the time is that of reading them.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// Rows that registers hold sums of.
inline constexpr int kFewRows = 4;
inline constexpr int kLineBytes = 64;

// Where the keys, or values, of a tile's positions lie, and those of the tile that is read next,
// so that they come while this one is worked on. Offsets are in bytes.
struct TileRows {
  const std::byte* base;
  const std::int64_t* offsets;  // [kTile]
  const std::byte* next;
  const std::int64_t* next_offsets;  // [kTile]

  template <typename Element>
  const Element* row(int position) const {
    return reinterpret_cast<const Element*>(base + offsets[position]);
  }
  const std::byte* next_row(int position) const { return next + next_offsets[position]; }
};

// Every fourth key, and the three behind it.
struct KeyRows : TileRows {
  const std::int64_t* quads;  // [kTile / 4]
  std::int64_t stride;        // from one of the four to the next, in elements

  template <typename Element>
  const Element* quad(int position) const {
    return reinterpret_cast<const Element*>(base + quads[position / 4]);
  }
};

// The scores of R query rows at positions [begin, end) of a tile, and some around them.
template <typename O, int R>
[[gnu::noinline]] void score_rows(const typename O::Element* const (&query)[R], const KeyRows& keys,
                                  int begin, int end, std::int64_t head_dim, float* scores) {
  using Element = typename O::Element;
  constexpr int kGroups = 2;  // of kLanes positions, for sums enough to hide their latency
  constexpr int kStep = kGroups * kLanes;
  constexpr int kQuad = 16 / sizeof(Element);  // numbers in 16 bytes
  constexpr int kQuads = kLanes / 4;
  for (int position = begin / kStep * kStep; position < end; position += kStep) {
    const Element* quads[kGroups][kQuads];
    for (int i = 0; i < kGroups * kQuads; ++i) {
      quads[i / kQuads][i % kQuads] = keys.quad<Element>(position + 4 * i);
    }
    Vec sums[kGroups][R];
#pragma GCC unroll 8
    for (int i = 0; i < kGroups * R; ++i) sums[i / R][i % R] = zero();
    for (std::int64_t d = 0; d < head_dim; d += kQuad) {
      // Each quad of a line asks for a quarter of the lines that are wanted next.
      const std::int64_t line = d * sizeof(Element) / kLineBytes * kLineBytes;
      const int quarter = d / kQuad % 4 * (kStep / 4);
      for (int i = 0; i < kStep / 4; ++i) {
        prefetch_l2(keys.next_row(position + quarter + i) + line);
      }
      Vec words[kGroups][4];
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) words[g][i] = gather_quads(quads[g], i * keys.stride + d);
        transpose_quads(words[g]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const Vec q = O::splat_word(query[r] + d + i * O::kPerWord);
#pragma GCC unroll 2
          for (int g = 0; g < kGroups; ++g) {
            sums[g][r] = O::multiply_add(q, words[g][i], sums[g][r]);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kGroups * R; ++i) {
      store(scores + i % R * kTile + position + i / R * kLanes, sums[i / R][i % R]);
    }
  }
}

// out[r] += weights[r] times the values at [begin, end) of a tile, where weights outside are 0.
template <typename O, int R>
[[gnu::noinline]] void add_values(const typename O::Element* const (&weights)[R],
                                  const TileRows& values, int begin, int end, std::int64_t head_dim,
                                  float* const (&out)[R]) {
  using Element = typename O::Element;
  for (std::int64_t d = 0; d < head_dim; d += 2 * kLanes) {
    Vec sums[R][2];
#pragma GCC unroll 8
    for (int i = 0; i < 2 * R; ++i) sums[i / 2][i % 2] = load(out[i / 2] + d + i % 2 * kLanes);
    const std::int64_t line = d * sizeof(Element) / kLineBytes * kLineBytes;
    const std::int64_t end_line = (d + 2 * kLanes) * sizeof(Element);
    for (int position = begin / O::kPerWord * O::kPerWord; position < end;
         position += O::kPerWord) {
      const Element* rows[O::kPerWord];
      for (int i = 0; i < O::kPerWord; ++i) {
        rows[i] = values.row<Element>(position + i) + d;
        const std::byte* next = values.next_row(position + i);
        for (std::int64_t at = line; at < end_line; at += kLineBytes) prefetch_l2(next + at);
      }
      Vec words[2];
      O::load_rows(rows, head_dim - d, words);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec weight = O::splat_word(weights[r] + position);
        sums[r][0] = O::multiply_add(weight, words[0], sums[r][0]);
        sums[r][1] = O::multiply_add(weight, words[1], sums[r][1]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < 2 * R; ++i) store(out[i / 2] + d + i % 2 * kLanes, sums[i / 2][i % 2]);
  }
}

struct TileIndices {
  float values[kTile];
  constexpr TileIndices() : values{} {
    for (int i = 0; i < kTile; ++i) values[i] = static_cast<float>(i);
  }
};
inline constexpr TileIndices kTileIndices;

// Online softmax of one row: the largest score so far (in units of log2), the sum of the weights
// relative to it, and the sum of the values so weighted.
struct RowSoftmax {
  float* largest;
  float* sum;
  float* values;  // [width]
};

// Takes a tile's scores [kTile] at begin <= index < end into the softmax and gives their weights,
// 0 elsewhere. `softcap` is in units of log2; 0: none. REQUIRES: begin < end.
template <typename O>
[[gnu::noinline]] void weigh_row(float* scores, int begin, int end, float softcap,
                                 std::int64_t width, const RowSoftmax& softmax,
                                 typename O::Element* weights) {
  if (softcap != 0.0f) cap_scores(scores, kTile, softcap);
  constexpr int kVectors = kTile / kLanes;
  const Vec hidden = splat(-__builtin_inff());
  Vec x[kVectors];
  Vec maxima = hidden;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    x[v] = load(scores + v * kLanes);
    if (begin > v * kLanes || end < (v + 1) * kLanes) {
      const Vec index = load(kTileIndices.values + v * kLanes);
      x[v] = select_less(index, splat(static_cast<float>(begin)), hidden, x[v]);
      x[v] = select_less(index, splat(static_cast<float>(end)), x[v], hidden);
    }
    maxima = max(maxima, x[v]);
  }
  const float tile_largest = max_lane(maxima);
  if (tile_largest > *softmax.largest) {
    const Vec factor = exp2(splat(*softmax.largest - tile_largest));
    for (std::int64_t d = 0; d < width; d += kLanes) {
      store(softmax.values + d, load(softmax.values + d) * factor);
    }
    *softmax.sum *= first_lane(factor);
    *softmax.largest = tile_largest;
  }
  const Vec origin = splat(*softmax.largest);
  Vec sums = zero();
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const Vec weight = O::exp2(x[v] - origin);
    sums = sums + weight;
    store(weights + v * kLanes, weight);
  }
  *softmax.sum += sum(sums);
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
