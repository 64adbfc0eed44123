#pragma once

#include "pagedcore/backend.h"
#include "pagedcore/decoder.h"
#include "pagedcore/engine_config.h"
#include "pagedcore/kv_cache.h"
#include "pagedcore/model_config.h"

namespace pagedcore {

// A checked configuration with the model's defaults filled in.
EngineConfig complete_config(const ModelConfig& model, EngineConfig config);

DecoderLimits decoder_limits(const EngineConfig& config);

StepLimits step_limits(const ModelConfig& model, const Weights& weights, const Backend& backend,
                       const EngineConfig& config);

// The shape of the cache, without data and number of blocks.
KvCacheView kv_layout(const ModelConfig& model, const EngineConfig& config, DType weights);

// REQUIRES: a complete config.
MemoryPlan make_memory_plan(const ModelConfig& model, const Weights& weights,
                            const Backend& backend, const EngineConfig& config);

}  // namespace pagedcore
