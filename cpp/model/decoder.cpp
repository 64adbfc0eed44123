#include "pagedcore/decoder.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "cpp/model/device_weights.h"
#include "cpp/model/model_weights.h"
#include "cpp/model/rope.h"
#include "cpp/model/workspace.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace {

DecoderLimits checked_limits(const ModelConfig& config, DecoderLimits limits) {
  PAGEDCORE_REQUIRE(limits.max_tokens >= 1, "max_tokens must be at least 1, got ",
                    limits.max_tokens);
  PAGEDCORE_REQUIRE(limits.max_logit_rows >= 1, "max_logit_rows must be at least 1, got ",
                    limits.max_logit_rows);
  PAGEDCORE_REQUIRE(limits.max_positions >= 0, "max_positions must not be negative, got ",
                    limits.max_positions);
  if (limits.max_positions == 0) {
    limits.max_positions = static_cast<std::int32_t>(config.max_position_embeddings);
  }
  PAGEDCORE_REQUIRE(config.position == PositionKind::kRope ||
                        limits.max_positions <= config.max_position_embeddings,
                    "max_positions must be at most max_position_embeddings (",
                    config.max_position_embeddings, ") with learned positions, got ",
                    limits.max_positions);
  return limits;
}

ModelWeights bind_checked(const ModelConfig& config, const Weights& weights,
                          const Backend& backend) {
  config.validate();
  ModelWeights model = bind_weights(config, weights);
  PAGEDCORE_REQUIRE(backend.is_host() || !model.is_quantized,
                    "quantised weights run on the CPU only, got ", backend.description());
  return model;
}

std::int64_t rope_table_bytes(const ModelConfig& config, const DecoderLimits& limits) {
  if (config.position != PositionKind::kRope) return 0;
  return limits.max_positions * rotary_dim(config) * std::int64_t{sizeof(float)};
}

}  // namespace

struct Decoder::Impl {
  Impl(const ModelConfig& model_config, Weights checkpoint, Backend& model_backend,
       const DecoderLimits& step_limits);

  void check(const ForwardBatch& batch, const KvCacheView& cache) const;
  void embed(const ForwardBatch& batch);
  // A layer: project_qkv() reads the operand, mlp() leaves that of the next layer.
  void project_qkv(const ForwardBatch& batch, const KvCacheView& cache, std::int64_t layer);
  void attention(const ForwardBatch& batch, const KvCacheView& cache, std::int64_t layer);
  // `next`: the norm before the next layer, null after the last one.
  void mlp(const LayerWeights& layer, const NormWeights* next);
  // Leaves of the residual and attention's output what logits are made of.
  void keep_logit_rows(const ForwardBatch& batch);
  const float* logits(const ForwardBatch& batch, std::int32_t first, std::int32_t count);

  // Of the residual, from a row on.
  void norm(const NormWeights& weights, NormParams params, std::int64_t first_row = 0);
  // The next linear's operand from the residual; normed unless norms come after the add.
  void read_residual(const NormWeights& weights);
  // Adds the product of `wide` to the residual. Norms that in place by `after` where norms come
  // after the add, and makes it the next linear's operand.
  void add_to_residual(const Matrices& matrices, const NormWeights& after, const NormWeights* next);
  // `params` with the matrices' fields.
  LinearParams with(const Matrices& matrices, LinearParams params) const;
  // Those of a linear that reads the operand.
  LinearParams of_operand(const Matrices& matrices, LinearParams params) const;

  template <typename T = void>
  T* at(std::int64_t offset) const {
    return reinterpret_cast<T*>(workspace.as<char>() + offset);
  }
  std::int64_t q_size() const { return config.num_heads * config.head_dim; }
  std::int64_t qkv_size() const { return q_size() + 2 * config.num_kv_heads * config.head_dim; }

  const ModelConfig config;
  const DecoderLimits limits;
  Backend& backend;
  Weights weights;
  ModelWeights model;
  WorkspaceLayout layout;
  Buffer workspace;
  Buffer rope;
  std::int64_t num_rows = 0;               // of the residual
  bool only_logit_rows = false;            // whether the residual has no other rows any more
  const float* operand_squares = nullptr;  // where the operand's norm is begun only
};

