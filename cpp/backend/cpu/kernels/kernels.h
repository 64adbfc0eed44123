#pragma once

#include "cpp/backend/cpu/kernels.h"

// The sources in this folder are compiled once per instruction set, each time in the namespace
// PAGEDCORE_ISA and with PAGEDCORE_SIMD_HEADER naming that set's vectors. An inline function of
// another namespace that the compiler does not inline here becomes a weak symbol that the linker
// may pick for the whole library, with instructions that the processor may lack. So the sources
// keep to plain loops and the types of their own namespace: no std containers or algorithms, no
// PAGEDCORE_REQUIRE or PAGEDCORE_CHECK. tests/backend/test_isa_symbols.py looks at the symbols.
namespace pagedcore::cpu::PAGEDCORE_ISA {

void embed(const EmbedParams& params, Context& context);
void norm(const NormParams& params, Context& context);
void linear(const LinearParams& params, Context& context);
void rope_and_cache(const RopeAndCacheParams& params, Context& context);
void paged_attention(const ForwardBatch& batch, const PagedAttentionParams& params,
                     Context& context);
void gated_activation(const GatedActivationParams& params, Context& context);
void sample(const SampleParams& params, Context& context);
float probe_read(const void* data, std::int64_t bytes);
double probe_f32(std::int64_t iterations, float* sink);
double probe_bf16(std::int64_t iterations, float* sink);

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
