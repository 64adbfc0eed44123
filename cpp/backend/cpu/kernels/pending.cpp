#include "cpp/backend/cpu/kernels/kernels.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

void embed(const EmbedParams&, Context&) { __builtin_trap(); }
void norm(const NormParams&, Context&) { __builtin_trap(); }
void linear(const LinearParams&, Context&) { __builtin_trap(); }
void rope_and_cache(const RopeAndCacheParams&, Context&) { __builtin_trap(); }
void paged_attention(const ForwardBatch&, const PagedAttentionParams&, Context&) {
  __builtin_trap();
}
void gated_activation(const GatedActivationParams&, Context&) { __builtin_trap(); }
void sample(const SampleParams&, Context&) { __builtin_trap(); }

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
