#pragma once

#include <cstdint>
#include <cstring>

#include "cpp/backend/cpu/kernels/sample.h"

// Passes over one row of scores, block by block of kSampleBlock. Each sum has one order: a lane
// each of a vector, lanes pairwise, blocks in float64. A NaN is never chosen and weighs nothing.
namespace pagedcore::cpu::PAGEDCORE_ISA {
namespace {

// The widest vectors of the instruction set: the compiler's name for their alignment.
constexpr int kVectorBytes = __BIGGEST_ALIGNMENT__;
using Floats = float __attribute__((vector_size(kVectorBytes)));
using Ints = std::int32_t __attribute__((vector_size(kVectorBytes)));

constexpr int kLanes = kVectorBytes / 4;
constexpr int kVectorsPerBlock = kSampleBlock / kLanes;
static_assert(kLanes <= kMaxSampleLanes);
constexpr float kNegativeInfinity = -__builtin_inff();

// Vectors where they lie, at any alignment. Functions here take and give vectors by reference:
// how they pass by value depends on the instruction set.
using FloatsAt = float __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
using IntsAt = std::int32_t __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));

inline const FloatsAt& load(const float* p) { return *reinterpret_cast<const FloatsAt*>(p); }
inline const IntsAt& load_bits(const void* p) { return *static_cast<const IntsAt*>(p); }
inline void store(float* p, const Floats& v) { *reinterpret_cast<FloatsAt*>(p) = v; }

