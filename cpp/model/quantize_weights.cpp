#include "pagedcore/quantize_weights.h"

#include <memory>
#include <string>
#include <vector>

#include "cpp/backend/cpu/memory.h"
#include "cpp/model/families.h"
#include "cpp/model/model_weights.h"
#include "pagedcore/error.h"
#include "pagedcore/quantize.h"

namespace pagedcore {
namespace {

constexpr std::int64_t kAlignment = 64;

// A matrix to be rounded, and where it goes in the extent.
struct Rounding {
  std::string name;
  TensorView source;
  std::int64_t group_size;
  bool transposed = false;
  TensorView data = {};
  TensorView scales = {};
  std::int64_t data_offset = 0;
  std::int64_t scales_offset = 0;
};

struct Plan {
  std::vector<Rounding> matrices;
  Weights weights;  // all that the model uses; those of `matrices` without data
  std::int64_t bytes = 0;
  std::int64_t num_weights = 0;
};

// The largest power of two up to `most` that divides `in_features`; 0 if it is below 32.
std::int64_t group_size_for(std::int64_t in_features, std::int64_t most) {
  std::int64_t size = most;
  while (size >= 32 && in_features % size != 0) size /= 2;
  return size >= 32 ? size : 0;
}

void check(const WeightQuantization& quantization) {
  PAGEDCORE_REQUIRE(quantization.dtype == DType::kInt8 || quantization.dtype == DType::kInt4,
                    "quantization must be int8 or int4, got ", dtype_name(quantization.dtype));
  const std::int64_t size = quantization.group_size;
  PAGEDCORE_REQUIRE(size >= 32 && size <= 1024 && (size & (size - 1)) == 0,
                    "group_size must be a power of two from 32 to 1024, got ", size);
  PAGEDCORE_REQUIRE(quantization.num_threads >= 0, "num_threads must be at least 0, got ",
                    quantization.num_threads);
}

Plan make_plan(const ModelConfig& config, const Weights& weights,
               const WeightQuantization& quantization) {
  check(quantization);
  config.validate();
  const ModelWeights model = bind_weights(config, weights);
  const bool layers_transposed = family(config.architecture).layout == WeightLayout::kInOut;
  Plan plan;
  for (const std::string& name : model.used) {
    plan.weights.tensors.emplace(name, weights.tensors.at(name));
  }
  const auto take = [&](const TensorView& view) {
    const std::int64_t offset = plan.bytes;
    plan.bytes += (view.num_bytes() + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  };
  for (const std::string& name : model.matrices) {
    const bool is_head = name == "lm_head.weight";
    const bool is_tied = is_head && config.tied_embeddings;
    if (weights.tensors.contains(name + ".scales")) continue;
    const TensorView& source = is_tied ? model.token_embedding : weights.tensors.at(name);
    const bool transposed = layers_transposed && !is_head;
    const std::int64_t in_features = source.shape[transposed ? 0 : 1];
    const std::int64_t out_features = source.shape[transposed ? 1 : 0];
    const std::int64_t group_size = group_size_for(in_features, quantization.group_size);
    if (group_size == 0) continue;
    Rounding matrix{
        .name = name, .source = source, .group_size = group_size, .transposed = transposed};
    matrix.data =
        quantized_data_view(is_head ? DType::kInt8 : quantization.dtype, out_features, in_features);
    matrix.scales = quantized_scales_view(out_features, in_features / group_size);
    matrix.data_offset = take(matrix.data);
    matrix.scales_offset = take(matrix.scales);
    plan.weights.tensors.insert_or_assign(name, matrix.data);
    plan.weights.tensors.insert_or_assign(name + ".scales", matrix.scales);
    plan.num_weights += source.num_elements();
    plan.matrices.push_back(std::move(matrix));
  }
  return plan;
}

// The extent, and what the tensors beside it lie in.
struct Memory {
  std::shared_ptr<void> extent;
  std::shared_ptr<const void> checkpoint;
};

}  // namespace

Weights plan_quantized_weights(const ModelConfig& config, const Weights& weights,
                               const WeightQuantization& quantization) {
  Plan plan = make_plan(config, weights, quantization);
  plan.weights.keep_alive = weights.keep_alive;
  return std::move(plan.weights);
}

Weights quantize_weights(const ModelConfig& config, const Weights& weights,
                         const WeightQuantization& quantization,
                         const QuantizationProgress& progress) {
  Plan plan = make_plan(config, weights, quantization);
  const auto memory = std::make_shared<Memory>();
  memory->extent = std::shared_ptr<void>(cpu::allocate_aligned(plan.bytes), cpu::free_aligned);
  memory->checkpoint = weights.keep_alive;
  plan.weights.keep_alive = memory;
  auto* const base = static_cast<std::uint8_t*>(memory->extent.get());
  std::int64_t done = 0;
  for (const Rounding& matrix : plan.matrices) {
    std::uint8_t* const data = base + matrix.data_offset;
    std::uint8_t* const scales = base + matrix.scales_offset;
    const WeightRounding rounding{
        .dtype = matrix.data.dtype,
        .group_size = matrix.group_size,
        .transposed = matrix.transposed,
        .num_threads = quantization.num_threads,
    };
    quantize_weight(matrix.source, rounding, data, reinterpret_cast<float*>(scales));
    plan.weights.tensors.at(matrix.name).data = data;
    plan.weights.tensors.at(matrix.name + ".scales").data = scales;
    done += matrix.source.num_elements();
    if (progress) progress(matrix.name, done, plan.num_weights);
  }
  return std::move(plan.weights);
}

}  // namespace pagedcore
