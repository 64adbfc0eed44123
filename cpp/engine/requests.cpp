#include <algorithm>

#include "cpp/base/philox.h"
#include "cpp/base/reserve.h"
#include "cpp/engine/impl.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace {

std::int64_t microseconds_since(Clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count();
}

std::int32_t max_total_tokens(std::int32_t num_prompt_tokens, const SamplingParams& params,
                              std::int32_t max_model_len) {
  const std::int64_t wanted =
      std::int64_t{num_prompt_tokens} + params.max_tokens.value_or(max_model_len);
  return static_cast<std::int32_t>(std::min<std::int64_t>(wanted, max_model_len));
}

// What can be derived from the parameters once, for all steps.
void derive(RequestState& request, const EngineConfig& config, std::int64_t vocab_size) {
  const SamplingParams& params = request.params;
  request.wants_logprobs = params.logprobs >= 0 || params.best_of > params.n;
  request.updates_at_end = params.best_of > params.n || params.beam_width > 0;
  for (const auto& [token, bias] : params.logit_bias) request.bias.push_back({token, bias});
  request.stop_tokens = params.stop_token_ids;
  if (!params.ignore_eos) {
    for (TokenId token : config.eos_token_ids) {
      if (token < vocab_size) request.stop_tokens.push_back(token);
    }
  }
  std::ranges::sort(request.stop_tokens);
  const auto repeated = std::ranges::unique(request.stop_tokens);
  request.stop_tokens.erase(repeated.begin(), repeated.end());
  request.banned = params.bad_token_ids;
  request.banned_at_first = request.banned;
  request.banned_at_first.insert(request.banned_at_first.end(), request.stop_tokens.begin(),
                                 request.stop_tokens.end());
}

}  // namespace

void Engine::Impl::require_valid(std::span<const TokenId> prompt,
                                 const SamplingParams& params) const {
  params.validate(model.vocab_size);
  PAGEDCORE_REQUIRE(!prompt.empty(), "prompt must have at least one token, got none");
  PAGEDCORE_REQUIRE(static_cast<std::int64_t>(prompt.size()) < config.max_model_len,
                    "prompt must be shorter than max_model_len (", config.max_model_len,
                    "), so that a token can follow it; got ", prompt.size(), " tokens");
  for (std::size_t i = 0; i < prompt.size(); ++i) {
    PAGEDCORE_REQUIRE(prompt[i] >= 0 && prompt[i] < model.vocab_size,
                      "prompt must hold token ids from 0 to ", model.vocab_size - 1, ", got ",
                      prompt[i], " at position ", i);
  }
  const std::int32_t num_sequences = std::max({params.n, params.best_of, params.beam_width});
  const std::int32_t limit = std::min(config.max_num_seqs, config.max_num_batched_tokens);
  PAGEDCORE_REQUIRE(num_sequences <= limit,
                    params.beam_width > 0 ? "beam_width" : (params.best_of > 0 ? "best_of" : "n"),
                    " must be at most ", limit,
                    ", the smaller of max_num_seqs and max_num_batched_tokens, got ",
                    num_sequences);
}

RequestId Engine::Impl::add_request(std::span<const TokenId> prompt, const SamplingParams& params,
                                    const RequestOptions& options) {
  require_valid(prompt, params);
  auto made = make_request(static_cast<std::int32_t>(prompt.size()), params, options);
  return start(std::move(made), [&](RequestState& request) {
    link(request.add_sequence(), scheduler.add(spec_of(request, prompt)));
  });
}