Decoder::Impl::Impl(const ModelConfig& model_config, Weights checkpoint, Backend& model_backend,
                    const DecoderLimits& step_limits)
    : config(model_config),
      limits(checked_limits(model_config, step_limits)),
      backend(model_backend),
      weights(std::move(checkpoint)),
      model(bind_checked(config, weights, backend)),
      layout(lay_out_workspace(config, model, backend, limits)),
      workspace(backend, layout.bytes) {
  if (!backend.is_host()) {
    weights = upload_weights(model, weights, backend);
    model = bind_weights(config, weights);
  }
  if (config.position == PositionKind::kRope) {
    const std::vector<float> table = rope_table(config, limits.max_positions);
    rope = Buffer(backend, rope_table_bytes(config, limits));
    backend.upload(rope.data(), table.data(), rope.bytes());
  }
}

void Decoder::Impl::check(const ForwardBatch& batch, const KvCacheView& cache) const {
  PAGEDCORE_REQUIRE(batch.num_tokens <= limits.max_tokens, "a step of this decoder has at most ",
                    limits.max_tokens, " tokens, got ", batch.num_tokens);
  PAGEDCORE_REQUIRE(batch.max_context_len <= limits.max_positions,
                    "a sequence of this decoder has at most ", limits.max_positions,
                    " tokens, got ", batch.max_context_len);
  PAGEDCORE_REQUIRE(cache.num_layers == config.num_layers &&
                        cache.num_kv_heads == config.num_kv_heads &&
                        cache.head_dim == config.head_dim,
                    "the KV cache must have ", config.num_layers, " layers of ",
                    config.num_kv_heads, " heads of ", config.head_dim, ", got ", cache.num_layers,
                    " of ", cache.num_kv_heads, " of ", cache.head_dim);
}

void Decoder::Impl::norm(const NormWeights& norm_weights, NormParams params,
                         std::int64_t first_row) {
  params.width = config.hidden_size;
  params.x =
      at(layout.residual + first_row * config.hidden_size * dtype_bits(layout.dtypes.residual) / 8);
  params.x_dtype = layout.dtypes.residual;
  params.weight = norm_weights.weight;
  params.bias = norm_weights.bias;
  params.weight_dtype = norm_weights.dtype;
  params.epsilon = config.norm_epsilon;
  backend.norm(params);
}

void Decoder::Impl::read_residual(const NormWeights& norm_weights) {
  operand_squares = nullptr;
  norm(config.norm_after ? NormWeights{} : norm_weights,
       {.kind = config.norm_after ? NormKind::kNone : config.norm,
        .num_rows = num_rows,
        .y = at(layout.operand),
        .y_dtype = layout.dtypes.operand});
}

LinearParams Decoder::Impl::with(const Matrices& matrices, LinearParams params) const {
  params.in_features = matrices.in_features;
  params.x_stride = matrices.in_features;
  params.x_order = matrices.x_order;
  params.weights = matrices.weights;
  params.num_weights = matrices.num_weights;
  for (int i = 0; i < matrices.num_weights; ++i)
    params.y_stride += matrices.weights[i].out_features;
  if (params.epilogue == LinearEpilogue::kGated) params.y_stride /= 2;
  return params;
}

LinearParams Decoder::Impl::of_operand(const Matrices& matrices, LinearParams params) const {
  params.x = at(layout.operand);
  params.x_dtype = layout.dtypes.operand;
  params.x_squares = operand_squares;
  params.x_epsilon = config.norm_epsilon;
  return with(matrices, params);
}

void Decoder::Impl::add_to_residual(const Matrices& matrices, const NormWeights& after,
                                    const NormWeights* next) {
  LinearParams sum = with(matrices, {.num_rows = num_rows,
                                     .x = at(layout.wide),
                                     .x_dtype = layout.dtypes.operand,
                                     .epilogue = LinearEpilogue::kAccumulate,
                                     .y = at(layout.residual),
                                     .y_dtype = layout.dtypes.residual});
  const bool is_rms = config.norm == NormKind::kRms && !config.norm_after;
  if (is_rms && next != nullptr && next->weight != nullptr && next->bias == nullptr) {
    LinearParams split = sum;
    split.norm = {.weight = next->weight,
                  .weight_dtype = next->dtype,
                  .scaled = at(layout.operand),
                  .squares = at<float>(layout.squares)};
    if (backend.splits_norm(split)) {
      operand_squares = split.norm.squares;
      return backend.linear(split);
    }
  }
  backend.linear(sum);
  if (config.norm_after) {
    norm(after, {.kind = config.norm,
                 .num_rows = num_rows,
                 .y = at(layout.residual),
                 .y_dtype = layout.dtypes.residual});
  }
  if (next != nullptr) read_residual(*next);
}

