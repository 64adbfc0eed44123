#include PAGEDCORE_SIMD_HEADER

#include "cpp/backend/cpu/kernels/kernels.h"

#define PAGEDCORE_STRINGIZE_(name) #name
#define PAGEDCORE_STRINGIZE(name) PAGEDCORE_STRINGIZE_(name)

namespace pagedcore::cpu::PAGEDCORE_ISA {

extern constinit const Kernels kKernels = {
    .isa = PAGEDCORE_STRINGIZE(PAGEDCORE_ISA),
    .bf16_operand = kHasBf16Dot ? DType::kBFloat16 : DType::kFloat32,
    .embed = embed,
    .norm = norm,
    .linear = linear,
    .rope_and_cache = rope_and_cache,
    .paged_attention = paged_attention,
    .gated_activation = gated_activation,
    .sample = sample,
    .probes = {probe_read, probe_f32, probe_bf16},
};

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
