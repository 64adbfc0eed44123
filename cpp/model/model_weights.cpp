#include "cpp/model/model_weights.h"

#include <algorithm>
#include <initializer_list>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "cpp/model/families.h"
#include "pagedcore/error.h"
#include "pagedcore/quantize.h"

namespace pagedcore {
namespace {

// The sizes of a list or of a view.
class Shape {
 public:
  Shape(std::initializer_list<std::int64_t> sizes) : sizes_(sizes) {}
  Shape(const TensorView& view) : sizes_(view.shape.begin(), view.shape.begin() + view.rank) {}
  operator std::span<const std::int64_t>() const { return sizes_; }

 private:
  std::vector<std::int64_t> sizes_;
};

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + ']';
}

using DTypes = std::initializer_list<DType>;
constexpr DTypes kFloats = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

std::string names_of(DTypes dtypes) {
  std::string text;
  for (const DType* dtype = dtypes.begin(); dtype != dtypes.end(); ++dtype) {
    const bool is_last = dtype + 1 == dtypes.end();
    text += (dtype == dtypes.begin() ? ""
             : is_last               ? " or "
                                     : ", ") +
            std::string(dtype_name(*dtype));
  }
  return text;
}

class Binder {
 public:
  Binder(const ModelConfig& config, const Weights& weights)
      : config_(config), names_(family(config.architecture)), tensors_(weights.tensors) {}

  ModelWeights bind();

 private:
  struct Part {
    std::string name;
    std::int64_t out_features;
  };

  std::string find_prefix() const;
  const TensorView& find(const std::string& name, const Shape& shape, DTypes allowed = kFloats);
  NormWeights norm(const std::string& name, std::int64_t width, bool has_bias);
  Matrices matrices(std::initializer_list<Part> parts, std::int64_t in_features, bool has_bias);
  LinearWeight float_matrix(const std::string& name, const Part& part, std::int64_t in_features);
  bool is_quantized(const std::string& name) const;
  LinearWeight quantized_matrix(const std::string& name, std::int64_t out_features, Matrices& op);
  Matrices qkv(const std::string& layer);
  LayerWeights layer(std::int64_t index);
  Matrices lm_head();
  // All of the layers' matrices that are not quantised share one dtype, so that one kind of
  // activation feeds them.
  void require_model_dtype(const std::string& name, DType dtype);

