#pragma once

#include <cstdint>

// Thread block clusters: blocks of neighbouring index that write each other's shared memory. sm_90
// and newer; a kernel launched without clusters is one block a cluster.
namespace pagedcore::cuda {

// The two halves of a barrier of all threads of the cluster, which order no memory accesses.
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait;" ::: "memory"); }

// `address` of this block's shared memory, but of block `rank` of the cluster.
__device__ inline std::uint32_t cluster_address(std::uint32_t address, int rank) {
  std::uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

// Copies between blocks' shared memory: from this one's to another one's, whose `barrier` counts
// the bytes. The other must have begun, and this one must not end before the copy is done.
__device__ inline void cluster_copy(std::uint32_t to, std::uint32_t from, int bytes,
                                    std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(to),
      "r"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

}  // namespace pagedcore::cuda
