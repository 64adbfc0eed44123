#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/common/barrier.cuh"

// Hopper's warpgroup matrix products, tensor copies and register quotas, for sm_90a.
namespace pagedcore::cuda::sm90 {

// The shared memory tiles here are [rows][64] elements of 16 bits, 128 bytes a row, their 16-byte
// chunks swizzled by the row's last three bits; wider rows are several such tiles.
__device__ inline std::uint32_t swizzled(int row, int chunk) {
  return row * 128 + ((chunk ^ (row & 7)) << 4);
}

// Describes such a tile to wgmma. `repeat_bytes`: from one 64-column tile to the next, where the
// operand's contiguous dimension is wider than 64. PTX ISA, "Matrix descriptor".
__device__ inline std::uint64_t describe(std::uint32_t address, std::uint32_t repeat_bytes) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kEightRows = std::uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kEightRows | (std::uint64_t{(repeat_bytes & 0x3ffff) >> 4} << 16) |
         ((address & 0x3ffff) >> 4);
}

__device__ inline void mma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void mma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void mma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Makes ordinary writes to shared memory visible to wgmma.
__device__ inline void proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Copies a box of a tensor to shared memory; the barrier counts its bytes. What lies outside of the
// tensor is written as zeros.
__device__ inline void copy_box(std::uint32_t dst, const CUtensorMap& map, int c0, int c1, int c2,
                                int c3, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%2, %3, %4, %5}], [%6];" ::"r"(dst),
      "l"(&map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(barrier)
      : "memory");
}
// How long the L2 cache keeps what a copy reads; what is read once makes room before anything else.
__device__ inline std::uint64_t cache_policy(bool once) {
  std::uint64_t first, normal;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(first));
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(normal));
  return once ? first : normal;
}
__device__ inline void copy_box(std::uint32_t dst, const CUtensorMap& map, int c0, int c1, int c2,
                                int c3, std::uint32_t barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(dst),
      "l"(&map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(barrier), "l"(policy)
      : "memory");
}
// Fetches a box into the L2 cache.
__device__ inline void prefetch_box(const CUtensorMap& map, int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.prefetch.tensor.4d.L2.global.tile [%0, {%1, %2, %3, %4}];" ::"l"(&map),
      "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}
// Fetches the map itself, which the first copy would wait for.
__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
__device__ inline void copy_box(std::uint32_t dst, const CUtensorMap& map, int c0, int c1,
                                std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%2, %3}], [%4];" ::"r"(dst),
      "l"(&map), "r"(c0), "r"(c1), "r"(barrier)
      : "memory");
}

// Copies neighbouring bytes, a multiple of 16, to shared memory; the barrier counts them.
__device__ inline void copy_bytes(std::uint32_t dst, const void* src, int bytes,
                                  std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(dst),
      "l"(src), "r"(bytes), "r"(barrier)
      : "memory");
}

// Arrives, and has the barrier wait for `bytes` of copies too.
__device__ inline void barrier_arrive_expecting(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// The accumulators as operands 0 ... of a product, eight a row.
#define PAGEDCORE_D8(n)                                                                       \
  "+f"(d[n]), "+f"(d[n + 1]), "+f"(d[n + 2]), "+f"(d[n + 3]), "+f"(d[n + 4]), "+f"(d[n + 5]), \
      "+f"(d[n + 6]), "+f"(d[n + 7])
#define PAGEDCORE_D16 PAGEDCORE_D8(0), PAGEDCORE_D8(8)
#define PAGEDCORE_D32 PAGEDCORE_D16, PAGEDCORE_D8(16), PAGEDCORE_D8(24)
#define PAGEDCORE_D64 \
  PAGEDCORE_D32, PAGEDCORE_D8(32), PAGEDCORE_D8(40), PAGEDCORE_D8(48), PAGEDCORE_D8(56)
#define PAGEDCORE_NAMES8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define PAGEDCORE_NAMES16 PAGEDCORE_NAMES8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define PAGEDCORE_NAMES32 \
  PAGEDCORE_NAMES16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PAGEDCORE_NAMES64                                                    \
  PAGEDCORE_NAMES32                                                          \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, " \
  "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d[64, 2 kSize] = a b, or d + a b: a [64, 16] and b [2 kSize, 16] lie in shared memory. OPERANDS
// names a, b and `add`.
#define PAGEDCORE_PRODUCT_OF_SHARED(T, PTX, SIZE, COLUMNS, NAMES, D, ADD, OPERANDS)               \
  __device__ inline void mma_shared(float (&d)[SIZE], std::uint64_t a, std::uint64_t b, bool add, \
                                    T) {                                                          \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD                                      \
                 ", 0;\n"                                                                         \
                 "wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." PTX "." PTX " {" NAMES    \
                 "}, " OPERANDS ", add, 1, 1, 0, 0;\n}\n"                                         \
                 : D                                                                              \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                   \
  }
// d[64, kN] += a b: a [64, 16] is in registers, b [16, kN] in shared memory.
// Lane l of warp w holds rows 16 w + l / 4 and 8 further of d, in the order of mma(): columns
// 8 n + l % 4 * 2 and the next in d[4 n ..].
#define PAGEDCORE_PRODUCTS(T, PTX)                                                                 \
  PAGEDCORE_PRODUCT_OF_SHARED(T, PTX, 8, "16", PAGEDCORE_NAMES8, PAGEDCORE_D8(0), "%10", "%8, %9") \
  PAGEDCORE_PRODUCT_OF_SHARED(T, PTX, 16, "32", PAGEDCORE_NAMES16, PAGEDCORE_D16, "%18",           \
                              "%16, %17")                                                          \
  PAGEDCORE_PRODUCT_OF_SHARED(T, PTX, 64, "128", PAGEDCORE_NAMES64, PAGEDCORE_D64, "%66",          \
                              "%64, %65")                                                          \
  __device__ inline void mma_registers(float (&d)[64], const std::uint32_t (&a)[4],                \
                                       std::uint64_t b, T) {                                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." PTX "." PTX " {" PAGEDCORE_NAMES64 \
                 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                       \
                 : PAGEDCORE_D64                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                            \
  }                                                                                                \
  __device__ inline void mma_registers(float (&d)[32], const std::uint32_t (&a)[4],                \
                                       std::uint64_t b, T) {                                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." PTX "." PTX " {" PAGEDCORE_NAMES32  \
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                       \
                 : PAGEDCORE_D32                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                            \
  }
PAGEDCORE_PRODUCTS(__nv_bfloat16, "bf16")
PAGEDCORE_PRODUCTS(__half, "f16")
#undef PAGEDCORE_PRODUCTS
#undef PAGEDCORE_PRODUCT_OF_SHARED
#undef PAGEDCORE_NAMES64
#undef PAGEDCORE_NAMES32
#undef PAGEDCORE_NAMES16
#undef PAGEDCORE_NAMES8
#undef PAGEDCORE_D64
#undef PAGEDCORE_D32
#undef PAGEDCORE_D16
#undef PAGEDCORE_D8

}  // namespace pagedcore::cuda::sm90