void Decoder::Impl::embed(const ForwardBatch& batch) {
  num_rows = batch.num_tokens;
  only_logit_rows = false;
  const bool projects = model.project_in.num_weights > 0;
  backend.embed({.num_tokens = batch.num_tokens,
                 .width = config.embedding_size,
                 .ids = batch.tokens,
                 .table = model.token_embedding.data,
                 .table_dtype = model.token_embedding.dtype,
                 .table_rows = config.vocab_size,
                 .y = at(projects ? layout.operand : layout.residual),
                 .y_dtype = projects ? layout.dtypes.operand : layout.dtypes.residual});
  if (projects) {
    backend.linear(with(model.project_in, {.num_rows = batch.num_tokens,
                                           .x = at(layout.operand),
                                           .x_dtype = layout.dtypes.operand,
                                           .y = at(layout.residual),
                                           .y_dtype = layout.dtypes.residual}));
  }
  if (config.position != PositionKind::kLearned) return;
  backend.embed({.num_tokens = batch.num_tokens,
                 .width = config.hidden_size,
                 .ids = batch.positions,
                 .id_offset = config.position_offset,
                 .table = model.position_embedding.data,
                 .table_dtype = model.position_embedding.dtype,
                 .table_rows = config.position_offset + config.max_position_embeddings,
                 .accumulate = true,
                 .y = at(layout.residual),
                 .y_dtype = layout.dtypes.residual});
}

void Decoder::Impl::project_qkv(const ForwardBatch& batch, const KvCacheView& cache,
                                std::int64_t index) {
  const LayerWeights& layer = model.layers[index];
  const LinearParams qkv = of_operand(
      layer.qkv,
      {.num_rows = batch.num_tokens, .y = at(layout.wide), .y_dtype = layout.dtypes.qkv});
  backend.linear_rope_and_cache(qkv, {.num_tokens = batch.num_tokens,
                                      .num_heads = config.num_heads,
                                      .qkv = at(layout.wide),
                                      .qkv_dtype = layout.dtypes.qkv,
                                      .positions = batch.positions,
                                      .slots = batch.slots,
                                      .cos_sin = rope.as<float>(),
                                      .rotary_dim = rope.data() == nullptr ? 0 : rotary_dim(config),
                                      .q_norm = layer.q_norm.weight,
                                      .k_norm = layer.k_norm.weight,
                                      .norm_dtype = layer.q_norm.dtype,
                                      .epsilon = config.norm_epsilon,
                                      .query = at(layout.query),
                                      .query_dtype = layout.dtypes.query,
                                      .cache = cache,
                                      .layer = index});
}

void Decoder::Impl::attention(const ForwardBatch& batch, const KvCacheView& cache,
                              std::int64_t index) {
  float scale = config.attention_scale > 0 ? config.attention_scale
                                           : 1.0f / std::sqrt(static_cast<float>(config.head_dim));
  if (config.attention_scale_by_layer) scale /= static_cast<float>(index + 1);
  const bool windowed = config.layer_uses_window.empty() || config.layer_uses_window[index];
  backend.paged_attention(batch, {.num_heads = config.num_heads,
                                  .query = at(layout.query),
                                  .query_dtype = layout.dtypes.query,
                                  .cache = cache,
                                  .layer = index,
                                  .scale = scale,
                                  .sliding_window = windowed ? config.sliding_window : 0,
                                  .softcap = config.attention_softcap,
                                  .out = at(layout.wide),
                                  .out_dtype = layout.dtypes.operand});
}

void Decoder::Impl::keep_logit_rows(const ForwardBatch& batch) {
  if (batch.num_logit_rows >= batch.num_tokens) return;
  num_rows = batch.num_logit_rows;
  only_logit_rows = true;
  const auto copy = [&](std::int64_t from, std::int64_t to, std::int64_t width, DType dtype,
                        const std::int32_t* rows) {
    backend.norm({.kind = NormKind::kNone,
                  .num_rows = num_rows,
                  .width = width,
                  .x = at(from),
                  .x_dtype = dtype,
                  .rows = rows,
                  .y = at(to),
                  .y_dtype = dtype});
  };
  // Through places that are free between attention and the MLP, as rows are copied all at once.
  copy(layout.wide, layout.query, q_size(), layout.dtypes.operand, batch.logit_rows);
  copy(layout.residual, layout.wide, config.hidden_size, layout.dtypes.residual, batch.logit_rows);
  copy(layout.wide, layout.residual, config.hidden_size, layout.dtypes.residual, nullptr);
  copy(layout.query, layout.wide, q_size(), layout.dtypes.operand, nullptr);
}

