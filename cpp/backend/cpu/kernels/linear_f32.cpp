#include "cpp/backend/cpu/kernels/linear_floats.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

void linear_f32(const LinearTask& task, ThreadPool& pool) {
  run_linear<FloatShare<FmaFormat<float>>>(task, pool);
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
