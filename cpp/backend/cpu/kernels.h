#pragma once

#include <string_view>

#include "cpp/backend/cpu/attention_plan.h"
#include "cpp/backend/cpu/probes.h"
#include "cpp/backend/cpu/workspace.h"
#include "cpp/base/thread_pool.h"
#include "pagedcore/ops.h"
#include "pagedcore/sampling_ops.h"

namespace pagedcore::cpu {

// What a kernel works with beside its parameters. Borrowed for the call.
struct Context {
  ThreadPool& pool;
  Workspace& workspace;
  AttentionPlan& attention_plan;
  bool streams_stop_at_pages;
};

// The kernels of one instruction set. Parameters are trusted: Backend's public functions have
// checked them, and none comes with an empty batch.
struct Kernels {
  std::string_view isa;
  DType bf16_operand;  // what linear reads beside bf16 weights: kBFloat16 where it has dot products

  void (*embed)(const EmbedParams&, Context&);
  void (*norm)(const NormParams&, Context&);
  void (*linear)(const LinearParams&, Context&);
  void (*rope_and_cache)(const RopeAndCacheParams&, Context&);
  void (*paged_attention)(const ForwardBatch&, const PagedAttentionParams&, Context&);
  void (*gated_activation)(const GatedActivationParams&, Context&);
  void (*sample)(const SampleParams&, Context&);
  Probes probes;
};

// The kernels of the named set, or of the best one that this processor runs if `isa` is empty.
// Throws InvalidArgument with the names that are possible here.
const Kernels& select_kernels(std::string_view isa);

}  // namespace pagedcore::cpu
