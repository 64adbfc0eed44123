#include "cpp/backend/cpu/kernels/linear_floats.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

void linear_bf16(const LinearTask& task, ThreadPool& pool) {
  run_linear<FloatShare<Bf16Format>>(task, pool);
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
