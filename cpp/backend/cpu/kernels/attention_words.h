#pragma once

#include "cpp/backend/cpu/attention_plan.h"
#include "cpp/backend/cpu/kernels/math.h"

// What attention multiplies: matrices of 32-bit words, each a float32 or a pair of bfloat16.
namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr int kTile = kAttentionTile;
inline constexpr int kPartTiles = kAttentionPartTiles;

// The position in [begin, end) that is nearest to this one.
inline int nearest(int position, int begin, int end) {
  if (position < begin) return begin;
  return position < end ? position : end - 1;
}

// Scores [count] -> softly capped, in units of log2.
[[gnu::noinline]] inline void cap_scores(float* scores, int count, float softcap) {
  for (int i = 0; i < count; i += kLanes) {
    store(scores + i, tanh(load(scores + i)) * splat(softcap));
  }
}

struct FloatWords {
  using Element = float;
  static constexpr DType kDType = DType::kFloat32;
  static constexpr int kPerWord = 1;  // numbers that meet in one multiply_add
  static Vec splat_word(const float* p) { return splat(*p); }
  static Vec load_words(const float* p) { return load(p); }
  static void store_words(float* p, Vec a) { store(p, a); }
  static Vec multiply_add(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }
  // The first n numbers of a row, of which there may be fewer than 1, as two vectors of words.
  static void load_rows(const float* const (&rows)[1], std::int64_t n, Vec& first, Vec& second) {
    const auto load_some = [](const float* from, std::int64_t left) {
      if (left >= kLanes) return load(from);
      return left > 0 ? load_n(from, static_cast<int>(left)) : zero();
    };
    first = load_some(rows[0], n);
    second = load_some(rows[0] + kLanes, n - kLanes);
  }
  static Vec to_words(const Vec (&numbers)[1]) { return numbers[0]; }
  static Vec exp2(Vec x) { return PAGEDCORE_ISA::exp2(x); }
};

// Pairs of neighbours in the dimension that is summed over. Dot is Bf16Dot.
template <typename Dot>
struct PairWords {
  using Element = BFloat16;
  static constexpr DType kDType = DType::kBFloat16;
  static constexpr int kPerWord = 2;
  static Vec splat_word(const BFloat16* p) { return Dot::splat_pair(p); }
  static Vec load_words(const BFloat16* p) { return Dot::load_pairs(p); }
  static void store_words(BFloat16* p, Vec a) { Dot::store_pairs(p, a); }
  static Vec multiply_add(Vec a, Vec b, Vec sum) { return Dot::dot_pairs(sum, a, b); }
  // The first n numbers of two rows.
  static void load_rows(const BFloat16* const (&rows)[2], std::int64_t n, Vec& first, Vec& second) {
    constexpr int kAll = 2 * kLanes;
    const int count = n < kAll ? static_cast<int>(n) : kAll;
    const Vec even = count == kAll ? load_words(rows[0]) : Dot::load_pairs_n(rows[0], count);
    const Vec odd = count == kAll ? load_words(rows[1]) : Dot::load_pairs_n(rows[1], count);
    first = Dot::interleave_low(even, odd);
    second = Dot::interleave_high(even, odd);
  }
  static Vec to_words(const Vec (&numbers)[2]) { return Dot::narrow_pairs(numbers[0], numbers[1]); }
  // Within 2^-13, a sixteenth of what rounding to bfloat16 loses.
  static Vec exp2(Vec x) {
    const Vec bounded = max(splat(-200.0f), x);
    const Vec n = round(bounded);
    const Vec r = bounded - n;
    Vec p = splat(0.0551716462f);
    p = fma(p, r, splat(0.242611378f));
    p = fma(p, r, splat(0.693261027f));
    p = fma(p, r, splat(0.999928057f));
    return Dot::scale_exp2(p, n);
  }
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
