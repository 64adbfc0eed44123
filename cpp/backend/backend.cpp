#include "pagedcore/backend.h"

#include "pagedcore/error.h"

namespace pagedcore {
namespace {

constexpr std::int64_t kMaxBlockSize = 256;
constexpr std::int64_t kMaxHeadDim = 512;

bool is_float(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat16 || dtype == DType::kBFloat16;
}

void require_positive(const char* op, const char* name, std::int64_t value) {
  PAGEDCORE_REQUIRE(value >= 1, op, ": ", name, " must be at least 1, got ", value);
}

void require_float(const char* op, const char* name, DType dtype) {
  PAGEDCORE_REQUIRE(is_float(dtype), op, ": ", name, " must be float32, float16 or bfloat16, got ",
                    dtype_name(dtype));
}

void require_data(const char* op, const char* name, const void* data) {
  PAGEDCORE_REQUIRE(data != nullptr, op, ": ", name, " must not be null");
}

// Whether an op has rows to work on. Throws where the count is negative.
bool has_rows(const char* op, const char* name, std::int64_t count) {
  PAGEDCORE_REQUIRE(count >= 0, op, ": ", name, " must not be negative, got ", count);
  return count > 0;
}

void check_cache(const char* op, const KvCacheView& cache, std::int64_t layer) {
  require_positive(op, "cache.num_blocks", cache.num_blocks);
  require_positive(op, "cache.num_layers", cache.num_layers);
  require_positive(op, "cache.num_kv_heads", cache.num_kv_heads);
  const std::int64_t size = cache.block_size;
  PAGEDCORE_REQUIRE(size >= 1 && size <= kMaxBlockSize && (size & (size - 1)) == 0, op,
                    ": block_size must be a power of two from 1 to ", kMaxBlockSize, ", got ",
                    size);
  PAGEDCORE_REQUIRE(cache.head_dim >= 8 && cache.head_dim <= kMaxHeadDim && cache.head_dim % 8 == 0,
                    op, ": head_dim must be a multiple of 8 from 8 to ", kMaxHeadDim, ", got ",
                    cache.head_dim);
  PAGEDCORE_REQUIRE(
      is_float(cache.dtype) || cache.dtype == DType::kInt8 || cache.dtype == DType::kFp8E4M3, op,
      ": cache dtype must be float32, float16, bfloat16, int8 or fp8_e4m3, got ",
      dtype_name(cache.dtype));
  PAGEDCORE_REQUIRE(layer >= 0 && layer < cache.num_layers, op, ": layer must be from 0 to ",
                    cache.num_layers - 1, ", got ", layer);
  require_data(op, "cache", cache.data);
}

void check_copies(const char* op, std::span<const BlockCopy> copies, std::int64_t num_src,
                  std::int64_t num_dst) {
  for (const BlockCopy& copy : copies) {
    PAGEDCORE_REQUIRE(copy.src >= 0 && copy.src < num_src, op, ": src block must be from 0 to ",
                      num_src - 1, ", got ", copy.src);
    PAGEDCORE_REQUIRE(copy.dst >= 0 && copy.dst < num_dst, op, ": dst block must be from 0 to ",
                      num_dst - 1, ", got ", copy.dst);
  }
}

void check_weight(const LinearParams& params, const LinearWeight& weight) {
  require_positive("linear", "out_features", weight.out_features);
  require_data("linear", "weight", weight.data);
  PAGEDCORE_REQUIRE(
      weight.dtype == params.weights[0].dtype && weight.layout == params.weights[0].layout,
      "linear: weights of one op must have one dtype and layout, got ", dtype_name(weight.dtype),
      " beside ", dtype_name(params.weights[0].dtype));
  if (weight.bias != nullptr) require_float("linear", "bias", weight.bias_dtype);
  if (is_float(weight.dtype)) {
    PAGEDCORE_REQUIRE(params.x_order == nullptr, "linear: x_order is for quantised weights only");
    return;
  }
  PAGEDCORE_REQUIRE(weight.dtype == DType::kInt8 || weight.dtype == DType::kInt4,
                    "linear: weight dtype must be float32, float16, bfloat16, int8 or int4, got ",
                    dtype_name(weight.dtype));
  PAGEDCORE_REQUIRE(weight.layout == WeightLayout::kOutIn,
                    "linear: quantised weights must be kOutIn");
  require_data("linear", "scales", weight.scales);
  const std::int64_t size = weight.group_size;
  PAGEDCORE_REQUIRE(size >= 32 && size <= 1024 && (size & (size - 1)) == 0 &&
                        params.in_features % size == 0 && size == params.weights[0].group_size,
                    "linear: group_size must be a power of two from 32 to 1024 that divides "
                    "in_features ",
                    params.in_features, ", the same for all weights of an op, got ", size);
}

}  // namespace

Buffer::Buffer(Backend& backend, std::int64_t bytes)
    : backend_(&backend), data_(backend.do_allocate(bytes)), bytes_(bytes) {
  backend.allocated_bytes_ += bytes;
}

Buffer::~Buffer() {
  if (backend_ == nullptr) return;
  backend_->do_free(data_);
  backend_->allocated_bytes_ -= bytes_;
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(backend_, other.backend_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void Backend::run(const ForwardBatch&, const std::function<void()>& forward) { forward(); }

void Backend::embed(const EmbedParams& params) {
  if (!has_rows("embed", "num_tokens", params.num_tokens)) return;
  require_positive("embed", "width", params.width);
  require_positive("embed", "table_rows", params.table_rows);
  require_float("embed", "table", params.table_dtype);
  require_float("embed", "y", params.y_dtype);
  require_data("embed", "ids", params.ids);
  require_data("embed", "table", params.table);
  require_data("embed", "y", params.y);
  do_embed(params);
}

void Backend::norm(const NormParams& params) {
  if (!has_rows("norm", "num_rows", params.num_rows)) return;
  require_positive("norm", "width", params.width);
  require_float("norm", "x", params.x_dtype);
  require_float("norm", "y", params.y_dtype);
  if (params.weight != nullptr || params.bias != nullptr) {
    require_float("norm", "weight", params.weight_dtype);
  }
  PAGEDCORE_REQUIRE(params.epsilon >= 0.0f, "norm: epsilon must not be negative, got ",
                    params.epsilon);
  require_data("norm", "x", params.x);
  require_data("norm", "y", params.y);
  PAGEDCORE_REQUIRE(
      params.x != params.y || (params.rows == nullptr && params.x_dtype == params.y_dtype),
      "norm: y may be x only without rows and with one dtype");
  do_norm(params);
}

namespace {

void check_linear(const Backend& backend, const LinearParams& params) {
  require_positive("linear", "in_features", params.in_features);
  require_float("linear", "x", params.x_dtype);
  require_float("linear", "y", params.y_dtype);
  PAGEDCORE_REQUIRE(params.num_weights >= 1 && params.num_weights <= 3,
                    "linear: num_weights must be from 1 to 3, got ", params.num_weights);
  std::int64_t width = 0;
  for (int i = 0; i < params.num_weights; ++i) {
    check_weight(params, params.weights[i]);
    width += params.weights[i].out_features;
  }
  if (params.epilogue == LinearEpilogue::kGated) {
    PAGEDCORE_REQUIRE(
        params.num_weights == 2 && params.weights[0].out_features == params.weights[1].out_features,
        "linear: a gated op needs two weights with equal out_features, got ", params.num_weights);
    width /= 2;
  }
  PAGEDCORE_REQUIRE(params.x_stride >= params.in_features,
                    "linear: x_stride must be at least in_features ", params.in_features, ", got ",
                    params.x_stride);
  PAGEDCORE_REQUIRE(params.y_stride >= width, "linear: y_stride must be at least ", width, ", got ",
                    params.y_stride);
  require_data("linear", "x", params.x);
  require_data("linear", "y", params.y);
  const bool begins = params.norm.weight != nullptr;
  if (!begins && params.x_squares == nullptr) return;
  PAGEDCORE_REQUIRE(backend.splits_norm(params),
                    "linear: this op does not split norms with these parameters on ",
                    backend.description());
  if (!begins) return;
  require_float("linear", "norm.weight", params.norm.weight_dtype);
  require_data("linear", "norm.scaled", params.norm.scaled);
  require_data("linear", "norm.squares", params.norm.squares);
}

void check_rope_and_cache(const RopeAndCacheParams& params) {
  const char* op = "rope_and_cache";
  PAGEDCORE_REQUIRE(params.num_heads >= 0, op, ": num_heads must not be negative, got ",
                    params.num_heads);
  check_cache(op, params.cache, params.layer);
  require_float(op, "qkv", params.qkv_dtype);
  require_data(op, "qkv", params.qkv);
  require_data(op, "slots", params.slots);
  if (params.num_heads > 0) {
    require_float(op, "query", params.query_dtype);
    require_data(op, "query", params.query);
  }
  if (params.q_norm != nullptr || params.k_norm != nullptr) {
    require_float(op, "q_norm and k_norm", params.norm_dtype);
  }
  if (params.cos_sin == nullptr) return;
  require_data(op, "positions", params.positions);
  PAGEDCORE_REQUIRE(params.rotary_dim >= 2 && params.rotary_dim % 2 == 0 &&
                        params.rotary_dim <= params.cache.head_dim,
                    op, ": rotary_dim must be even and from 2 to head_dim ", params.cache.head_dim,
                    ", got ", params.rotary_dim);
}

}  // namespace

void Backend::linear(const LinearParams& params) {
  if (!has_rows("linear", "num_rows", params.num_rows)) return;
  check_linear(*this, params);
  do_linear(params);
}

void Backend::rope_and_cache(const RopeAndCacheParams& params) {
  if (!has_rows("rope_and_cache", "num_tokens", params.num_tokens)) return;
  check_rope_and_cache(params);
  do_rope_and_cache(params);
}

void Backend::linear_rope_and_cache(const LinearParams& qkv, const RopeAndCacheParams& rope) {
  const char* op = "linear_rope_and_cache";
  PAGEDCORE_REQUIRE(qkv.num_rows == rope.num_tokens, op, ": num_rows must be num_tokens ",
                    rope.num_tokens, ", got ", qkv.num_rows);
  if (!has_rows(op, "num_tokens", rope.num_tokens)) return;
  check_linear(*this, qkv);
  check_rope_and_cache(rope);
  PAGEDCORE_REQUIRE(qkv.y == rope.qkv && qkv.y_dtype == rope.qkv_dtype, op,
                    ": rope's qkv must be linear's y");
  do_linear_rope_and_cache(qkv, rope);
}

void Backend::do_linear_rope_and_cache(const LinearParams& qkv, const RopeAndCacheParams& rope) {
  do_linear(qkv);
  do_rope_and_cache(rope);
}

void Backend::paged_attention(const ForwardBatch& batch, const PagedAttentionParams& params) {
  const char* op = "paged_attention";
  if (!has_rows(op, "num_tokens", batch.num_tokens)) return;
  check_cache(op, params.cache, params.layer);
  PAGEDCORE_REQUIRE(params.num_heads >= 1 && params.num_heads % params.cache.num_kv_heads == 0, op,
                    ": num_heads must be a multiple of num_kv_heads ", params.cache.num_kv_heads,
                    ", got ", params.num_heads);
  require_float(op, "query", params.query_dtype);
  require_float(op, "out", params.out_dtype);
  PAGEDCORE_REQUIRE(params.sliding_window >= 0, op, ": sliding_window must not be negative, got ",
                    params.sliding_window);
  PAGEDCORE_REQUIRE(params.softcap >= 0.0f, op, ": softcap must not be negative, got ",
                    params.softcap);
  require_positive(op, "num_seqs", batch.num_seqs);
  require_data(op, "query", params.query);
  require_data(op, "out", params.out);
  require_data(op, "query_starts", batch.query_starts);
  require_data(op, "context_lens", batch.context_lens);
  require_data(op, "table_rows", batch.table_rows);
  require_data(op, "block_tables", batch.block_tables);
  do_paged_attention(batch, params);
}

void Backend::gated_activation(const GatedActivationParams& params) {
  if (!has_rows("gated_activation", "num_rows", params.num_rows)) return;
  require_positive("gated_activation", "width", params.width);
  require_float("gated_activation", "gate_up", params.dtype);
  require_float("gated_activation", "y", params.y_dtype);
  require_data("gated_activation", "gate_up", params.gate_up);
  require_data("gated_activation", "y", params.y);
  do_gated_activation(params);
}

namespace {

void check_sample_row(const SampleRow& row, const SampleParams& params) {
  const auto check_token = [&](const char* name, TokenId token) {
    PAGEDCORE_REQUIRE(token >= 0 && token < params.vocab_size, "sample: ", name,
                      " must hold tokens from 0 to ", params.vocab_size - 1, ", got ", token);
  };
  PAGEDCORE_REQUIRE(row.logit_row >= 0 && row.logit_row < params.num_rows,
                    "sample: logit_row must be from 0 to ", params.num_rows - 1, ", got ",
                    row.logit_row);
  PAGEDCORE_REQUIRE(row.given_token < params.vocab_size,
                    "sample: given_token must be below vocab_size ", params.vocab_size, ", got ",
                    row.given_token);
  PAGEDCORE_REQUIRE(row.num_top >= -1 && row.num_top <= params.outputs.max_top,
                    "sample: num_top must be from -1 to max_top ", params.outputs.max_top, ", got ",
                    row.num_top);
  for (const SeenToken& seen : row.seen) check_token("seen", seen.token);
  for (const LogitBias& bias : row.bias) check_token("bias", bias.token);
  for (TokenId token : row.allowed) check_token("allowed", token);
  for (TokenId token : row.banned) check_token("banned", token);
}

void check_sample(const Backend& backend, const SampleParams& params) {
  require_positive("sample", "num_rows", params.num_rows);
  require_positive("sample", "vocab_size", params.vocab_size);
  require_data("sample", "logits", params.logits);
  const std::size_t count = params.samples.size();
  const SampleOutputs& outputs = params.outputs;
  PAGEDCORE_REQUIRE(outputs.tokens.size() >= count, "sample: outputs.tokens must have room for ",
                    count, " tokens, got ", outputs.tokens.size());
  require_data("sample", "workspace", params.workspace);
  const std::int64_t needed =
      backend.sample_workspace_bytes(params.vocab_size, static_cast<std::int32_t>(count));
  PAGEDCORE_REQUIRE(params.workspace_bytes >= needed, "sample: workspace_bytes must be at least ",
                    needed, ", got ", params.workspace_bytes);
  for (const SampleRow& row : params.samples) check_sample_row(row, params);
}

}  // namespace

void Backend::sample(const SampleParams& params) {
  if (params.samples.empty()) return;
  check_sample(*this, params);
  do_sample(params);
}

void Backend::start_sampling(const SampleParams& params) {
  if (params.samples.empty()) return;
  check_sample(*this, params);
  do_start_sampling(params);
}

void Backend::copy_blocks(const KvCacheView& cache, std::span<const BlockCopy> copies) {
  if (copies.empty()) return;
  check_cache("copy_blocks", cache, 0);
  check_copies("copy_blocks", copies, cache.num_blocks, cache.num_blocks);
  do_copy_blocks(cache, copies);
}

void Backend::swap_out(const KvCacheView& cache, void* host, std::int64_t host_blocks,
                       std::span<const BlockCopy> copies) {
  if (copies.empty()) return;
  check_cache("swap_out", cache, 0);
  require_data("swap_out", "host", host);
  check_copies("swap_out", copies, cache.num_blocks, host_blocks);
  do_swap_out(cache, host, copies);
}

void Backend::swap_in(const KvCacheView& cache, const void* host, std::int64_t host_blocks,
                      std::span<const BlockCopy> copies) {
  if (copies.empty()) return;
  check_cache("swap_in", cache, 0);
  require_data("swap_in", "host", host);
  check_copies("swap_in", copies, host_blocks, cache.num_blocks);
  do_swap_in(cache, host, copies);
}

}  // namespace pagedcore
