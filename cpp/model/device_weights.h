#pragma once

#include <cstdint>

#include "cpp/model/model_weights.h"
#include "pagedcore/backend.h"
#include "pagedcore/tensor.h"

namespace pagedcore {

// Bytes that upload_weights takes.
std::int64_t uploaded_bytes(const ModelWeights& model, const Weights& weights);

// Copies the tensors that `model` uses into one buffer, unchanged and in the order of their use,
// each from a multiple of 256 bytes, and gives the same names in the backend's memory.
Weights upload_weights(const ModelWeights& model, const Weights& weights, Backend& backend);

}  // namespace pagedcore