std::unique_ptr<RequestState> Engine::Impl::make_request(std::int32_t num_prompt_tokens,
                                                         const SamplingParams& params,
                                                         const RequestOptions& options) const {
  auto request = std::make_unique<RequestState>();
  request->id = next_request_id;
  request->params = params;
  request->options = options;
  request->seed = params.seed.value_or(philox_stream(config.seed, 1 + request->id));
  request->num_prompt_tokens = num_prompt_tokens;
  request->metrics.num_prompt_tokens = num_prompt_tokens;
  request->max_total_tokens = max_total_tokens(num_prompt_tokens, params, config.max_model_len);
  request->num_sequences = std::max({params.n, params.best_of, params.beam_width});
  derive(*request, config, model.vocab_size);
  request->is_held = options.hold;
  if (params.beam_width > 0) {
    request->beams = std::make_unique<BeamSearch>(
        params, static_cast<std::int32_t>(request->stop_tokens.size()), num_prompt_tokens,
        request->max_total_tokens - num_prompt_tokens);
    request->parents.reserve(params.beam_width);
    request->candidates.reserve(std::int64_t{params.beam_width} * request->num_beam_candidates());
    const std::int32_t offered = request->num_beam_candidates();
    PAGEDCORE_REQUIRE(offered <= model.vocab_size, "beam_width must be at most ",
                      model.vocab_size * params.beam_width / offered, " with ",
                      request->stop_tokens.size(), " stop tokens and a vocabulary of ",
                      model.vocab_size, ", got ", params.beam_width);
  }
  if (request->wants_prompt_logprobs()) {
    request->prompt_logprobs.resize(std::int64_t{num_prompt_tokens - 1} *
                                    request->prompt_logprobs_per_token());
  }
  return request;
}

GroupSpec Engine::Impl::spec_of(const RequestState& request,
                                std::span<const TokenId> prompt) const {
  return {.request_id = request.id,
          .prompt = prompt,
          .num_sequences = request.num_sequences,
          .max_total_tokens = request.max_total_tokens,
          .priority = request.options.priority,
          .tenant = request.options.tenant,
          .cache_salt = request.options.cache_salt,
          .read_prefix_cache = !request.wants_prompt_logprobs()};
}

// Takes what a request needs of memory beforehand, so that nothing fails once it is queued.
void Engine::Impl::reserve_for(const RequestState& request) {
  std::int32_t num_top = std::max({request.params.logprobs, request.params.prompt_logprobs, 0});
  if (request.beams != nullptr) num_top = std::max(num_top, request.num_beam_candidates());
  samples.reserve_top(num_top);
  prompt_samples.reserve_top(num_top);
  const std::size_t num_known = requests.size() + held.size() + ended.size() + 1;
  requests.reserve(num_known);
  held.reserve(num_known);
  reserve_more(ended, num_known - ended.size());
}

RequestId Engine::Impl::start(std::unique_ptr<RequestState> made,
                              const std::function<void(RequestState&)>& enqueue) {
  reserve_for(*made);
  made->reserve_sequences(1);
  const RequestId id = made->id;
  RequestState& request = *made;
  requests.emplace(id, std::move(made));
  try {
    enqueue(request);
  } catch (...) {
    requests.erase(id);
    throw;
  }
  request.arrival = Clock::now();
  next_request_id = id + 1;
  ++counters.num_requests;
  counters.num_prompt_tokens += request.num_prompt_tokens;
  return id;
}

void Engine::Impl::abort(RequestId id) {
  release(id);
  const auto found = requests.find(id);
  if (found == requests.end()) return;
  RequestState& request = *found->second;
  scheduler.abort(id);
  for (const auto& state : request.sequences) {
    leave_lane(*state);
    state->sequence = nullptr;
  }
  end_request(request);
}

void Engine::Impl::finish_sequence(RequestId id, std::int32_t index) {
  const auto found = requests.find(id);
  if (found == requests.end()) return;
  RequestState& request = *found->second;
  PAGEDCORE_REQUIRE(!request.updates_at_end, "finish_sequence: request ", id,
                    " reports its sequences when all are done: it uses best_of or beam_width");
  PAGEDCORE_REQUIRE(!request.awaits_first_token(), "finish_sequence: the ", request.num_sequences,
                    " sequences of request ", id, " part with their first tokens, still to come");
  if (index < 0 || index >= static_cast<std::int32_t>(request.sequences.size())) return;
  SequenceState& state = *request.sequences[index];
  if (state.sequence == nullptr) return;
  finish(state, FinishReason::kStop, -1);
  if (request.num_unfinished == 0) end_request(request);
}

