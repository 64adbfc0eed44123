#include "cpp/backend/cpu/kernels/kernels.h"
#include "pagedcore/error.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

void embed(const EmbedParams&, ThreadPool&) { PAGEDCORE_CHECK(false, "pending"); }
void norm(const NormParams&, ThreadPool&) { PAGEDCORE_CHECK(false, "pending"); }
void linear(const LinearParams&, ThreadPool&) { PAGEDCORE_CHECK(false, "pending"); }
void rope_and_cache(const RopeAndCacheParams&, ThreadPool&) { PAGEDCORE_CHECK(false, "pending"); }
void paged_attention(const ForwardBatch&, const PagedAttentionParams&, ThreadPool&) { PAGEDCORE_CHECK(false, "pending"); }
void gated_activation(const GatedActivationParams&, ThreadPool&) { PAGEDCORE_CHECK(false, "pending"); }

}
