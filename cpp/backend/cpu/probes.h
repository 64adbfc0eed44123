#pragma once

#include <cstdint>

namespace pagedcore::cpu {

// Loops that do nothing but meet one limit of the machine, for one instruction set.
struct Probes {
  // Reads `bytes`, a multiple of 1024; the result keeps the compiler from leaving reads out.
  float (*read)(const void* data, std::int64_t bytes);
  // Runs a loop of independent operations on registers. Returns the operations done.
  double (*multiply_add_f32)(std::int64_t iterations, float* sink);
  double (*multiply_add_bf16)(std::int64_t iterations, float* sink);
};

}  // namespace pagedcore::cpu
