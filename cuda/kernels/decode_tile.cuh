#pragma once

#include <type_traits>

#include "cuda/common/mma.cuh"
#include "cuda/kernels/decode_work.cuh"

namespace pagedcore::cuda {

// What a warp of decode attention does: kRows rows (sequence, query head) of one KV head attend to
// kTokens tokens at a time, by mma.sync, with the online softmax in registers. K and V come through
// a stage of shared memory. Bytes of e4m3 are widened in registers: a lane's four of a row are its
// elements of two matrices, so the elements of a head are taken in another order, by the products
// of queries and keys and by the outputs alike.
template <typename KV, int kHeadDim>
struct DecodeTile {
  using T = typename MmaType<KV>::type;
  static constexpr bool kIsHalf = std::is_same_v<T, __half>;
  static constexpr bool kWiden = sizeof(KV) == 1;
  static constexpr int kTokens = DecodeWork::kTokens;
  static_assert(kHeadDim % 16 == 0);

  // A stage holds slices of 128 bytes of the rows: of K, then of V, then the next slice. 16-byte
  // chunks are swizzled by the row's last three bits, as tensor copies do, so that the eight rows
  // of a matrix lie in different banks.
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(KV));
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kSlices = (kRowBytes + 127) / 128;
  static constexpr int kValues = kTokens * 128;  // from a slice of K to that of V
  static constexpr int kSliceBytes = 2 * kValues;
  static constexpr int kStageBytes = kSlices * kSliceBytes;
  __device__ static std::uint32_t offset(int row, int chunk) {
    return chunk / 8 * kSliceBytes + row * 128 + ((chunk ^ row) & 7) * 16;
  }

  // A lane's two rows of the warp's tile: l / 4 and 8 further. Where there is none, token is -1.
  struct Row {
    std::int32_t token = -1, head = 0, slot = 0;
    std::int32_t start = 0;  // first position that it sees
  };

  // What a warp knows of its 16 rows.
  struct State {
    float max[2] = {kNegativeInfinity, kNegativeInfinity};
    float sum[2] = {0.0f, 0.0f};
    float out[kHeadDim / 8][4] = {};
  };

  // Two elements of the other 16-bit type as two of T.
  __device__ static std::uint32_t from_other_half(std::uint32_t raw) {
    if constexpr (kIsHalf) {
      return pack2(__uint_as_float(raw << 16), __uint_as_float(raw & 0xffff0000u), T{});
    } else {
      const float2 v = __half22float2(reinterpret_cast<const __half2&>(raw));
      return pack2(v.x, v.y, T{});
    }
  }