RequestMetrics Engine::Impl::metrics_of(const RequestState& request) const {
  RequestMetrics metrics = request.metrics;
  metrics.total_us = microseconds_since(request.arrival);
  return metrics;
}

Stats Engine::Impl::stats() const {
  const SchedulerStats kv_stats = scheduler.stats();
  const std::int32_t block_size = config.block_size;
  Stats stats = counters;
  stats.num_waiting = kv_stats.waiting_groups;
  stats.num_running = kv_stats.running_groups;
  stats.num_preempted = kv_stats.resumed_groups;
  stats.num_held = static_cast<std::int32_t>(held.size());
  stats.num_blocks = static_cast<std::int32_t>(memory.num_blocks);
  stats.used_blocks =
      static_cast<std::int32_t>((kv_stats.used_slots + kv_stats.reserved_slots) / block_size);
  stats.cached_blocks = static_cast<std::int32_t>(kv_stats.cached_slots / block_size);
  stats.free_blocks = static_cast<std::int32_t>(kv_stats.free_slots / block_size);
  stats.total_slots = kv_stats.total_slots;
  stats.used_slots = kv_stats.used_slots;
  stats.reserved_slots = kv_stats.reserved_slots;
  stats.cached_slots = kv_stats.cached_slots;
  stats.free_slots = kv_stats.free_slots;
  stats.saved_slots = std::int64_t{kv_stats.logical_blocks - kv_stats.physical_blocks} * block_size;
  stats.used_host_blocks = kv_stats.host_blocks_used;
  stats.num_prefix_queried_tokens = kv_stats.prompt_tokens_queried;
  stats.num_prefix_hit_tokens = kv_stats.prompt_tokens_hit;
  stats.num_recomputed_tokens = kv_stats.recomputed_tokens;
  stats.num_tail_preemptions = kv_stats.tail_preemptions;
  stats.num_recompute_preemptions = kv_stats.recompute_preemptions;
  stats.num_swap_preemptions = kv_stats.swap_preemptions;
  stats.num_copied_blocks = kv_stats.copied_blocks;
  stats.num_swapped_out_blocks = kv_stats.swapped_out_blocks;
  stats.num_swapped_in_blocks = kv_stats.swapped_in_blocks;
  return stats;
}

std::vector<std::string> Engine::Impl::verify() const {
  std::vector<std::string> report = scheduler.check_invariants();
  const auto complain = [&](const auto&... parts) {
    report.push_back(detail::concat("engine: ", parts...));
  };
  for (const auto& [id, request] : requests) {
    std::int32_t num_unfinished = 0;
    for (const auto& state : request->sequences) {
      const Sequence* sequence = state->sequence;
      if (sequence == nullptr) continue;
      ++num_unfinished;
      if (sequence->user != state.get()) complain("request ", id, " lost sequence ", state->index);
      if (sequence->request_id() != id) {
        complain("request ", id, " holds a sequence of request ", sequence->request_id());
      }
      if (sequence->num_tokens() > request->max_total_tokens) {
        complain("request ", id, " has ", sequence->num_tokens(), " tokens of at most ",
                 request->max_total_tokens);
      }
    }
    if (num_unfinished == 0) complain("request ", id, " has ended but is still there");
    if (request->beams == nullptr && !request->awaits_first_token() &&
        num_unfinished != request->num_unfinished) {
      complain("request ", id, " counts ", request->num_unfinished, " unfinished sequences, has ",
               num_unfinished);
    }
  }
  for (const auto& [id, request] : held) {
    for (const auto& state : request->sequences) {
      if (state->held != nullptr && state->held->user != state.get()) {
        complain("held request ", id, " lost sequence ", state->index);
      }
    }
  }
  if (requests.empty() == scheduler.has_unfinished()) {
    complain(requests.size(), " requests, but the scheduler says has_unfinished ",
             scheduler.has_unfinished());
  }
  const std::int64_t allocated = backend->allocated_bytes();
  if (allocated != memory.total_bytes - memory.swap_bytes) {
    complain("the backend holds ", allocated, " bytes, planned were ",
             memory.total_bytes - memory.swap_bytes);
  }
  return report;
}

}  // namespace pagedcore
