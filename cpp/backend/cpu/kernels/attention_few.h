#pragma once

#include <cstddef>

#include "cpp/backend/cpu/kernels/attention_words.h"
#include "cpp/backend/cpu/kernels/caches.h"

// Attention of a few query rows to a tile, with positions in the lanes: keys and values are used
// where they lie, so that the time is that of reading them.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// Rows that registers hold sums of.
inline constexpr int kFewRows = 4;

// The keys, or values, of a tile, and those of the tile that is read next, so that they come while
// this one is worked on.
struct TileRows {
  const std::byte* base;
  const std::int64_t* quads;  // [kTile / 4], of every fourth position, in bytes
  std::int64_t stride;        // from one of the four to the next, in bytes
  const std::byte* next;
  const std::int64_t* next_quads;  // [kTile / 4]

  template <typename Element>
  const Element* quad(int index) const {
    return reinterpret_cast<const Element*>(base + quads[index]);
  }
  template <typename Element>
  const Element* row(int position) const {
    return quad<Element>(position / 4) +
           position % 4 * stride / static_cast<std::int64_t>(sizeof(Element));
  }
};

// Element (i, j) is data[i * stride + j].
template <typename T>
struct Matrix {
  T* data;
  std::int64_t stride;
};

// The scores [R][kTile] of R query rows at positions [begin, end) of a tile, and some around them.
template <typename O, int R>
[[gnu::noinline]] void score_rows(Matrix<const typename O::Element> query, const TileRows& keys,
                                  int begin, int end, std::int64_t head_dim, float* scores) {
  using Element = typename O::Element;
  constexpr int kGroups = 2;  // of kLanes positions, for sums enough to hide their latency
  constexpr int kStep = kGroups * kLanes;
  constexpr int kQuad = 16 / sizeof(Element);  // numbers in 16 bytes
  constexpr int kQuads = kLanes / 4;
  const std::int64_t stride = keys.stride / static_cast<std::int64_t>(sizeof(Element));
  for (int position = begin / kStep * kStep; position < end; position += kStep) {
    const Element* quads[kGroups][kQuads];
    for (int i = 0; i < kGroups * kQuads; ++i) {
      quads[i / kQuads][i % kQuads] = keys.quad<Element>(position / 4 + i);
    }
    const std::int64_t* next_quads = keys.next_quads + position / 4;
    const std::byte* next = keys.next;
    const Element* q = query.data;
    Vec sums[kGroups][R];
#pragma GCC unroll 8
    for (int i = 0; i < kGroups * R; ++i) sums[i / R][i % R] = zero();
    for (std::int64_t d = 0; d < head_dim; d += kQuad, q += kQuad, next += kLineBytes) {
      // As many lines as four rows have make up as many steps.
#pragma GCC unroll 8
      for (int i = 0; i < kGroups * kQuads; ++i) prefetch_l2(next + next_quads[i]);
      Vec words[kGroups][4];
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) words[g][i] = gather_quads(quads[g], i * stride + d);
        transpose_quads(words[g]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const Vec word = O::splat_word(q + r * query.stride + i * O::kPerWord);
#pragma GCC unroll 2
          for (int g = 0; g < kGroups; ++g) {
            sums[g][r] = O::multiply_add(word, words[g][i], sums[g][r]);
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

// sums[r] += weights[r] times the first V vectors, or n numbers if these are fewer, of rows at
// positions from `position` on.
template <typename O, int R, int V>
[[gnu::always_inline]] inline void add_word(const typename O::Element* const* rows, std::int64_t n,
                                            const typename O::Element* weights, Vec (&sums)[R][V]) {
  using Element = typename O::Element;
  Vec words[V];
#pragma GCC unroll 2
  for (int v = 0; v < V; v += 2) {
    const Element* from[O::kPerWord];
    for (int i = 0; i < O::kPerWord; ++i) from[i] = rows[i] + v * kLanes;
    O::load_rows(from, n - v * kLanes, words[v], words[v + 1]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const Vec weight = O::splat_word(weights + r * kTile);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = O::multiply_add(weight, words[v], sums[r][v]);
  }
}

// add_values() for V vectors of numbers from the `d`th on, of which the last may be few if V is 2.
template <typename O, int R, int V>
[[gnu::noinline]] void add_columns(const typename O::Element* weights, const TileRows& values,
                                   int begin, int end, std::int64_t d, std::int64_t head_dim,
                                   Matrix<float> out) {
  using Element = typename O::Element;
  constexpr std::int64_t kBytes = V * kLanes * sizeof(Element);
  const std::int64_t n = V == 2 ? head_dim - d : V * kLanes;
  const std::int64_t stride = values.stride / static_cast<std::int64_t>(sizeof(Element));
  Vec sums[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R * V; ++i) {
    sums[i / V][i % V] = load(out.data + i / V * out.stride + d + i % V * kLanes);
  }
  for (int quad = begin / 4; 4 * quad < end; ++quad) {
    const std::byte* next = values.next + values.next_quads[quad] + d * sizeof(Element);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i, next += values.stride) {
#pragma GCC unroll 4
      for (std::int64_t at = 0; at < kBytes; at += kLineBytes) prefetch_l2(next + at);
    }
    const Element* rows[4];
    rows[0] = values.quad<Element>(quad) + d;
    for (int i = 1; i < 4; ++i) rows[i] = rows[i - 1] + stride;
    if (4 * quad < begin || 4 * quad + 4 > end) {
      for (int i = 0; i < 4; ++i) {
        rows[i] = values.row<Element>(nearest(4 * quad + i, begin, end)) + d;
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i += O::kPerWord) {
      add_word<O, R, V>(rows + i, n, weights + 4 * quad + i, sums);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R * V; ++i) {
    store(out.data + i / V * out.stride + d + i % V * kLanes, sums[i / V][i % V]);
  }
}

// out[r] += weights[r] [kTile] times the values at [begin, end) of a tile, where weights outside
// are 0, for R rows.
template <typename O, int R>
void add_values(const typename O::Element* weights, const TileRows& values, int begin, int end,
                std::int64_t head_dim, Matrix<float> out) {
  constexpr int kMost = kNumRegisters == 16 ? 2 : 4;
  std::int64_t d = 0;
  for (; head_dim - d >= kMost * kLanes; d += kMost * kLanes) {
    add_columns<O, R, kMost>(weights, values, begin, end, d, head_dim, out);
  }
  for (; d < head_dim; d += 2 * kLanes) {
    add_columns<O, R, 2>(weights, values, begin, end, d, head_dim, out);
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
