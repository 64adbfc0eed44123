#include "cpp/backend/cpu/kernels/linear_floats.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

void linear_f16(const LinearTask& task, ThreadPool& pool) {
  run_linear<FloatShare<FmaFormat<Float16>>>(task, pool);
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
