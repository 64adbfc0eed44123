#include "cpp/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace pagedcore {
namespace {

// inv_freq[i] = base ^ (-2 i / dim).
std::vector<float> inverse_frequencies(float base, std::int64_t dim) {
  std::vector<float> result(dim / 2);
  for (std::int64_t i = 0; i < dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    result[i] = 1.0f / static_cast<float>(std::pow(double{base}, double{exponent}));
  }
  return result;
}

// Llama 3.1: long waves turn slower by `factor`, short ones as before, those between by a blend.
void scale_llama3(const RopeScaling& scaling, std::vector<float>& inv_freq) {
  const float original = static_cast<float>(scaling.original_max_position_embeddings);
  for (float& frequency : inv_freq) {
    const float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
    if (wavelength < original / scaling.high_freq_factor) continue;
    if (wavelength > original / scaling.low_freq_factor) {
      frequency /= scaling.factor;
      continue;
    }
    const float smooth = (original / wavelength - scaling.low_freq_factor) /
                         (scaling.high_freq_factor - scaling.low_freq_factor);
    frequency = (1 - smooth) * frequency / scaling.factor + smooth * frequency;
  }
}

// The index of the frequency that makes `rotations` turns over the original length.
double yarn_correction_index(double rotations, double dim, double base, double original) {
  return dim * std::log(original / (rotations * 2 * std::numbers::pi)) / (2 * std::log(base));
}

// YaRN, Peng et al. 2023, section 3.2: fast frequencies stay, slow ones are interpolated.
void scale_yarn(const ModelConfig& config, std::int64_t dim, std::vector<float>& inv_freq) {
  const RopeScaling& scaling = config.rope_scaling;
  const double original = scaling.original_max_position_embeddings;
  const auto index = [&](float rotations) {
    return yarn_correction_index(rotations, static_cast<double>(dim), config.rope_theta, original);
  };
  double low = index(scaling.beta_fast);
  double high = index(scaling.beta_slow);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < inv_freq.size(); ++i) {
    const float ramp =
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
    const float kept = 1 - std::clamp(ramp, 0.0f, 1.0f);
    const float interpolated = 1.0f / (scaling.factor * (1.0f / inv_freq[i]));
    inv_freq[i] = interpolated * (1 - kept) + inv_freq[i] * kept;
  }
}

float yarn_attention_factor(const RopeScaling& scaling) {
  if (scaling.attention_factor > 0) return scaling.attention_factor;
  const auto mscale = [&](double weight) {
    return scaling.factor <= 1 ? 1.0 : 0.1 * weight * std::log(double{scaling.factor}) + 1.0;
  };
  if (scaling.mscale > 0 && scaling.mscale_all_dim > 0) {
    return static_cast<float>(mscale(scaling.mscale) / mscale(scaling.mscale_all_dim));
  }
  return static_cast<float>(mscale(1.0));
}

// Dynamic NTK: the base for a sequence of `length` tokens, longer than the original one.
float dynamic_base(const ModelConfig& config, std::int64_t dim, std::int64_t length) {
  const RopeScaling& scaling = config.rope_scaling;
  const float stretch = scaling.factor * static_cast<float>(length) /
                            static_cast<float>(scaling.original_max_position_embeddings) -
                        (scaling.factor - 1);
  return config.rope_theta *
         std::pow(stretch, static_cast<float>(dim) / static_cast<float>(dim - 2));
}

}  // namespace

std::int64_t rotary_dim(const ModelConfig& config) {
  return config.rotary_dim == 0 ? config.head_dim : config.rotary_dim;
}

std::vector<float> rope_table(const ModelConfig& config, std::int64_t num_positions) {
  const std::int64_t dim = rotary_dim(config);
  const RopeScaling& scaling = config.rope_scaling;
  std::vector<float> inv_freq = inverse_frequencies(config.rope_theta, dim);
  float factor = 1.0f;
  if (scaling.kind == RopeScalingKind::kLinear) {
    for (float& frequency : inv_freq) frequency /= scaling.factor;
  } else if (scaling.kind == RopeScalingKind::kLlama3) {
    scale_llama3(scaling, inv_freq);
  } else if (scaling.kind == RopeScalingKind::kYarn) {
    scale_yarn(config, dim, inv_freq);
    factor = yarn_attention_factor(scaling);
  }

  std::vector<float> table(num_positions * dim);
  for (std::int64_t position = 0; position < num_positions; ++position) {
    if (scaling.kind == RopeScalingKind::kDynamic &&
        position >= scaling.original_max_position_embeddings) {
      inv_freq = inverse_frequencies(dynamic_base(config, dim, position + 1), dim);
    }
    float* const cosines = table.data() + position * dim;
    float* const sines = cosines + dim / 2;
    for (std::int64_t i = 0; i < dim / 2; ++i) {
      const float angle = static_cast<float>(position) * inv_freq[i];
      cosines[i] = std::cos(angle) * factor;
      sines[i] = std::sin(angle) * factor;
    }
  }
  return table;
}

}  // namespace pagedcore