  // The tile of query rows, in the layout of mma().
  __device__ static void load_query(const PagedAttentionParams& p, const Row (&rows)[2],
                                    std::uint32_t (&q)[kHeadDim / 16][4]) {
    const auto load_as = [&](auto load2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const std::int64_t at = (rows[r].token * p.num_heads + rows[r].head) * kHeadDim +
                                static_cast<int>(threadIdx.x) % 4 * (kWiden ? 4 : 2);
#pragma unroll
        for (int k = 0; k < kHeadDim / 8; ++k) {
          const int of_lane = k / 2 * 16 + k % 2 * (kWiden ? 2 : 8);
          q[k / 2][k % 2 * 2 + r] = rows[r].token < 0 ? 0u : load2(at + of_lane);
        }
      }
    };
    if (p.query_dtype == DType::kFloat32) {
      load_as([&](std::int64_t i) {
        const float2 v = *reinterpret_cast<const float2*>(static_cast<const float*>(p.query) + i);
        return pack2(v.x, v.y, T{});
      });
    } else if ((p.query_dtype == DType::kFloat16) == kIsHalf) {
      load_as([&](std::int64_t i) {
        return *reinterpret_cast<const std::uint32_t*>(static_cast<const T*>(p.query) + i);
      });
    } else {
      load_as([&](std::int64_t i) {
        return from_other_half(*reinterpret_cast<const std::uint32_t*>(
            static_cast<const std::uint16_t*>(p.query) + i));
      });
    }
  }

  // Four bytes of e4m3 as the two registers of a matrix's column.
  __device__ static void widen(std::uint32_t raw, std::uint32_t& low, std::uint32_t& high) {
    const auto convert = [](std::uint32_t pair) {
      const __half2_raw h =
          __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3);
      return reinterpret_cast<const std::uint32_t&>(h);
    };
    low = convert(raw & 0xffffu);
    high = convert(raw >> 16);
  }

  // s[tokens 0 to 7, 8 to 15] = q K^T, as two sums over alternate 16 elements.
  __device__ static void multiply_keys(const std::uint32_t (&q)[kHeadDim / 16][4],
                                       std::uint32_t stage, float (&s)[2][4]) {
    constexpr int kSteps = kHeadDim / 16;
    const int lane = threadIdx.x % 32;
    float odd[2][4] = {};
    if constexpr (kWiden) {
#pragma unroll
      for (int k = 0; k < kSteps; k += 2) {
        std::uint32_t raw[4];
        load_matrix(raw, stage + offset(lane % 16, min(k + lane / 16, kSteps - 1)));
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          if (k + n / 2 >= kSteps) continue;
          std::uint32_t b[2];
          widen(raw[n], b[0], b[1]);
          mma(n < 2 ? s[n % 2] : odd[n % 2], q[k + n / 2], b[0], b[1], T{});
        }
      }
    } else {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        std::uint32_t b[4];
        load_matrix(b, stage + offset(lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
        mma(k % 2 == 0 ? s[0] : odd[0], q[k], b[0], b[1], T{});
        mma(k % 2 == 0 ? s[1] : odd[1], q[k], b[2], b[3], T{});
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) s[n][c] += odd[n][c];
    }
  }

  // out += p V. `seen` has ones in the halves of the lane's tokens 2 c and 2 c + 1, c being l % 4,
  // and of those eight further: what nobody sees may be NaN, which a weight of zero keeps.
  __device__ static void add_values(const std::uint32_t (&p)[4], const std::uint32_t (&seen)[2],
                                    std::uint32_t stage, float (&out)[kHeadDim / 8][4]) {
    constexpr int kSteps = kHeadDim / 16, kAtOnce = kWiden ? 2 : 1;
    const int lane = threadIdx.x % 32;
    constexpr int kLoads = (kSteps + kAtOnce - 1) / kAtOnce, kAhead = kLoads < 4 ? kLoads : 4;
    std::uint32_t ahead[kAhead][4];
    const auto fetch = [&](int load) {
      const int n = load * kAtOnce;
      const int chunk = kWiden ? min(n + lane / 16, kSteps - 1) : 2 * n + lane / 16;
      load_matrix_transposed(ahead[load % kAhead], stage + kValues + offset(lane % 16, chunk));
    };
#pragma unroll
    for (int i = 0; i < kAhead; ++i) fetch(i);
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const int n = load * kAtOnce;
      std::uint32_t raw[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) raw[i] = ahead[load % kAhead][i] & seen[i % 2];
      if (load + kAhead < kLoads) fetch(load + kAhead);
      if constexpr (kWiden) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          if (n + m >= kSteps) continue;
          // Bytes: two elements of one token, then those of the next.
          std::uint32_t even[2], odd[2];
          widen(__byte_perm(raw[2 * m], 0, 0x3120), even[0], odd[0]);
          widen(__byte_perm(raw[2 * m + 1], 0, 0x3120), even[1], odd[1]);
          mma(out[2 * (n + m)], p, even[0], even[1], T{});
          mma(out[2 * (n + m) + 1], p, odd[0], odd[1], T{});
        }
      } else {
        mma(out[2 * n], p, raw[0], raw[1], T{});
        mma(out[2 * n + 1], p, raw[2], raw[3], T{});
      }
    }
  }

  // The lane's elements of its r'th row's output, to [kHeadDim].
  __device__ static void store_row(const State& state, int r, float* row) {
    const auto& out = state.out;
    const int c = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      if constexpr (!kWiden) {
        *reinterpret_cast<float2*>(row + n * 8 + c * 2) =
            make_float2(out[n][2 * r], out[n][2 * r + 1]);
      } else if (n % 2 == 0) {
        *reinterpret_cast<float4*>(row + n * 8 + c * 4) =
            make_float4(out[n][2 * r], out[n + 1][2 * r], out[n][2 * r + 1], out[n + 1][2 * r + 1]);
      }
    }
  }

  // Adds the group at `begin` to the state.
  __device__ static void step(const AttentionArgs& args, const DecodeWork& work,
                              const Row (&rows)[2], std::int32_t begin,
                              const std::uint32_t (&q)[kHeadDim / 16][4], std::uint32_t stage,
                              State& state) {
    const int lane = threadIdx.x % 32;
    float s[2][4] = {};
    multiply_keys(q, stage, s);
    const float scale = args.op.scale * args.op.cache.k_scale * kLog2E;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) s[n][c] *= scale;
    }
    if (args.op.softcap != 0.0f) cap_scores(s, args.op.softcap);
    std::uint32_t seen[2] = {~0u, ~0u};
    const bool all_see = !work.shared() || args.op.sliding_window == 0;
    if (!all_see || begin < work.start || begin + kTokens > work.end) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const std::int32_t token = begin + n * 8 + lane % 4 * 2 + c % 2;
          if (token < rows[c / 2].start || token >= work.end) s[n][c] = kNegativeInfinity;
          const bool any = token >= work.start && token < work.end;
          if (!any) seen[n] &= c % 2 == 0 ? 0xffff0000u : 0x0000ffffu;
        }
      }
    }
    float max_new[2] = {state.max[0], state.max[1]};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) max_new[c / 2] = fmaxf(max_new[c / 2], s[n][c]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      max_new[r] = fmaxf(max_new[r], __shfl_xor_sync(0xffffffffu, max_new[r], 1));
      max_new[r] = fmaxf(max_new[r], __shfl_xor_sync(0xffffffffu, max_new[r], 2));
    }
    const bool higher = max_new[0] != state.max[0] || max_new[1] != state.max[1];
    if (__any_sync(0xffffffffu, higher)) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float keep = exp2_approx(state.max[r] - finite_max(max_new[r]));
        state.max[r] = max_new[r];
        state.sum[r] *= keep;
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n) {
          state.out[n][2 * r] *= keep;
          state.out[n][2 * r + 1] *= keep;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        s[n][c] = exp2_approx(s[n][c] - finite_max(max_new[c / 2]));
        state.sum[c / 2] += s[n][c];
      }
    }
    const std::uint32_t p[4] = {pack2(s[0][0], s[0][1], T{}), pack2(s[0][2], s[0][3], T{}),
                                pack2(s[1][0], s[1][1], T{}), pack2(s[1][2], s[1][3], T{})};
    add_values(p, seen, stage, state.out);
  }
};

}  // namespace pagedcore::cuda
