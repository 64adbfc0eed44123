#include "cpp/backend/cpu/kernels/linear_run.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

void linear_int8(const LinearTask& task, ThreadPool& pool) {
  run_linear<QuantizedFormat<8>>(task, pool);
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
