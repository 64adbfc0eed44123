// Memory that the host cannot read: weights are uploaded, bytes are as foretold, what the backend
// keeps for itself included, results are those of the host, also where the device splits norms.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pagedcore/backend.h"
#include "pagedcore/decoder.h"
#include "pagedcore/engine.h"
#include "pagedcore/error.h"
#include "tests/native/check.h"

namespace pagedcore {
namespace {

// The CPU's ops behind a backend that claims to be a device.
class FakeDevice final : public Backend {
 public:
  std::string description() const override { return "fake"; }
  bool is_host() const override { return false; }
  ActivationDTypes activation_dtypes(DType weights) const override {
    return cpu_->activation_dtypes(weights);
  }
  void upload(void* dst, const void* src, std::int64_t bytes) override {
    cpu_->upload(dst, src, bytes);
  }
  void download(void* dst, const void* src, std::int64_t bytes) override {
    cpu_->download(dst, src, bytes);
  }
  std::int64_t step_bytes(const StepLimits& limits) const override {
    return limits.max_tokens * limits.gated_width + limits.max_seqs * limits.table_stride;
  }
  void reserve_steps(const StepLimits& limits) override {
    steps_ = Buffer(*this, step_bytes(limits));
    reserved = limits;
  }
  std::int64_t sample_workspace_bytes(std::int64_t, std::int32_t) const override { return 0; }
  ForwardBatch stage(const ForwardBatch& batch) override { return batch; }
  void* allocate_host(std::int64_t bytes) override { return cpu_->allocate_host(bytes); }
  void free_host(void* data) noexcept override { cpu_->free_host(data); }

  bool splits_norm(const LinearParams& params) const override {
    return may_split_norms && params.x_dtype == DType::kFloat32;
  }

  bool may_split_norms = false;
  int num_norms = 0;                  // that were called, copies of rows aside
  std::vector<LinearParams> linears;  // every one that was called
  StepLimits reserved;

 private:
  void* do_allocate(std::int64_t bytes) override { return cpu_->allocate_host(bytes); }
  void do_free(void* data) noexcept override { cpu_->free_host(data); }
  void do_embed(const EmbedParams& params) override { cpu_->embed(params); }
  void do_norm(const NormParams& params) override {
    if (params.kind != NormKind::kNone) ++num_norms;
    cpu_->norm(params);
  }
  void do_linear(const LinearParams& params) override {
    linears.push_back(params);
    LinearParams plain = params;
    plain.norm = {};
    plain.x_squares = nullptr;
    std::vector<float> normed;
    if (params.x_squares != nullptr) {
      normed = end_norm(params);
      plain.x = normed.data();
    }
    cpu_->linear(plain);
    if (params.norm.weight != nullptr) begin_norm(params);
  }
  static void begin_norm(const LinearParams& p) {
    const std::int64_t width = p.weights[0].out_features;
    const std::int64_t num_sums = (width + SplitNorm::kWidth - 1) / SplitNorm::kWidth;
    std::fill_n(p.norm.squares, p.num_rows * num_sums, 0.0f);
    for (std::int64_t i = 0; i < p.num_rows * width; ++i) {
      const std::int64_t row = i / width, column = i % width;
      const float y = static_cast<const float*>(p.y)[row * p.y_stride + column];
      static_cast<float*>(p.norm.scaled)[i] = y * static_cast<const float*>(p.norm.weight)[column];
      p.norm.squares[row * num_sums + column / SplitNorm::kWidth] += y * y;
    }
  }
  static std::vector<float> end_norm(const LinearParams& p) {
    const std::int64_t width = p.in_features;
    const std::int64_t num_sums = (width + SplitNorm::kWidth - 1) / SplitNorm::kWidth;
    std::vector<float> normed(p.num_rows * width);
    for (std::int64_t row = 0; row < p.num_rows; ++row) {
      float sum = 0.0f;
      for (std::int64_t i = 0; i < num_sums; ++i) sum += p.x_squares[row * num_sums + i];
      for (std::int64_t i = row * width; i < (row + 1) * width; ++i) {
        normed[i] = static_cast<const float*>(p.x)[i] / std::sqrt(sum / width + p.x_epsilon);
      }
    }
    return normed;
  }
  void do_rope_and_cache(const RopeAndCacheParams& params) override {
    cpu_->rope_and_cache(params);
  }
  void do_paged_attention(const ForwardBatch& batch, const PagedAttentionParams& params) override {
    cpu_->paged_attention(batch, params);
  }
  void do_gated_activation(const GatedActivationParams& params) override {
    cpu_->gated_activation(params);
  }
  void do_sample(const SampleParams& params) override { cpu_->sample(params); }
  void do_copy_blocks(const KvCacheView&, std::span<const BlockCopy>) override {}
  void do_swap_out(const KvCacheView&, void*, std::span<const BlockCopy>) override {}
  void do_swap_in(const KvCacheView&, const void*, std::span<const BlockCopy>) override {}

