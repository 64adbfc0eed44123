#pragma once

#include <nv/target>

#include <cstdint>

// Barriers in shared memory.
namespace pagedcore::cuda {

__device__ inline void barrier_init(std::uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// Makes the barriers' initial state visible to copies; before a __syncthreads(). sm_90.
__device__ inline void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives once the copy_async16() of this thread so far are done.
__device__ inline void barrier_arrive_after_copies(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

#define PAGEDCORE_BARRIER_WAIT(test)              \
  asm volatile(                                   \
      "{\n"                                       \
      ".reg .pred done;\n"                        \
      "again:\n" test                             \
      ".parity.shared::cta.b64 done, [%0], %1;\n" \
      "@!done bra again;\n"                       \
      "}\n" ::"r"(barrier),                       \
      "r"(parity)                                 \
      : "memory")
__device__ inline void barrier_wait(std::uint32_t barrier, int parity) {
  NV_IF_ELSE_TARGET(NV_PROVIDES_SM_90, (PAGEDCORE_BARRIER_WAIT("mbarrier.try_wait");),
                    (PAGEDCORE_BARRIER_WAIT("mbarrier.test_wait");))
}
#undef PAGEDCORE_BARRIER_WAIT
// Whether barrier_wait() would return at once.
__device__ inline bool barrier_passed(std::uint32_t barrier, int parity) {
  std::uint32_t passed;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.b32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(passed)
      : "r"(barrier), "r"(parity)
      : "memory");
  return passed != 0;
}

}  // namespace pagedcore::cuda
