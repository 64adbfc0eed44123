#include "pagedcore/engine.h"

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
      memory(make_memory_plan(model, weights, *backend, config)),
      decoder(model, weights, *backend, decoder_limits(config)),
      kv(*backend, memory.kv_cache_bytes),
      host_blocks(*backend, memory.swap_bytes),
      cache(make_cache(model, config, Decoder::weight_dtype(model, weights), memory, kv)),
      scheduler(scheduler_config(config, memory)),
      batch(config.max_num_batched_tokens, config.max_num_seqs, config.max_model_len,
            config.block_size),
      sample_workspace(*backend,
                       backend->sample_workspace_bytes(model.vocab_size, config.max_num_seqs)),
      samples(*backend, sample_workspace, model.vocab_size, config.max_num_seqs),
      prompt_samples(*backend, sample_workspace, model.vocab_size,
                     decoder_limits(config).max_logit_rows) {
  backend->reserve_steps(config.max_num_batched_tokens, config.max_num_seqs, batch.table_stride());
  targets.reserve(config.max_num_seqs);
  updates.reserve(config.max_num_seqs);
}

Engine::Impl::~Impl() = default;

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
bool Engine::has_unfinished() const { return impl_->scheduler.has_unfinished(); }
Stats Engine::stats() const { return impl_->stats(); }

std::optional<RequestMetrics> Engine::metrics(RequestId request_id) const {
  const auto found = impl_->requests.find(request_id);
  if (found == impl_->requests.end()) return std::nullopt;
  return impl_->metrics_of(*found->second);
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
