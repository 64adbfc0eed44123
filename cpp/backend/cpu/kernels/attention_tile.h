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

// How keys and values of T multiply: both operands of a product are matrices of 32-bit words.
template <typename T>
struct FloatOperands {
  using Element = float;
  static constexpr int kPerWord = 1;  // numbers that meet in one multiply_add
  static Vec splat_word(const float* p) { return splat(*p); }
  static Vec load_words(const float* p) { return load(p); }
  static void store_words(float* p, Vec a) { store(p, a); }
  static Vec multiply_add(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }
  // The first n <= kLanes numbers of a key as words.
  static Vec load_key(const T* key, int n) { return n == kLanes ? load(key) : load_n(key, n); }
  // The first n numbers of one value as V vectors of words.
  template <int V>
  static void load_values(const T* const* values, std::int64_t d, std::int64_t n, Vec* out) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const std::int64_t left = n - v * kLanes;
      const T* from = values[0] + d + v * kLanes;
      out[v] = left >= kLanes ? load(from) : load_n(from, static_cast<int>(left));
    }
  }
};

// A word is two bfloat16: neighbours in the dimension that is summed over. Dot is Bf16Dot.
template <typename Dot>
struct PairOperands {
  using Element = BFloat16;
  static constexpr int kPerWord = 2;
  static Vec splat_word(const BFloat16* p) { return Dot::splat_pair(p); }
  static Vec load_words(const BFloat16* p) { return Dot::load_pairs(p); }
  static void store_words(BFloat16* p, Vec a) { Dot::store_pairs(p, a); }
  static Vec multiply_add(Vec a, Vec b, Vec sum) { return Dot::dot_pairs(sum, a, b); }
  static Vec load_key(const BFloat16* key, int n) {
    return n == 2 * kLanes ? Dot::load_pairs(key) : Dot::load_pairs_n(key, n);
  }
  // The first n numbers of two neighbouring values.
  template <int V>
  static void load_values(const BFloat16* const* values, std::int64_t d, std::int64_t n, Vec* out) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v += 2) {
      const std::int64_t left = n - v * kLanes;
      const std::int64_t from = d + v * kLanes;
      const int count = left < 2 * kLanes ? static_cast<int>(left) : 2 * kLanes;
      const Vec even = load_key(values[0] + from, count);
      const Vec odd = load_key(values[1] + from, count);
      out[v] = Dot::interleave_low(even, odd);
      if (v + 1 < V) out[v + 1] = Dot::interleave_high(even, odd);
    }
  }
};

// A matrix of words in rows `stride` elements apart.
template <typename Element>
struct Matrix {
  Element* data;
  std::int64_t stride;
};

// Rows and vectors of columns that registers hold sums of: AVX2 has 16, the others 32.
inline constexpr int kMaxRows = 6;
inline constexpr int kMaxVectors = kLanes == 8 ? 2 : 4;

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
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

// Calls f with rows in 1 .. kMaxRows as a constant.
template <typename F>
[[gnu::always_inline]] inline void with_rows(int rows, F&& f) {
  switch (rows) {
    case 1:
      return f(Constant<1>{});
    case 2:
      return f(Constant<2>{});
    case 3:
      return f(Constant<3>{});
    case 4:
      return f(Constant<4>{});
    case 5:
      return f(Constant<5>{});
    default:
      return f(Constant<6>{});
  }
}

template <typename O, int V>
void multiply_columns(int rows, Matrix<const typename O::Element> a,
                      Matrix<const typename O::Element> b, std::int64_t words, Matrix<float> c,
                      bool add) {
  for (int groups = (rows + kMaxRows - 1) / kMaxRows; groups > 0; --groups) {
    const int n = rows / groups;
    with_rows(n, [&](auto count) { multiply_block<O, count.value, V>(a, b, words, c, add); });
    rows -= n;
    a.data += n * a.stride;
    c.data += n * c.stride;
  }
}

// c = a b, or c += a b, where c has `vectors` vectors of columns.
template <typename O>
void multiply(int rows, Matrix<const typename O::Element> a, Matrix<const typename O::Element> b,
              std::int64_t words, Matrix<float> c, int vectors, bool add) {
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

// Where the keys, or values, of a tile's positions lie, and those of the tile that this thread
// reads next, so that they come while this one is worked on: `base` is that of a KV head, offsets
// are in elements. Where a tile has no position, its offset is that of one it has.
template <typename T>
struct TileRows {
  const T* base;
  const std::int64_t* offsets;  // [kTile]
  const T* next_base;
  const std::int64_t* next_offsets;  // [kTile]

  const T* row(int i) const { return base + offsets[i]; }
  const T* next(int i) const { return next_base + next_offsets[i]; }
};

inline constexpr int kLineBytes = 64;

// Asks for the cache line at p + d where numbers d .. are the first of one.
template <typename T>
inline void prefetch_line(const T* p, std::int64_t d) {
  if (d * sizeof(T) % kLineBytes == 0) prefetch_l2(p + d);
}

// Words of kLanes tokens from `token` on: block[i] holds word i of the numbers from d on.
template <typename O, typename T>
[[gnu::always_inline]] inline void transpose_keys(const TileRows<T>& keys, int token,
                                                  std::int64_t d, int n, Vec (&block)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    block[i] = O::load_key(keys.row(token + i) + d, n);
    prefetch_line(keys.next(token + i), d);
  }
  transpose(block);
}

