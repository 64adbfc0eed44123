#pragma once

#include <span>
#include <string_view>

#include "cpp/base/thread_pool.h"
#include "pagedcore/ops.h"
#include "pagedcore/sampling_ops.h"

namespace pagedcore::cpu {

// The kernels of one instruction set. The sources in this folder are compiled once per set, each
// time in the namespace PAGEDCORE_ISA and with PAGEDCORE_SIMD_HEADER naming that set's vectors.
// Parameters are trusted: Backend's public functions have checked them.
struct Kernels {
  std::string_view isa;
  DType bf16_operand;  // what linear reads beside bf16 weights: kBFloat16 where it has dot products

  void (*embed)(const EmbedParams&, ThreadPool&);
  void (*norm)(const NormParams&, ThreadPool&);
  void (*linear)(const LinearParams&, ThreadPool&);
  void (*rope_and_cache)(const RopeAndCacheParams&, ThreadPool&);
  void (*paged_attention)(const ForwardBatch&, const PagedAttentionParams&, ThreadPool&);
  void (*gated_activation)(const GatedActivationParams&, ThreadPool&);
  void (*sample)(const SampleParams&, ThreadPool&);
};

// The kernels of the named set, or of the best one that this processor runs if `isa` is empty.
// Throws InvalidArgument with the names that are possible here.
const Kernels& select_kernels(std::string_view isa);

namespace PAGEDCORE_ISA {

void embed(const EmbedParams& params, ThreadPool& pool);
void norm(const NormParams& params, ThreadPool& pool);
void linear(const LinearParams& params, ThreadPool& pool);
void rope_and_cache(const RopeAndCacheParams& params, ThreadPool& pool);
void paged_attention(const ForwardBatch& batch, const PagedAttentionParams& params,
                     ThreadPool& pool);
void gated_activation(const GatedActivationParams& params, ThreadPool& pool);
void sample(const SampleParams& params, ThreadPool& pool);

extern const Kernels kKernels;

}  // namespace PAGEDCORE_ISA
}  // namespace pagedcore::cpu