  std::unique_ptr<Backend> cpu_ = make_cpu_backend({.num_threads = 1, .isa = ""});
  Buffer steps_;
};

constexpr std::int64_t kHidden = 64;
constexpr std::int64_t kVocab = 96;

ModelConfig small_llama() {
  ModelConfig config;
  config.architecture = "LlamaForCausalLM";
  config.vocab_size = kVocab;
  config.hidden_size = config.embedding_size = kHidden;
  config.intermediate_size = 128;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.max_position_embeddings = 64;
  config.tied_embeddings = true;
  return config;
}

// Float32 tensors that own their memory.
struct Checkpoint {
  std::map<std::string, std::vector<float>> data;
  Weights weights;

  void add(const std::string& name, std::int64_t rows, std::int64_t columns) {
    std::vector<float>& values = data[name];
    values.resize(rows * columns);
    std::uint32_t random = static_cast<std::uint32_t>(data.size());
    for (float& value : values) {
      random = random * 1664525u + 1013904223u;
      value = static_cast<float>(random >> 8) / (1 << 24) - 0.5f;
    }
    TensorView view{.data = values.data(), .rank = columns > 1 ? 2 : 1, .shape = {rows, columns}};
    weights.tensors[name] = view;
  }
};

Checkpoint make_checkpoint() {
  Checkpoint checkpoint;
  checkpoint.add("model.embed_tokens.weight", kVocab, kHidden);
  checkpoint.add("model.norm.weight", kHidden, 1);
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    checkpoint.add(layer + "input_layernorm.weight", kHidden, 1);
    checkpoint.add(layer + "post_attention_layernorm.weight", kHidden, 1);
    checkpoint.add(layer + "self_attn.q_proj.weight", 64, kHidden);
    checkpoint.add(layer + "self_attn.k_proj.weight", 32, kHidden);
    checkpoint.add(layer + "self_attn.v_proj.weight", 32, kHidden);
    checkpoint.add(layer + "self_attn.o_proj.weight", kHidden, 64);
    checkpoint.add(layer + "mlp.gate_proj.weight", 128, kHidden);
    checkpoint.add(layer + "mlp.up_proj.weight", 128, kHidden);
    checkpoint.add(layer + "mlp.down_proj.weight", kHidden, 128);
  }
  return checkpoint;
}

std::vector<float> run(Decoder& decoder, Backend& backend) {
  const std::vector<std::int32_t> tokens = {3, 50, 95, 0, 7};
  const std::vector<std::int32_t> positions = {0, 1, 2, 3, 4};
  const std::vector<std::int64_t> slots = {4, 5, 6, 7, 0};
  const std::vector<std::int32_t> starts = {0, 5};
  const std::vector<std::int32_t> zeros = {0};
  const std::vector<BlockId> table = {1, 0};
  const std::vector<std::int32_t> rows = {1, 4};
  ForwardBatch batch;
  batch.num_tokens = 5;
  batch.num_seqs = 1;
  batch.num_logit_rows = 2;
  batch.max_query_len = batch.max_context_len = 5;
  batch.tokens = tokens.data();
  batch.positions = positions.data();
  batch.slots = slots.data();
  batch.query_starts = starts.data();
  batch.context_lens = zeros.data();
  batch.table_rows = zeros.data();
  batch.block_tables = table.data();
  batch.table_stride = 2;
  batch.logit_rows = rows.data();

  KvCacheView cache{
      .num_blocks = 2, .num_layers = 2, .num_kv_heads = 2, .block_size = 4, .head_dim = 16};
  const Buffer memory(backend, cache.num_blocks * cache.block_bytes());
  cache.data = memory.data();
  std::vector<float> logits(2 * kVocab);
  backend.download(logits.data(), decoder.forward(backend.stage(batch), cache),
                   std::ssize(logits) * 4);
  return logits;
}

bool adjoin(const LinearWeight& first, const LinearWeight& second, std::int64_t in_features) {
  return static_cast<const char*>(first.data) + first.out_features * in_features * 4 == second.data;
}

void test_device_gives_the_logits_of_the_host_and_needs_no_host_weights() {
  Checkpoint checkpoint = make_checkpoint();
  const ModelConfig config = small_llama();
  const DecoderLimits limits{.max_tokens = 8, .max_logit_rows = 4};

  const std::unique_ptr<Backend> host = make_cpu_backend({.num_threads = 1, .isa = ""});
  Decoder on_host(config, checkpoint.weights, *host, limits);
  const std::vector<float> expected = run(on_host, *host);
  CHECK(expected[0] != expected[1]);

  FakeDevice device;
  const std::int64_t foretold =
      Decoder::workspace_bytes(config, checkpoint.weights, device, limits);
  std::int64_t checkpoint_bytes = 0;
  {
    Decoder decoder(config, checkpoint.weights, device, limits);
    CHECK(device.allocated_bytes() == foretold);
    for (auto& [name, values] : checkpoint.data) {
      checkpoint_bytes += std::ssize(values) * 4;
      std::memset(values.data(), 0xff, values.size() * 4);  // NaN
    }
    CHECK(run(decoder, device) == expected);
  }
  CHECK(foretold >= host->allocated_bytes() + checkpoint_bytes);
  CHECK(device.allocated_bytes() == 0);

  const LinearParams& qkv = device.linears[0];
  CHECK(qkv.num_weights == 3);
  CHECK(adjoin(qkv.weights[0], qkv.weights[1], kHidden));
  CHECK(adjoin(qkv.weights[1], qkv.weights[2], kHidden));
  const LinearParams& up = device.linears[2];
  CHECK(up.epilogue == LinearEpilogue::kGated);
  CHECK(adjoin(up.weights[0], up.weights[1], kHidden));
}

void test_norms_that_the_device_splits_give_the_logits_of_the_host() {
  const Checkpoint checkpoint = make_checkpoint();
  const DecoderLimits limits{.max_tokens = 8, .max_logit_rows = 4};
  FakeDevice whole, split;
  split.may_split_norms = true;
  Decoder plain(small_llama(), checkpoint.weights, whole, limits);
  Decoder splitting(small_llama(), checkpoint.weights, split, limits);
  const std::vector<float> expected = run(plain, whole), actual = run(splitting, split);
  CHECK(whole.num_norms == 5);
  CHECK(split.num_norms == 2);  // before the first layer and after the last
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CHECK(std::fabs(actual[i] - expected[i]) <= 1e-5f * (1.0f + std::fabs(expected[i])));
  }
}