void Decoder::Impl::mlp(const LayerWeights& layer, const NormWeights* next) {
  backend.linear(of_operand(
      layer.up, {.num_rows = num_rows,
                 .epilogue = config.gated_mlp ? LinearEpilogue::kGated : LinearEpilogue::kStore,
                 .activation = config.activation,
                 .y = at(layout.wide),
                 .y_dtype = layout.dtypes.operand}));
  add_to_residual(layer.down, layer.mlp_norm, next);
}

const float* Decoder::Impl::logits(const ForwardBatch& batch, std::int32_t first,
                                   std::int32_t count) {
  const bool projects = model.project_out.num_weights > 0;
  const DType last_dtype = projects ? layout.dtypes.operand : layout.head_operand;
  norm(model.final_norm,
       {.kind = config.final_norm ? config.norm : NormKind::kNone,
        .num_rows = count,
        .rows = only_logit_rows ? nullptr : batch.logit_rows + first,
        .y = at(layout.last),
        .y_dtype = last_dtype},
       only_logit_rows ? first : 0);
  if (projects) {
    backend.linear(with(model.project_out, {.num_rows = count,
                                            .x = at(layout.last),
                                            .x_dtype = last_dtype,
                                            .y = at(layout.projected),
                                            .y_dtype = layout.head_operand}));
  }
  backend.linear(with(model.lm_head, {.num_rows = count,
                                      .x = at(projects ? layout.projected : layout.last),
                                      .x_dtype = layout.head_operand,
                                      .y = at(layout.logits),
                                      .y_dtype = DType::kFloat32}));
  return at<float>(layout.logits);
}

Decoder::Decoder(const ModelConfig& config, Weights weights, Backend& backend,
                 const DecoderLimits& limits)
    : impl_(std::make_unique<Impl>(config, std::move(weights), backend, limits)) {}

Decoder::~Decoder() = default;

const float* Decoder::forward(const ForwardBatch& batch, const KvCacheView& cache) {
  impl_->check(batch, cache);
  impl_->embed(batch);
  const std::vector<LayerWeights>& layers = impl_->model.layers;
  impl_->read_residual(layers[0].attention_norm);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerWeights& layer = layers[i];
    const bool is_last = i + 1 == layers.size();
    impl_->project_qkv(batch, cache, static_cast<std::int64_t>(i));
    if (is_last && batch.num_logit_rows == 0) break;  // only the cache is read again
    impl_->attention(batch, cache, static_cast<std::int64_t>(i));
    if (is_last) impl_->keep_logit_rows(batch);
    impl_->add_to_residual(layer.attention_out, layer.attention_norm, &layer.mlp_norm);
    impl_->mlp(layer, is_last ? nullptr : &layers[i + 1].attention_norm);
  }
  return impl_->logits(batch, 0, std::min(batch.num_logit_rows, impl_->limits.max_logit_rows));
}

const float* Decoder::logits(const ForwardBatch& batch, std::int32_t first, std::int32_t count) {
  PAGEDCORE_REQUIRE(first >= 0 && count >= 0 && first + count <= batch.num_logit_rows, "rows ",
                    first, " to ", first + count, " must be among the batch's ",
                    batch.num_logit_rows, " rows of logits");
  PAGEDCORE_REQUIRE(count <= impl_->limits.max_logit_rows, "this decoder gives at most ",
                    impl_->limits.max_logit_rows, " rows of logits at once, got ", count);
  return impl_->logits(batch, first, count);
}

const ModelConfig& Decoder::config() const { return impl_->config; }
const DecoderLimits& Decoder::limits() const { return impl_->limits; }

std::int64_t Decoder::workspace_bytes(const ModelConfig& config, const Weights& weights,
                                      const Backend& backend, const DecoderLimits& limits) {
  const ModelWeights model = bind_checked(config, weights, backend);
  const DecoderLimits checked = checked_limits(config, limits);
  return lay_out_workspace(config, model, backend, checked).bytes +
         rope_table_bytes(config, checked) +
         (backend.is_host() ? 0 : uploaded_bytes(model, weights));
}

DType Decoder::weight_dtype(const ModelConfig& config, const Weights& weights) {
  config.validate();
  return bind_weights(config, weights).dtype;
}

}  // namespace pagedcore
