#include "pagedcore/engine.h"

#include <algorithm>
#include <utility>

#include "cpp/engine/impl.h"
#include "cpp/engine/memory_plan.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace {

// The cache of a plan over its memory.
KvCacheView make_cache(const ModelConfig& model, const EngineConfig& config, DType weights,
                       const MemoryPlan& plan, const Buffer& memory) {
  KvCacheView view = kv_layout(model, config, weights);
  view.data = memory.data();
  view.num_blocks = plan.num_blocks;
  return view;
}

SchedulerConfig scheduler_config(const EngineConfig& config, const MemoryPlan& plan) {
  return {.num_blocks = static_cast<std::int32_t>(plan.num_blocks),
          .block_size = config.block_size,
          .max_num_seqs = config.max_num_seqs,
          .max_num_batched_tokens = config.max_num_batched_tokens,
          .max_model_len = config.max_model_len,
          .enable_prefix_caching = config.enable_prefix_caching,
          .num_host_blocks = static_cast<std::int32_t>(plan.num_host_blocks),
          .preemption_mode = config.preemption_mode,
          .max_waiting = config.max_waiting};
}

std::unique_ptr<Backend> checked(std::unique_ptr<Backend> backend) {
  PAGEDCORE_REQUIRE(backend != nullptr, "backend must not be null");
  return backend;
}

}  // namespace

Engine::Impl::Impl(const ModelConfig& model_config, Weights weights,
                   std::unique_ptr<Backend> model_backend, const EngineConfig& engine_config)
    : model(model_config),
      config(complete_config(model_config, engine_config)),
      backend(checked(std::move(model_backend))),
      checkpoint(std::move(weights)),
      memory(make_memory_plan(model, checkpoint, *backend, config)),
      decoder(model, checkpoint, *backend, decoder_limits(config)),
      kv(*backend, memory.kv_cache_bytes),
      host_blocks(*backend, memory.swap_bytes),
      cache(make_cache(model, config, Decoder::weight_dtype(model, checkpoint), memory, kv)),
      scheduler(scheduler_config(config, memory)),
      batch(config.max_num_batched_tokens, config.max_num_seqs, config.max_model_len,
            config.block_size),
      sample_workspace(*backend,
                       backend->sample_workspace_bytes(model.vocab_size, config.max_num_seqs)),
      samples(*backend, sample_workspace, model.vocab_size, config.max_num_seqs),
      prompt_samples(*backend, sample_workspace, model.vocab_size,
                     decoder_limits(config).max_logit_rows) {
  backend->reserve_steps(step_limits(model, checkpoint, *backend, config));
  if (config.preemption_mode == PreemptionMode::kAuto) measure_swap_speed();
  targets.reserve(config.max_num_seqs);
  updates.reserve(config.max_num_seqs);
}

// Moves a few blocks, whose content does not matter yet, there and back.
void Engine::Impl::measure_swap_speed() {
  constexpr std::int64_t kMaxBlocks = 16;
  const std::int64_t count = std::min({kMaxBlocks, memory.num_blocks, memory.num_host_blocks});
  if (count == 0) return;
  std::vector<BlockCopy> copies;
  for (BlockId block = 0; block < count; ++block) copies.push_back({block, block});
  backend->swap_out(cache, host_blocks.data(), memory.num_host_blocks, copies);
  backend->synchronize();
  const Clock::time_point begin = Clock::now();
  backend->swap_in(cache, host_blocks.data(), memory.num_host_blocks, copies);
  backend->swap_out(cache, host_blocks.data(), memory.num_host_blocks, copies);
  backend->synchronize();
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  costs.swap_blocks_per_s = 2.0 * static_cast<double>(count) / std::max(seconds, 1e-9);
}

Engine::Engine(const ModelConfig& model, Weights weights, std::unique_ptr<Backend> backend,
               const EngineConfig& config)
    : impl_(std::make_unique<Impl>(model, std::move(weights), std::move(backend), config)) {}

Engine::~Engine() = default;

RequestId Engine::add_request(std::span<const TokenId> prompt, const SamplingParams& params,
                              const RequestOptions& options) {
  return impl_->add_request(prompt, params, options);
}

std::span<const SequenceUpdate> Engine::step() { return impl_->step(); }
void Engine::abort(RequestId request_id) { impl_->abort(request_id); }
void Engine::finish_sequence(RequestId request_id, std::int32_t index) {
  impl_->finish_sequence(request_id, index);
}
RequestId Engine::fork(RequestId request_id, std::int32_t index,
                       std::optional<std::int32_t> at_token, const SamplingParams& params,
                       std::span<const TokenId> more_tokens, const RequestOptions& options) {
  impl_->retract();
  return impl_->fork(request_id, index, at_token, params, more_tokens, options);
}

void Engine::hold(RequestId request_id) { impl_->hold(request_id); }
void Engine::release(RequestId request_id) { impl_->release(request_id); }

std::vector<TokenId> Engine::tokens(RequestId request_id, std::int32_t index) const {
  const std::span<const TokenId> tokens = impl_->find_sequence(request_id, index).tokens();
  return {tokens.begin(), tokens.end()};
}

std::vector<std::byte> Engine::save(RequestId request_id, std::optional<std::int32_t> index) const {
  return impl_->save(request_id, index);
}

RequestId Engine::load(std::span<const std::byte> snapshot, const SamplingParams* params,
                       const RequestOptions& options) {
  impl_->retract();
  return impl_->load(snapshot, params, options);
}

void Engine::set_tenant_quota(std::string_view tenant, std::int32_t num_blocks) {
  PAGEDCORE_REQUIRE(num_blocks >= 0, "num_blocks must be 0 (no limit) or more, got ", num_blocks);
  impl_->scheduler.set_tenant_quota(tenant, num_blocks);
}

KvMap Engine::kv_map() const { return impl_->scheduler.kv_map(); }
bool Engine::has_unfinished() const { return impl_->scheduler.has_unfinished(); }
Stats Engine::stats() const { return impl_->stats(); }

std::optional<RequestMetrics> Engine::metrics(RequestId request_id) const {
  const auto live = impl_->requests.find(request_id);
  if (live != impl_->requests.end()) return impl_->metrics_of(*live->second);
  const auto held = impl_->held.find(request_id);
  if (held != impl_->held.end()) return held->second->metrics;
  return std::nullopt;
}

std::vector<std::string> Engine::verify() const { return impl_->verify(); }
const EngineConfig& Engine::config() const { return impl_->config; }
const ModelConfig& Engine::model_config() const { return impl_->model; }
const MemoryPlan& Engine::memory_plan() const { return impl_->memory; }
Backend& Engine::backend() { return *impl_->backend; }

MemoryPlan Engine::plan_memory(const ModelConfig& model, const Weights& weights,
                               const Backend& backend, const EngineConfig& config) {
  return make_memory_plan(model, weights, backend, complete_config(model, config));
}

}  // namespace pagedcore
