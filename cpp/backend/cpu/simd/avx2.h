#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpp/tensor/half.h"

// The vectors of one instruction set. Every set defines the same names:
//   Vec          kLanes float32 (or, for transpose, any 32-bit units)
//   kNumRegisters  of the processor that hold a Vec
//   load, store  kLanes numbers of float, BFloat16 or Float16, unaligned; stores round to nearest
//   even load_n, ...  the first n <= kLanes of them: nothing behind is touched, missing lanes are 0
// and + - * / on Vec work lane by lane. Sums of lanes have one fixed order.
namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr int kLanes = 8;
inline constexpr int kNumRegisters = 16;
inline constexpr bool kHasBf16Dot = false;
struct Bf16Dot;  // defined where kHasBf16Dot
using Vec = __m256;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec splat(float x) { return _mm256_set1_ps(x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }  // a * b + c
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec sqrt(Vec a) { return _mm256_sqrt_ps(a); }
// To the nearest integer, ties to even.
inline Vec round(Vec a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// 2^n. REQUIRES: n is integral, -126 <= n <= 127.
inline Vec exp2_integral(Vec n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
// a < b ? yes : no
inline Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

inline float first_lane(Vec a) { return _mm256_cvtss_f32(a); }
inline float sum(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
// out_a[i] = sum(a[i]), out_b[i] = sum(b[i]): of lanes j and j + 4, then j and j + 2,
// then both. A blend, for which every port will do, stands in for the second shuffle of each step.
[[gnu::always_inline]] inline void sum_each(const Vec (&a)[4], const Vec (&b)[4], float* out_a,
                                            float* out_b) {
  Vec quads[4];  // a's in the lower half, b's in the upper
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    quads[i] =
        _mm256_add_ps(_mm256_blend_ps(a[i], b[i], 0xf0), _mm256_permute2f128_ps(a[i], b[i], 0x21));
  }
  const auto add_pairs = [](Vec x, Vec y) __attribute__((always_inline)) {
    return _mm256_add_ps(_mm256_blend_ps(x, y, 0xcc), _mm256_shuffle_ps(x, y, 0x4e));
  };
  const Vec even = add_pairs(quads[0], quads[2]);
  const Vec odd = add_pairs(quads[1], quads[3]);
  const Vec sums = _mm256_add_ps(_mm256_blend_ps(even, odd, 0xaa),
                                 _mm256_permute_ps(_mm256_blend_ps(even, odd, 0x55), 0xb1));
  _mm_storeu_ps(out_a, _mm256_castps256_ps128(sums));
  _mm_storeu_ps(out_b, _mm256_extractf128_ps(sums, 1));
}
inline float max_lane(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec load(const BFloat16* p) {
  const __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}

inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
inline void store(Float16* p, Vec a) {
  const __m128i x = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x);
}
inline void store(BFloat16* p, Vec a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i x = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(x, x), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec load_n(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
inline void store_n(float* p, Vec a, int n) { _mm256_maskstore_ps(p, first_lanes(n), a); }
template <typename T>
inline Vec load_n(const T* p, int n) {
  T copy[kLanes] = {};
  for (int i = 0; i < n; ++i) copy[i] = p[i];
  return load(copy);
}
template <typename T>
inline void store_n(T* p, Vec a, int n) {
  T copy[kLanes];
  store(copy, a);
  for (int i = 0; i < n; ++i) p[i] = copy[i];
}

// Within every 128-bit group, lane j of rows[i] becomes lane i of rows[j].
[[gnu::always_inline]] inline void transpose_quads(Vec (&rows)[4]) {
  const Vec low01 = _mm256_unpacklo_ps(rows[0], rows[1]);
  const Vec high01 = _mm256_unpackhi_ps(rows[0], rows[1]);
  const Vec low23 = _mm256_unpacklo_ps(rows[2], rows[3]);
  const Vec high23 = _mm256_unpackhi_ps(rows[2], rows[3]);
  rows[0] = _mm256_shuffle_ps(low01, low23, 0x44);
  rows[1] = _mm256_shuffle_ps(low01, low23, 0xee);
  rows[2] = _mm256_shuffle_ps(high01, high23, 0x44);
  rows[3] = _mm256_shuffle_ps(high01, high23, 0xee);
}

// Lane j of rows[i] becomes lane i of rows[j].
[[gnu::always_inline]] inline void transpose(Vec (&rows)[kLanes]) {
  Vec quads[2][4];  // quads[c][r]: of rows r and 4 + r the lanes 4c .. 4c + 3
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    quads[0][r] = _mm256_permute2f128_ps(rows[r], rows[4 + r], 0x20);
    quads[1][r] = _mm256_permute2f128_ps(rows[r], rows[4 + r], 0x31);
  }
#pragma GCC unroll 2
  for (int c = 0; c < 2; ++c) {
    transpose_quads(quads[c]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) rows[4 * c + i] = quads[c][i];
  }
}

// A quad is 16 bytes of memory, a 128-bit group of lanes. The same one in every group.
inline Vec splat_quad(const void* p) { return _mm256_broadcast_ps(static_cast<const __m128*>(p)); }
// Group g from p + g * stride (in bytes).
[[gnu::always_inline]] inline Vec load_quads(const void* p, std::int64_t stride) {
  const auto quad = [&](int group) __attribute__((always_inline)) {
    return _mm_loadu_ps(
        reinterpret_cast<const float*>(static_cast<const char*>(p) + group * stride));
  };
  return _mm256_insertf128_ps(_mm256_castps128_ps256(quad(0)), quad(1), 1);
}
// Group g from groups[g] + i.
template <typename T>
[[gnu::always_inline]] inline Vec gather_quads(const T* const (&groups)[2], std::int64_t i) {
  const auto quad = [&](int group) __attribute__((always_inline)) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(groups[group] + i));
  };
  return _mm256_insertf128_ps(_mm256_castps128_ps256(quad(0)), quad(1), 1);
}

// Forced inline: a call to a function that only prefetches has no effect that GCC would keep.
[[gnu::always_inline]] inline void prefetch_l1(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}
[[gnu::always_inline]] inline void prefetch_l2(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
