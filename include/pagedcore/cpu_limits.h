#pragma once

#include "pagedcore/backend.h"
#include "pagedcore/export.h"

namespace pagedcore {

// What this machine reaches now with the given threads and instruction set: the divisors of
// every share that a benchmark reports. The best of several passes, since they are ceilings.
struct CpuLimits {
  double dram_gb_s = 0.0;     // reading 512 MiB
  double l2_gb_s = 0.0;       // reading 256 KiB a thread
  double f32_gflop_s = 0.0;   // fused multiply-adds of float32 vectors in registers
  double bf16_gflop_s = 0.0;  // dot products of bfloat16 pairs; f32_gflop_s where there are none
};

// Takes about a second and 512 MiB, which it keeps to itself.
PAGEDCORE_API CpuLimits measure_cpu_limits(const CpuBackendOptions& options = {});

}  // namespace pagedcore
