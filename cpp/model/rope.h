#pragma once

#include <cstdint>
#include <vector>

#include "pagedcore/export.h"
#include "pagedcore/model_config.h"

namespace pagedcore {

// The dimensions of a head that turn.
PAGEDCORE_API std::int64_t rotary_dim(const ModelConfig& config);

// [num_positions, rotary_dim]: the cosines of a position's angles, then their sines, both times the
// scaling's attention factor. Angles are rounded to float32 where transformers rounds them.
PAGEDCORE_API std::vector<float> rope_table(const ModelConfig& config, std::int64_t num_positions);

}  // namespace pagedcore
