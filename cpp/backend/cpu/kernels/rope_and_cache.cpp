#include "cpp/backend/cpu/kernels/kernels.h"
#include "cpp/backend/cpu/kernels/norm.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {
namespace {

constexpr std::int64_t kMaxHeadDim = 512;

// A head as int8 and the float32 behind it that times them is the head, to within half of it.
void quantize(const float* head, std::int64_t head_dim, std::int8_t* y) {
  Vec largest = zero();
  for_each_vector(head_dim, [&](std::int64_t i, int n) {
    const Vec x = load_n(head + i, n);
    largest = max(largest, max(x, zero() - x));
  });
  const float most = max_lane(largest);
  const Vec factor = splat(most > 0.0f ? 127.0f / most : 0.0f);
  float numbers[kMaxHeadDim];
  for_each_vector(head_dim, [&](std::int64_t i, int n) {
    const Vec x = round(load_n(head + i, n) * factor);
    store_n(numbers + i, min(max(x, splat(-127.0f)), splat(127.0f)), n);
  });
  for (std::int64_t i = 0; i < head_dim; ++i) y[i] = static_cast<std::int8_t>(numbers[i]);
  const float scale = most / 127.0f;
  __builtin_memcpy(y + head_dim, &scale, sizeof(scale));
}

// One head of one token: x -> RMS norm -> rotation -> y at y[y_at], in y's dtype.
struct HeadWriter {
  const RopeAndCacheParams& p;
  const float* cos_sin;  // [rotary_dim] of the token's position; null: no rope

  void write(std::int64_t x_at, const void* norm_weight, DType y_dtype, void* y,
             std::int64_t y_at) const {
    const std::int64_t head_dim = p.cache.head_dim;
    float head[kMaxHeadDim];
    for_each_vector(head_dim, [&](std::int64_t i, int n) {
      store_n(head + i, load_any(p.qkv_dtype, p.qkv, x_at + i, n), n);
    });
    if (norm_weight != nullptr) normalize(head, norm_weight);
    if (cos_sin != nullptr) rotate(head);
    if (y_dtype == DType::kInt8) {
      quantize(head, head_dim, static_cast<std::int8_t*>(y) + y_at);
      return;
    }
    for_each_vector(head_dim, [&](std::int64_t i, int n) {
      store_any(y_dtype, y, y_at + i, load_n(head + i, n), n);
    });
  }

  void normalize(float* head, const void* weight) const {
    const std::int64_t head_dim = p.cache.head_dim;
    const float squares = sum_vectors(head_dim, [&](std::int64_t i, int n) {
      const Vec x = load_n(head + i, n);
      return x * x;
    });
    const Vec factor = splat(reciprocal_rms(squares, head_dim, p.epsilon));
    for_each_vector(head_dim, [&](std::int64_t i, int n) {
      store_n(head + i, load_n(head + i, n) * factor * load_any(p.norm_dtype, weight, i, n), n);
    });
  }

  void rotate(float* head) const {
    const std::int64_t half = p.rotary_dim / 2;
    for_each_vector(half, [&](std::int64_t i, int n) {
      const Vec a = load_n(head + i, n);
      const Vec b = load_n(head + half + i, n);
      const Vec cosine = load_n(cos_sin + i, n);
      const Vec sine = load_n(cos_sin + half + i, n);
      store_n(head + i, a * cosine - b * sine, n);
      store_n(head + half + i, b * cosine + a * sine, n);
    });
  }
};

void write_token(const RopeAndCacheParams& p, std::int64_t token) {
  const KvCacheView& cache = p.cache;
  const std::int64_t head_dim = cache.head_dim;
  const std::int64_t width = (p.num_heads + 2 * cache.num_kv_heads) * head_dim;
  const bool turns = p.cos_sin != nullptr;
  const HeadWriter turned{p, turns ? p.cos_sin + p.positions[token] * p.rotary_dim : nullptr};
  std::int64_t x_at = token * width;
  for (std::int64_t head = 0; head < p.num_heads; ++head, x_at += head_dim) {
    turned.write(x_at, p.q_norm, p.query_dtype, p.query, (token * p.num_heads + head) * head_dim);
  }
  const std::int64_t slot = p.slots[token];
  if (slot < 0) return;
  const std::int64_t block = slot / cache.block_size;
  const std::int64_t k_at = block * cache.block_stride() + p.layer * cache.layer_stride() +
                            (slot - block * cache.block_size) * cache.row_stride();
  for (std::int64_t head = 0; head < cache.num_kv_heads; ++head, x_at += head_dim) {
    turned.write(x_at, p.k_norm, cache.dtype, cache.data, k_at + head * cache.head_stride());
  }
  const HeadWriter plain{p, nullptr};
  const std::int64_t v_at = k_at + cache.kv_stride();
  for (std::int64_t head = 0; head < cache.num_kv_heads; ++head, x_at += head_dim) {
    plain.write(x_at, nullptr, cache.dtype, cache.data, v_at + head * cache.head_stride());
  }
}

}  // namespace

void rope_and_cache(const RopeAndCacheParams& p, Context& context) {
  const std::int64_t width = (p.num_heads + 2 * p.cache.num_kv_heads) * p.cache.head_dim;
  for_each_row_range(context.pool, p.num_tokens, 2 * width,
                     [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t token = begin; token < end; ++token) write_token(p, token);
                     });
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
