#include "cpp/backend/cpu/kernels/linear_run.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

void linear_bf16(const LinearTask& task, ThreadPool& pool) { run_linear<Bf16Format>(task, pool); }

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
