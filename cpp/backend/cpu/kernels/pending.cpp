#include "cpp/backend/cpu/kernels/kernels.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

void linear(const LinearParams&, Context&) { __builtin_trap(); }
void paged_attention(const ForwardBatch&, const PagedAttentionParams&, Context&) {
  __builtin_trap();
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
