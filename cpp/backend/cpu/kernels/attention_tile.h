#pragma once

#include "cpp/backend/cpu/attention_plan.h"
#include "cpp/backend/cpu/kernels/math.h"

// The arithmetic of one tile of attention: packing keys and values, products, softmax.
namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr int kTile = kAttentionTile;

struct TileIndices {
  float values[kTile];
  constexpr TileIndices() : values{} {
    for (int i = 0; i < kTile; ++i) values[i] = static_cast<float>(i);
  }
};
inline constexpr TileIndices kTileIndices;

// How a product multiplies: its operands are matrices of 32-bit words.
struct FloatOperands {
  using Element = float;
  static constexpr int kPerWord = 1;
  static Vec splat_word(const float* p) { return splat(*p); }
  static Vec load_words(const float* p) { return load(p); }
  static Vec multiply_add(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }
};

// A word is two bfloat16: neighbours in the dimension that is summed over. Dot is Bf16Dot.
template <typename Dot>
struct PairOperands {
  using Element = BFloat16;
  static constexpr int kPerWord = 2;
  static Vec splat_word(const BFloat16* p) { return Dot::splat_pair(p); }
  static Vec load_words(const BFloat16* p) { return Dot::load_pairs(p); }
  static Vec multiply_add(Vec a, Vec b, Vec sum) { return Dot::dot_pairs(sum, a, b); }
};

// A matrix of words in rows `stride` elements apart.
template <typename Element>
struct Matrix {
  Element* data;
  std::int64_t stride;
};

// c = a b, or c += a b: R rows of a, V vectors of columns. Each sum runs over the words in order.
template <typename O, int R, int V>
[[gnu::noinline]] void multiply_block(Matrix<const typename O::Element> a,
                                      Matrix<const typename O::Element> b, std::int64_t words,
                                      Matrix<float> c, bool add) {
  Vec sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      sums[r][v] = add ? load(c.data + r * c.stride + v * kLanes) : zero();
  }
  const typename O::Element* a_word = a.data;
  const typename O::Element* b_row = b.data;
  for (std::int64_t i = 0; i < words; ++i) {
    Vec columns[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) columns[v] = O::load_words(b_row + v * kLanes * O::kPerWord);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec row = O::splat_word(a_word + r * a.stride);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = O::multiply_add(row, columns[v], sums[r][v]);
    }
    a_word += O::kPerWord;
    b_row += b.stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(c.data + r * c.stride + v * kLanes, sums[r][v]);
  }
}

template <typename O, int V>
void multiply_columns(int rows, Matrix<const typename O::Element> a,
                      Matrix<const typename O::Element> b, std::int64_t words, Matrix<float> c,
                      bool add) {
  constexpr int kMaxRows = 6;
  for (int groups = (rows + kMaxRows - 1) / kMaxRows; groups > 0; --groups) {
    const int n = rows / groups;
    switch (n) {
      case 1:
        multiply_block<O, 1, V>(a, b, words, c, add);
        break;
      case 2:
        multiply_block<O, 2, V>(a, b, words, c, add);
        break;
      case 3:
        multiply_block<O, 3, V>(a, b, words, c, add);
        break;
      case 4:
        multiply_block<O, 4, V>(a, b, words, c, add);
        break;
      case 5:
        multiply_block<O, 5, V>(a, b, words, c, add);
        break;
      default:
        multiply_block<O, 6, V>(a, b, words, c, add);
    }
    rows -= n;
    a.data += n * a.stride;
    c.data += n * c.stride;
  }
}

// c = a b, or c += a b, where c has `vectors` vectors of columns.
template <typename O>
void multiply(int rows, Matrix<const typename O::Element> a, Matrix<const typename O::Element> b,
              std::int64_t words, Matrix<float> c, int vectors, bool add) {
  constexpr int kMaxVectors = kLanes == 8 ? 2 : 4;  // AVX2 has 16 registers, the others 32
  const auto step = [&](int n) {
    b.data += n * kLanes * O::kPerWord;
    c.data += n * kLanes;
    vectors -= n;
  };
  for (; vectors >= kMaxVectors; step(kMaxVectors)) {
    multiply_columns<O, kMaxVectors>(rows, a, b, words, c, add);
  }
  if (vectors >= 2) {
    multiply_columns<O, 2>(rows, a, b, words, c, add);
    step(2);
  }
  if (vectors == 1) multiply_columns<O, 1>(rows, a, b, words, c, add);
}

// keys [kTile] pointers to head_dim numbers, null for 0s -> out [head_dim words][kTile]
template <typename T>
void pack_keys(FloatOperands, const T* const* keys, std::int64_t head_dim, float* out) {
  for (int token = 0; token < kTile; token += kLanes) {
    for (std::int64_t d = 0; d < head_dim; d += kLanes) {
      const int n = head_dim - d < kLanes ? static_cast<int>(head_dim - d) : kLanes;
      Vec block[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const T* key = keys[token + i];
        block[i] = key == nullptr ? zero() : n == kLanes ? load(key + d) : load_n(key + d, n);
      }
      transpose(block);
      for (int i = 0; i < n; ++i) store(out + (d + i) * kTile + token, block[i]);
    }
  }
}