void test_the_memory_plan_counts_what_the_backend_keeps_for_itself() {
  const Checkpoint checkpoint = make_checkpoint();
  EngineConfig config;
  config.num_blocks = 5;
  config.block_size = 8;
  config.max_num_seqs = 3;
  config.max_num_batched_tokens = 7;
  config.max_model_len = 20;
  auto owned = std::make_unique<FakeDevice>();
  FakeDevice& device = *owned;
  const MemoryPlan plan = Engine::plan_memory(small_llama(), checkpoint.weights, device, config);
  CHECK(device.allocated_bytes() == 0);
  Engine engine(small_llama(), checkpoint.weights, std::move(owned), config);
  const StepLimits expected{.max_tokens = 7,
                            .max_seqs = 3,
                            .table_stride = 3,
                            .block_size = 8,
                            .num_heads = 4,
                            .head_dim = 16,
                            .gated_width = 128};
  CHECK(device.reserved == expected);
  CHECK(device.step_bytes(expected) == 7 * 128 + 3 * 3);
  CHECK(device.allocated_bytes() == plan.total_bytes);
}

void test_an_int8_cache_is_refused_on_a_device_before_anything_is_allocated() {
  const Checkpoint checkpoint = make_checkpoint();
  EngineConfig config;
  config.num_blocks = 5;
  config.kv_dtype = DType::kInt8;
  std::string message;
  try {
    Engine engine(small_llama(), checkpoint.weights, std::make_unique<FakeDevice>(), config);
  } catch (const InvalidArgument& error) {
    message = error.what();
  }
  CHECK(message.find("kv_dtype int8 runs on the CPU only, got fake") != std::string::npos);
}

}  // namespace
}  // namespace pagedcore

int main() {
  pagedcore::test_device_gives_the_logits_of_the_host_and_needs_no_host_weights();
  pagedcore::test_norms_that_the_device_splits_give_the_logits_of_the_host();
  pagedcore::test_the_memory_plan_counts_what_the_backend_keeps_for_itself();
  pagedcore::test_an_int8_cache_is_refused_on_a_device_before_anything_is_allocated();
}
