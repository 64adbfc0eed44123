#include "cpp/backend/cpu/kernels/linear_quantized_share.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

void linear_int8(const LinearTask& task, ThreadPool& pool) {
  run_linear<QuantizedShare<QuantizedFormat<8>>>(task, pool);
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