// The same in pairs of dimensions.
template <typename Dot>
void pack_keys(PairOperands<Dot>, const BFloat16* const* keys, std::int64_t head_dim,
               BFloat16* out) {
  constexpr int kStep = 2 * kLanes;
  for (int token = 0; token < kTile; token += kLanes) {
    for (std::int64_t d = 0; d < head_dim; d += kStep) {
      const int n = head_dim - d < kStep ? static_cast<int>(head_dim - d) : kStep;
      Vec block[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const BFloat16* key = keys[token + i];
        block[i] = key == nullptr ? zero()
                   : n == kStep   ? Dot::load_pairs(key + d)
                                  : Dot::load_pairs_n(key + d, n);
      }
      transpose(block);
      for (int i = 0; i < n / 2; ++i) {
        Dot::store_pairs(out + ((d / 2 + i) * kTile + token) * 2, block[i]);
      }
    }
  }
}

// values [kTile] pointers to head_dim numbers, null for 0s -> out [kTile words][vectors * kLanes]
template <typename T>
void pack_values(FloatOperands, const T* const* values, std::int64_t head_dim, int vectors,
                 float* out) {
  for (int token = 0; token < kTile; ++token) {
    const T* value = values[token];
    for (int v = 0; v < vectors; ++v) {
      const std::int64_t left = head_dim - v * kLanes;
      Vec x = zero();
      if (value != nullptr) {
        x = left >= kLanes ? load(value + v * kLanes)
                           : load_n(value + v * kLanes, static_cast<int>(left));
      }
      store(out, x);
      out += kLanes;
    }
  }
}

// The same in pairs of tokens.
template <typename Dot>
void pack_values(PairOperands<Dot>, const BFloat16* const* values, std::int64_t head_dim,
                 int vectors, BFloat16* out) {
  const auto load_half = [&](const BFloat16* value, int v) {
    const std::int64_t left = head_dim - v * kLanes;
    if (value == nullptr) return zero();
    return left >= 2 * kLanes ? Dot::load_pairs(value + v * kLanes)
                              : Dot::load_pairs_n(value + v * kLanes, static_cast<int>(left));
  };
  for (int token = 0; token < kTile; token += 2) {
    for (int v = 0; v < vectors; v += 2) {
      const Vec even = load_half(values[token], v);
      const Vec odd = load_half(values[token + 1], v);
      Dot::store_pairs(out, Dot::interleave_low(even, odd));
      out += 2 * kLanes;
      if (v + 1 == vectors) continue;
      Dot::store_pairs(out, Dot::interleave_high(even, odd));
      out += 2 * kLanes;
    }
  }
}

inline void scale_values(float* values, int vectors, Vec factor) {
  for (int v = 0; v < vectors; ++v) {
    store(values + v * kLanes, load(values + v * kLanes) * factor);
  }
}

// Online softmax of one query: the largest score so far (in units of log2), the sum of the weights
// relative to it, and the sum of the values so weighted.
struct Softmax {
  float* largest;
  float* sum;
  float* values;  // [vectors * kLanes]
};

// Takes a tile's scores [kTile] at begin <= index < end into the softmax and gives their weights,
// 0 elsewhere. `softcap` is in units of log2; 0: none. REQUIRES: begin < end.
template <typename Element>
inline void add_scores(const float* scores, int begin, int end, float softcap, int vectors,
                       const Softmax& softmax, Element* weights) {
  constexpr int kVectors = kTile / kLanes;
  constexpr float kMinusInfinity = -__builtin_inff();
  Vec x[kVectors];
  Vec maxima = splat(kMinusInfinity);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    x[v] = load(scores + v * kLanes);
    if (softcap != 0.0f) x[v] = tanh(x[v]) * splat(softcap);
    if (begin > v * kLanes || end < (v + 1) * kLanes) {
      const Vec index = load(kTileIndices.values + v * kLanes);
      x[v] = select_less(index, splat(static_cast<float>(begin)), splat(kMinusInfinity), x[v]);
      x[v] = select_less(index, splat(static_cast<float>(end)), x[v], splat(kMinusInfinity));
    }
    maxima = max(maxima, x[v]);
  }
  const float tile_largest = max_lane(maxima);
  if (tile_largest > *softmax.largest) {
    const Vec factor = exp2(splat(*softmax.largest - tile_largest));
    scale_values(softmax.values, vectors, factor);
    *softmax.sum *= first_lane(factor);
    *softmax.largest = tile_largest;
  }
  const Vec origin = splat(*softmax.largest);
  Vec sums = zero();
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const Vec weight = exp2(x[v] - origin);
    sums = sums + weight;
    store(weights + v * kLanes, weight);
  }
  *softmax.sum += sum(sums);
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