inline float sum_lanes(const Floats& v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

inline bool any_lane(const Ints& mask) {
  std::int64_t words[kVectorBytes / 8];
  std::memcpy(words, &mask, sizeof(mask));
  std::int64_t all = 0;
  for (std::int64_t word : words) all |= word;
  return all != 0;
}

// f(block index, pointer to kSampleBlock scores); the last block is filled up with -infinity.
template <typename F>
inline void for_each_block(const float* row, std::int64_t size, F&& f) {
  const std::int64_t full = size / kSampleBlock;
  for (std::int64_t b = 0; b < full; ++b) f(b, row + b * kSampleBlock);
  if (full * kSampleBlock == size) return;
  float tail[kSampleBlock];
  for (float& score : tail) score = kNegativeInfinity;
  std::memcpy(tail, row + full * kSampleBlock, (size - full * kSampleBlock) * sizeof(float));
  f(full, tail);
}

// Writes the maximum of each lane of each block to lane_max [blocks, kLanes] and gives the
// maximum of all.
inline float scan_max(const float* row, std::int64_t size, float* lane_max) {
  const Floats lowest = Floats{} + kNegativeInfinity;
  Floats best = lowest;
  for_each_block(row, size, [&](std::int64_t b, const float* x) {
    Floats m0 = lowest, m1 = lowest;
    for (int v = 0; v < kVectorsPerBlock; v += 2) {
      const Floats x0 = load(x + v * kLanes), x1 = load(x + (v + 1) * kLanes);
      m0 = x0 > m0 ? x0 : m0;
      m1 = x1 > m1 ? x1 : m1;
    }
    m0 = m1 > m0 ? m1 : m0;
    store(lane_max + b * kLanes, m0);
    best = m0 > best ? m0 : best;
  });
  float result = kNegativeInfinity;
  for (int i = 0; i < kLanes; ++i) result = best[i] > result ? best[i] : result;
  return result;
}

// t = 2^t for t <= 0, relative error below 2e-7; 0 below -126 and for NaN.
// Method: Cephes exp2f.
inline void exp2_nonpositive(Floats& t) {
  constexpr float kRoundToInteger = 0x1.8p23f;
  const Floats shifted = t + kRoundToInteger;
  const Floats f = t - (shifted - kRoundToInteger);
  Floats p = f * 1.535336188319500e-4f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  p = p * f + 1.0f;
  const Ints bits = load_bits(&p) + (load_bits(&shifted) << 23);
  const Ints kept = bits & (t > -126.0f);
  std::memcpy(&t, &kept, sizeof(t));
}

// Weights exp((x - max) * scale) of a row: their sums by block to sums [blocks], and themselves to
// weights [blocks * kSampleBlock] (which may be the row) if kStore. Gives the sum of all.
template <bool kStore>
inline double scan_weights(const float* row, std::int64_t size, float max, float scale,
                           float* weights, float* sums) {
  const float factor = scale * 1.44269504f;
  double total = 0.0;
  for_each_block(row, size, [&](std::int64_t b, const float* x) {
    Floats s0{}, s1{};
    for (int v = 0; v < kVectorsPerBlock; v += 2) {
      Floats w0 = (load(x + v * kLanes) - max) * factor;
      Floats w1 = (load(x + (v + 1) * kLanes) - max) * factor;
      exp2_nonpositive(w0);
      exp2_nonpositive(w1);
      if constexpr (kStore) {
        store(weights + b * kSampleBlock + v * kLanes, w0);
        store(weights + b * kSampleBlock + (v + 1) * kLanes, w1);
      }
      s0 += w0;
      s1 += w1;
    }
    const float sum = sum_lanes(s0 + s1);
    if constexpr (kStore) sums[b] = sum;
    total += sum;
  });
  return total;
}

// A place in the order of weights: heavier first, then lower id. Weights are >= 0, so that their
// bits compare as integers do: weight i lies before the place iff bits(i) > bits - (i < id).
struct Place {
  std::int32_t bits = 0;
  std::int64_t id = 0;

  bool is_after(float weight, std::int64_t i) const {
    std::int32_t weight_bits;
    std::memcpy(&weight_bits, &weight, sizeof(weight_bits));
    return weight_bits > bits - static_cast<std::int32_t>(i < id);
  }
};

// Sums of the weights that lie before `place`: by block to sums [blocks]; gives the sum of all.
inline double scan_before(const float* weights, std::int64_t num_blocks, const Place& place,
                          float* sums) {
  double total = 0.0;
  std::int32_t mixed[kSampleBlock];
  const std::int64_t mixed_block = place.id / kSampleBlock;
  for (int i = 0; i < kSampleBlock; ++i) {
    mixed[i] = place.bits - static_cast<std::int32_t>(mixed_block * kSampleBlock + i < place.id);
  }
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    const Ints uniform = Ints{} + (place.bits - static_cast<std::int32_t>(b < mixed_block));
    Floats s0{}, s1{};
    const auto add_before = [&](Floats& sum, int v) {
      const Ints bound = b == mixed_block ? Ints(load_bits(mixed + v * kLanes)) : uniform;
      const Ints bits = load_bits(weights + b * kSampleBlock + v * kLanes);
      const Ints kept = bits & (bits > bound);
      sum += load(reinterpret_cast<const float*>(&kept));
    };
    for (int v = 0; v < kVectorsPerBlock; v += 2) {
      add_before(s0, v);
      add_before(s1, v + 1);
    }
    sums[b] = sum_lanes(s0 + s1);
    total += sums[b];
  }
  return total;
}

// 1 + the number of scores that are more likely than token `id`: higher, or as high and before it.
inline std::int32_t rank_of(const float* row, std::int64_t size, std::int64_t id) {
  const float score = row[id];
  Ints before{};
  for_each_block(row, size, [&](std::int64_t b, const float* x) {
    const std::int64_t first = b * kSampleBlock;
    if (first <= id && id < first + kSampleBlock) return;
    for (int v = 0; v < kVectorsPerBlock; ++v) {
      const Floats scores = load(x + v * kLanes);
      before -= first < id ? scores >= score : scores > score;
    }
  });
  std::int32_t rank = 1;
  for (int i = 0; i < kLanes; ++i) rank += before[i];
  const std::int64_t first = id / kSampleBlock * kSampleBlock;
  for (std::int64_t i = first; i < first + kSampleBlock && i < size; ++i) {
    rank += row[i] > score || (row[i] == score && i < id);
  }
  return rank;
}

}  // namespace
}  // namespace pagedcore::cpu::PAGEDCORE_ISA
