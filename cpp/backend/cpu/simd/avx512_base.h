#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpp/tensor/half.h"

// What the two AVX-512 sets share; avx2.h says what the names mean.
namespace pagedcore::cpu::PAGEDCORE_ISA {

inline constexpr int kLanes = 16;
inline constexpr int kNumRegisters = 32;
using Vec = __m512;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec splat(float x) { return _mm512_set1_ps(x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec sqrt(Vec a) { return _mm512_sqrt_ps(a); }
inline Vec round(Vec a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec exp2_integral(Vec n) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
}
inline Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}

inline float first_lane(Vec a) { return _mm512_cvtss_f32(a); }
inline float sum(Vec a) {
  const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
// out_a[i] = sum(a[i]), out_b[i] = sum(b[i]): of lanes j and j + 8, then j and j + 4, j and j + 2,
// then both. A blend, for which every port will do, stands in for a shuffle where it can.
[[gnu::always_inline]] inline void sum_each(const Vec (&a)[4], const Vec (&b)[4], float* out_a,
                                            float* out_b) {
  Vec halves[4];  // a's in the lower half, b's in the upper
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    halves[i] = _mm512_mask_blend_ps(0xff00, a[i], b[i]) + _mm512_shuffle_f32x4(a[i], b[i], 0x4e);
  }
  const auto add_quads = [](Vec x, Vec y) __attribute__((always_inline)) {
    return _mm512_shuffle_f32x4(x, y, 0x88) + _mm512_shuffle_f32x4(x, y, 0xdd);
  };
  const Vec x = add_quads(halves[0], halves[1]);
  const Vec y = add_quads(halves[2], halves[3]);
  const Vec pairs = _mm512_mask_blend_ps(0xcccc, x, y) + _mm512_shuffle_ps(x, y, 0x4e);
  const Vec sums = pairs + _mm512_permute_ps(pairs, 0xb1);
  const __m512i order = _mm512_setr_epi32(0, 8, 2, 10, 4, 12, 6, 14, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m256 both = _mm512_castps512_ps256(_mm512_permutexvar_ps(order, sums));
  _mm_storeu_ps(out_a, _mm256_castps256_ps128(both));
  _mm_storeu_ps(out_b, _mm256_extractf128_ps(both, 1));
}
inline float max_lane(Vec a) {
  const __m256 y = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }
inline Vec widen(Float16, __m256i x) { return _mm512_cvtph_ps(x); }
inline Vec widen(BFloat16, __m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
inline __m256i narrow(Float16, Vec a) {
  return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m256i narrow(BFloat16, Vec a);  // each set has its own

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
inline void store_n(float* p, Vec a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a); }
template <typename T>
inline Vec load(const T* p) {
  return widen(T{}, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <typename T>
inline Vec load_n(const T* p, int n) {
  return widen(T{}, _mm256_maskz_loadu_epi16(first_lanes(n), p));
}
template <typename T>
inline void store(T* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(T{}, a));
}
template <typename T>
inline void store_n(T* p, Vec a, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(T{}, a));
}

// Within every 128-bit group, lane j of rows[i] becomes lane i of rows[j].
[[gnu::always_inline]] inline void transpose_quads(Vec (&rows)[4]) {
  const Vec low01 = _mm512_unpacklo_ps(rows[0], rows[1]);
  const Vec high01 = _mm512_unpackhi_ps(rows[0], rows[1]);
  const Vec low23 = _mm512_unpacklo_ps(rows[2], rows[3]);
  const Vec high23 = _mm512_unpackhi_ps(rows[2], rows[3]);
  rows[0] = _mm512_shuffle_ps(low01, low23, 0x44);
  rows[1] = _mm512_shuffle_ps(low01, low23, 0xee);
  rows[2] = _mm512_shuffle_ps(high01, high23, 0x44);
  rows[3] = _mm512_shuffle_ps(high01, high23, 0xee);
}

// Lane j of rows[i] becomes lane i of rows[j].
[[gnu::always_inline]] inline void transpose(Vec (&rows)[kLanes]) {
  Vec quads[4][4];  // quads[c][r]: of rows r, 4 + r, 8 + r, 12 + r the lanes 4c .. 4c + 3
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    const Vec low0 = _mm512_shuffle_f32x4(rows[r], rows[4 + r], 0x44);
    const Vec high0 = _mm512_shuffle_f32x4(rows[r], rows[4 + r], 0xee);
    const Vec low1 = _mm512_shuffle_f32x4(rows[8 + r], rows[12 + r], 0x44);
    const Vec high1 = _mm512_shuffle_f32x4(rows[8 + r], rows[12 + r], 0xee);
    quads[0][r] = _mm512_shuffle_f32x4(low0, low1, 0x88);
    quads[1][r] = _mm512_shuffle_f32x4(low0, low1, 0xdd);
    quads[2][r] = _mm512_shuffle_f32x4(high0, high1, 0x88);
    quads[3][r] = _mm512_shuffle_f32x4(high0, high1, 0xdd);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    transpose_quads(quads[c]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) rows[4 * c + i] = quads[c][i];
  }
}

inline Vec splat_quad(const void* p) {
  return _mm512_broadcast_f32x4(_mm_loadu_ps(static_cast<const float*>(p)));
}
// Loads that blend need no shuffle, and shuffles compete with multiply-adds on Zen 4.
[[gnu::always_inline]] inline Vec load_quads(const void* p, std::int64_t stride) {
  const auto quad = [&](int group) __attribute__((always_inline)) {
    return _mm_loadu_ps(
        reinterpret_cast<const float*>(static_cast<const char*>(p) + group * stride));
  };
  const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(quad(0)), quad(1), 1);
  const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(quad(2)), quad(3), 1);
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
template <typename T>
[[gnu::always_inline]] inline Vec gather_quads(const T* const (&groups)[4], std::int64_t i) {
  const auto quad = [&](int group) __attribute__((always_inline)) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(groups[group] + i));
  };
  const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(quad(0)), quad(1), 1);
  const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(quad(2)), quad(3), 1);
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

// Forced inline: a call to a function that only prefetches has no effect that GCC would keep.
[[gnu::always_inline]] inline void prefetch_l1(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}
[[gnu::always_inline]] inline void prefetch_l2(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
