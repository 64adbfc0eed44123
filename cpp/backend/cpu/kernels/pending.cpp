#include "cpp/backend/cpu/kernels/kernels.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

void linear(const LinearParams&, Context&) { __builtin_trap(); }

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
