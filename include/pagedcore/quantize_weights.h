#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "pagedcore/export.h"
#include "pagedcore/model_config.h"
#include "pagedcore/tensor.h"

namespace pagedcore {

// How the matrices of a model are rounded. Embeddings and norms stay as they are. lm_head becomes
// kInt8 even where the layers are kInt4, as it moves the logits most; where it is tied to the
// token embedding, it is a copy of that.
struct WeightQuantization {
  DType dtype = DType::kInt8;  // kInt8 or kInt4
  // Inputs that share a scale: a power of two from 32 to 1024. A matrix whose inputs it does not
  // divide takes the largest one that does, and stays as it is where 32 does not either.
  std::int64_t group_size = 32;
  int num_threads = 0;  // 0: as many as this process may use
};

// Called when a matrix is done, which no one will read again: its name, and the numbers rounded so
// far and in all.
using QuantizationProgress =
    std::function<void(std::string_view tensor, std::int64_t done, std::int64_t total)>;

// The weights of a model with its matrices rounded one after the other into one extent of memory;
// the others stay where they lie. Matrices that are quantised already stay so.
// Throws InvalidArgument and OutOfMemory.
PAGEDCORE_API Weights quantize_weights(const ModelConfig& config, const Weights& weights,
                                       const WeightQuantization& quantization,
                                       const QuantizationProgress& progress = {});

// The same names, dtypes and shapes without data, for Engine::plan_memory.
PAGEDCORE_API Weights plan_quantized_weights(const ModelConfig& config, const Weights& weights,
                                             const WeightQuantization& quantization);

}  // namespace pagedcore