  const ModelConfig& config_;
  const TensorNames& names_;
  const std::map<std::string, TensorView, std::less<>>& tensors_;
  std::string prefix_;
  std::string first_matrix_;
  ModelWeights result_;
};

std::string Binder::find_prefix() const {
  for (const std::string_view prefix : names_.prefixes) {
    if (tensors_.contains(detail::concat(prefix, names_.token_embedding, ".weight"))) {
      return std::string(prefix);
    }
  }
  return std::string(names_.prefixes[0]);
}

const TensorView& Binder::find(const std::string& name, const Shape& shape, DTypes allowed) {
  const std::span<const std::int64_t> expected(shape);
  const auto found = tensors_.find(name);
  PAGEDCORE_REQUIRE(found != tensors_.end(), "tensor '", name, "' is missing; ",
                    config_.architecture, " needs it with shape ", shape_text(expected));
  const TensorView& view = found->second;
  const std::span<const std::int64_t> got(view.shape.data(), view.rank);
  PAGEDCORE_REQUIRE(std::ranges::equal(got, expected), "tensor '", name, "' must have shape ",
                    shape_text(expected), ", got ", shape_text(got));
  PAGEDCORE_REQUIRE(std::ranges::find(allowed, view.dtype) != allowed.end(), "tensor '", name,
                    "' must be ", names_of(allowed), ", got ", dtype_name(view.dtype));
  result_.used.push_back(name);
  return view;
}

NormWeights Binder::norm(const std::string& name, std::int64_t width, bool has_bias) {
  NormWeights norm;
  if (!config_.norm_affine) return norm;
  const TensorView& weight = find(name + ".weight", {width});
  norm.weight = weight.data;
  norm.dtype = weight.dtype;
  if (has_bias) {
    const TensorView& bias = find(name + ".bias", {width});
    PAGEDCORE_REQUIRE(bias.dtype == weight.dtype, "tensor '", name, ".bias' must be ",
                      dtype_name(weight.dtype), " like the norm's weight, got ",
                      dtype_name(bias.dtype));
    norm.bias = bias.data;
  }
  return norm;
}

void Binder::require_model_dtype(const std::string& name, DType dtype) {
  if (first_matrix_.empty()) {
    first_matrix_ = name;
    result_.dtype = dtype;
  }
  PAGEDCORE_REQUIRE(dtype == result_.dtype, "tensor '", name, "' must be ",
                    dtype_name(result_.dtype), " like '", first_matrix_, "', got ",
                    dtype_name(dtype));
}

LinearWeight Binder::float_matrix(const std::string& name, const Part& part,
                                  std::int64_t in_features) {
  const bool transposed = names_.layout == WeightLayout::kInOut;
  const TensorView& view = transposed ? find(name, {in_features, part.out_features})
                                      : find(name, {part.out_features, in_features});
  require_model_dtype(name, view.dtype);
  LinearWeight weight;
  weight.data = view.data;
  weight.dtype = view.dtype;
  weight.layout = names_.layout;
  weight.out_features = part.out_features;
  return weight;
}

bool Binder::is_quantized(const std::string& name) const {
  return tensors_.contains(name + ".scales");
}

LinearWeight Binder::quantized_matrix(const std::string& name, std::int64_t out_features,
                                      Matrices& op) {
  LinearWeight weight;
  weight.out_features = out_features;
  const auto found = tensors_.find(name);
  const bool is_int4 = found != tensors_.end() && found->second.dtype == DType::kInt4;
  weight.dtype = is_int4 ? DType::kInt4 : DType::kInt8;
  weight.data =
      find(name, quantized_data_view(weight.dtype, out_features, op.in_features), {weight.dtype})
          .data;
  const std::int64_t num_groups = std::max<std::int64_t>(tensors_.at(name + ".scales").shape[1], 1);
  const TensorView per_group = quantized_scales_view(out_features, num_groups);
  const TensorView& scales = find(name + ".scales", per_group, {DType::kFloat32});
  weight.scales = static_cast<const float*>(scales.data);
  weight.group_size = op.in_features / num_groups;
  if (tensors_.contains(name + ".zero_points")) {
    const TensorView& zeros = find(name + ".zero_points", per_group, {DType::kInt8});
    weight.zero_points = static_cast<const std::int8_t*>(zeros.data);
  }
  const std::int32_t* x_order = nullptr;
  if (tensors_.contains(name + ".x_order")) {
    const TensorView& order = find(name + ".x_order", {op.in_features}, {DType::kInt32});
    x_order = static_cast<const std::int32_t*>(order.data);
  }
  const LinearWeight& first = op.num_weights > 0 ? op.weights[0] : weight;
  PAGEDCORE_REQUIRE(weight.group_size == first.group_size, "tensor '", name,
                    "' must have groups of ", first.group_size,
                    " like those that read the same inputs, got ", weight.group_size);
  if (op.num_weights == 0) op.x_order = x_order;
  const bool same_order =
      op.x_order == x_order || (op.x_order != nullptr && x_order != nullptr &&
                                std::equal(x_order, x_order + op.in_features, op.x_order));
  PAGEDCORE_REQUIRE(same_order, "tensor '", name,
                    ".x_order' must be that of the matrices that read the same inputs");
  result_.is_quantized = true;
  return weight;
}

Matrices Binder::matrices(std::initializer_list<Part> parts, std::int64_t in_features,
                          bool has_bias) {
  Matrices result;
  result.in_features = in_features;
  for (const Part& part : parts) {
    const std::string name = part.name + ".weight";
    LinearWeight weight = is_quantized(name) ? quantized_matrix(name, part.out_features, result)
                                             : float_matrix(name, part, in_features);
    PAGEDCORE_REQUIRE(result.num_weights == 0 || weight.dtype == result.weights[0].dtype,
                      "tensor '", name, "' must be ", dtype_name(result.weights[0].dtype),
                      " like those that read the same inputs, got ", dtype_name(weight.dtype));
    result.weights[result.num_weights++] = weight;
    result_.matrices.push_back(name);
  }
  if (!has_bias) return result;
  LinearWeight* weight = result.weights.data();
  for (const Part& part : parts) {
    const TensorView& bias = find(part.name + ".bias", {part.out_features});
    weight->bias = bias.data;
    weight->bias_dtype = bias.dtype;
    ++weight;
  }
  return result;
}

Matrices Binder::qkv(const std::string& layer) {
  const std::int64_t q_size = config_.num_heads * config_.head_dim;
  const std::int64_t kv_size = config_.num_kv_heads * config_.head_dim;
  const auto name = [&](int i) { return layer + std::string(names_.qkv[i]); };
  if (names_.qkv[1].empty()) {
    return matrices({{name(0), q_size + 2 * kv_size}}, config_.hidden_size, config_.qkv_bias);
  }
  return matrices({{name(0), q_size}, {name(1), kv_size}, {name(2), kv_size}}, config_.hidden_size,
                  config_.qkv_bias);
}

LayerWeights Binder::layer(std::int64_t index) {
  const std::string layer = detail::concat(prefix_, names_.layers, ".", index, ".");
  const auto name = [&](std::string_view part) { return layer + std::string(part); };
  const std::int64_t hidden = config_.hidden_size;
  const std::int64_t inner = config_.intermediate_size;
  const bool norm_bias = config_.norm == NormKind::kLayer;

  LayerWeights weights;
  weights.attention_norm = norm(name(names_.attention_norm), hidden, norm_bias);
  weights.qkv = qkv(layer);
  if (config_.qk_norm) {
    weights.q_norm = norm(name(names_.q_norm), config_.head_dim, false);
    weights.k_norm = norm(name(names_.k_norm), config_.head_dim, false);
    PAGEDCORE_REQUIRE(weights.q_norm.dtype == weights.k_norm.dtype, "tensor '", name(names_.k_norm),
                      ".weight' must be ", dtype_name(weights.q_norm.dtype),
                      " like the norm of q, got ", dtype_name(weights.k_norm.dtype));
  }
  weights.attention_out = matrices({{name(names_.attention_out), hidden}},
                                   config_.num_heads * config_.head_dim, config_.output_bias);
  weights.mlp_norm = norm(name(names_.mlp_norm), hidden, norm_bias);
  weights.up = config_.gated_mlp ? matrices({{name(names_.gate), inner}, {name(names_.up), inner}},
                                            hidden, config_.mlp_bias)
                                 : matrices({{name(names_.up), inner}}, hidden, config_.mlp_bias);
  weights.down = matrices({{name(names_.down), hidden}}, inner, config_.mlp_bias);
  return weights;
}

// Its dtype is free: that of the embedding where the two are one, unless it was quantised.
Matrices Binder::lm_head() {
  const std::string name = "lm_head.weight";
  Matrices result;
  result.in_features = config_.embedding_size;
  if (is_quantized(name)) {
    result.weights[0] = quantized_matrix(name, config_.vocab_size, result);
  } else {
    const TensorView& view = config_.tied_embeddings
                                 ? result_.token_embedding
                                 : find(name, {config_.vocab_size, config_.embedding_size});
    result.weights[0].data = view.data;
    result.weights[0].dtype = view.dtype;
    result.weights[0].out_features = config_.vocab_size;
  }
  result.num_weights = 1;
  result_.matrices.push_back(name);
  return result;
}

ModelWeights Binder::bind() {
  prefix_ = find_prefix();
  const auto name = [&](std::string_view part) { return prefix_ + std::string(part); };
  result_.token_embedding =
      find(name(names_.token_embedding) + ".weight", {config_.vocab_size, config_.embedding_size});
  if (config_.position == PositionKind::kLearned) {
    result_.position_embedding =
        find(name(names_.position_embedding) + ".weight",
             {config_.position_offset + config_.max_position_embeddings, config_.hidden_size});
  }
  result_.layers.reserve(config_.num_layers);
  for (std::int64_t i = 0; i < config_.num_layers; ++i) result_.layers.push_back(layer(i));
  if (config_.embedding_size != config_.hidden_size) {
    result_.project_in =
        matrices({{name(names_.project_in), config_.hidden_size}}, config_.embedding_size, false);
    result_.project_out =
        matrices({{name(names_.project_out), config_.embedding_size}}, config_.hidden_size, false);
  }
  if (config_.final_norm) {
    result_.final_norm =
        norm(name(names_.final_norm), config_.hidden_size, config_.norm == NormKind::kLayer);
  }
  result_.lm_head = lm_head();
  if (first_matrix_.empty()) result_.dtype = result_.token_embedding.dtype;
  return std::move(result_);
}

}  // namespace

ModelWeights bind_weights(const ModelConfig& config, const Weights& weights) {
  return Binder(config, weights).bind();
}

}  // namespace pagedcore