// keys -> out [head_dim words][kTile]
template <typename O, typename T>
void pack_keys(const TileRows<T>& keys, std::int64_t head_dim, typename O::Element* out) {
  constexpr int kStep = O::kPerWord * kLanes;
  for (int token = 0; token < kTile; token += kLanes) {
    for (std::int64_t d = 0; d < head_dim; d += kStep) {
      const int n = head_dim - d < kStep ? static_cast<int>(head_dim - d) : kStep;
      Vec block[kLanes];
      transpose_keys<O>(keys, token, d, n, block);
      for (int i = 0; i < n / O::kPerWord; ++i) {
        O::store_words(out + (d + i * O::kPerWord) * kTile + token * O::kPerWord, block[i]);
      }
    }
  }
}

// values -> out [kTile words][vectors * kLanes]
template <typename O, typename T>
void pack_values(const TileRows<T>& values, std::int64_t head_dim, int vectors,
                 typename O::Element* out) {
  for (int token = 0; token < kTile; token += O::kPerWord) {
    for (int v = 0; v < vectors; v += O::kPerWord) {
      const std::int64_t d = v * kLanes;
      Vec words[O::kPerWord];
      const T* rows[O::kPerWord];
      for (int i = 0; i < O::kPerWord; ++i) {
        rows[i] = values.row(token + i);
        prefetch_line(values.next(token + i), d);
      }
      O::template load_values<O::kPerWord>(rows, d, head_dim - d, words);
      for (int i = 0; i < O::kPerWord && v + i < vectors; ++i) {
        O::store_words(out, words[i]);
        out += kLanes * O::kPerWord;
      }
    }
  }
}

// The scores of R rows of queries at [begin, end) of a tile, with the same sums as multiply() of
// packed keys: for so few rows that keys need not lie packed.
template <typename O, int R, typename T>
[[gnu::noinline]] void score_rows(Matrix<const typename O::Element> query, const TileRows<T>& keys,
                                  int begin, int end, std::int64_t head_dim, float* scores) {
  constexpr int kStep = O::kPerWord * kLanes;
  for (int token = begin / kLanes * kLanes; token < end; token += kLanes) {
    Vec sums[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r] = zero();
    for (std::int64_t d = 0; d < head_dim; d += kStep) {
      const int n = head_dim - d < kStep ? static_cast<int>(head_dim - d) : kStep;
      Vec block[kLanes];
      transpose_keys<O>(keys, token, d, n, block);
      const typename O::Element* word = query.data + d;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        if (i * O::kPerWord >= n) break;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const Vec q = O::splat_word(word + r * query.stride + i * O::kPerWord);
          sums[r] = O::multiply_add(q, block[i], sums[r]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) store(scores + r * kTile + token, sums[r]);
  }
}

// sums += weights [R][kTile] times values at [begin, end), V vectors from number d on; as
// multiply() does it, since weights outside are 0.
template <typename O, int R, int V, typename T>
[[gnu::noinline]] void add_values(const typename O::Element* weights, const TileRows<T>& values,
                                  int begin, int end, std::int64_t d, std::int64_t head_dim,
                                  Matrix<float> out) {
  Vec sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = load(out.data + r * out.stride + d + v * kLanes);
  }
  for (int token = begin / O::kPerWord * O::kPerWord; token < end; token += O::kPerWord) {
    Vec columns[V];
    const T* rows[O::kPerWord];
    for (int i = 0; i < O::kPerWord; ++i) {
      rows[i] = values.row(token + i);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) prefetch_line(values.next(token + i), d + v * kLanes);
    }
    O::template load_values<V>(rows, d, head_dim - d, columns);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec weight = O::splat_word(weights + r * kTile + token);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = O::multiply_add(weight, columns[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out.data + r * out.stride + d + v * kLanes, sums[r][v]);
  }
}

// Online softmax of one query: the largest score so far (in units of log2), the sum of the weights
// relative to it, and the sum of the values so weighted.
struct Softmax {
  float* largest;
  float* sum;
  float* values;  // [vectors * kLanes]
};

inline void scale_values(float* values, int vectors, Vec factor) {
  for (int v = 0; v < vectors; ++v) {
    store(values + v * kLanes, load(values + v * kLanes) * factor);
  }
}

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
