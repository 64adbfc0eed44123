#pragma once

#include <cstdint>

// Thread block clusters: blocks of neighbouring index that read each other's shared memory. sm_90
// and newer; a kernel launched without clusters is one block a cluster.
namespace pagedcore::cuda {

// Of all threads of the cluster. What they wrote before is seen after.
__device__ inline void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;\n" ::
          : "memory");
}

// Four floats at `address` of this block's shared memory, but of block `rank` of the cluster.
__device__ inline float4 load_cluster4(std::uint32_t address, int rank) {
  float4 v;
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n"
      "}\n"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(address), "r"(rank)
      : "memory");
  return v;
}

}  // namespace pagedcore::cuda
