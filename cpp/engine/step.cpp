#include <algorithm>
#include <utility>

#include "cpp/engine/impl.h"
#include "cpp/engine/memory_plan.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace {

// A step with so many tokens a sequence tells how fast prompts are computed.
constexpr std::int64_t kPromptTokensPerSequence = 8;
constexpr double kLongStep = 2.0;  // times the shortest: it does more than read the weights
constexpr double kCostSmoothing = 0.2;

double microseconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double, std::micro>(end - begin).count();
}

std::string_view describe(const SequenceGroup& group) {
  switch (group.last_preemption_cause()) {
    case PreemptionCause::kNone:
      return "";
    case PreemptionCause::kMemory:
      return group.last_preemption() == PreemptionKind::kSwap
                 ? "earlier requests needed KV blocks of it: swapped to host memory"
                 : "earlier requests needed KV blocks of it: computed again";
    case PreemptionCause::kPriority:
      return group.last_preemption() == PreemptionKind::kSwap
                 ? "a request of higher priority came: swapped to host memory"
                 : "a request of higher priority came: computed again";
    case PreemptionCause::kQuota:
      return "its tenant's quota was used up";
    case PreemptionCause::kSibling:
      return "a sibling that computed their common blocks ended";
    case PreemptionCause::kAbandon:
      return "the step that computed it failed";
  }
  return "";
}

SequenceState& state_of(const Span& span) {
  return *static_cast<SequenceState*>(span.sequence->user);
}

void open_lane(DecodeLane& lane, SequenceState& state, std::int32_t sample) {
  const RequestState& request = *state.request;
  lane.sequence = state.sequence;
  lane.state = &state;
  for (const TokenId token : request.stop_tokens) lane.stop_filter |= 1ull << (token & 63);
  lane.sample = sample;
  lane.last_position = request.max_total_tokens - 1;
}

void note_span(RequestState& request, const Span& span, Clock::time_point now) {
  if (!request.has_run) {
    request.has_run = true;
    request.metrics.queue_us =
        static_cast<std::int64_t>(microseconds_between(request.arrival, now));
    request.metrics.num_cached_tokens = span.context_len;
  }
  request.metrics.num_recomputed_tokens += span.num_recomputed;
}

}  // namespace

std::span<const SequenceUpdate> Engine::Impl::step() {
  now = Clock::now();
  updates.clear();
  logprob_entries.clear();
  ended.clear();
  Clock::time_point begin = now;
  Clock::time_point end = now;
  if (is_ahead && std::ranges::none_of(lanes, &DecodeLane::sequence)) retract();
  try {
    if (!std::exchange(is_ahead, false)) begin = start_step();
    if (may_look_ahead()) look_ahead();
    samples.finish();
    if (!prompt_rows.empty()) compute_prompt_logprobs(num_sampled_rows);
    end = Clock::now();
  } catch (...) {
    give_up();
    throw;
  }
  counters.step_device_us = microseconds_between(begin, end);
  measure_costs(*plan);
  if (!is_ahead) {
    scheduler.commit();
    end_exceeding(*plan);
  }
  take_tokens();

  ++counters.num_steps;
  counters.step_host_us =
      microseconds_between(now, begin) + microseconds_between(end, Clock::now());
  counters.total_device_us += counters.step_device_us;
  counters.total_host_us += counters.step_host_us;
  return updates.all();
}

Clock::time_point Engine::Impl::start_step() {
  plan = nullptr;
  plan = &scheduler.schedule();
  note_preemptions(*plan);
  build(*plan);
  reserve_to_take(*plan);
  const Clock::time_point begin = Clock::now();
  move_blocks(*plan);
  compute(false);
  return begin;
}

// Where all sequences surely go on but for a stop token, the next step is planned and started while
// this one runs: its tokens pass from one to the other on the device. What a sequence computes that
// turns out to have ended is not looked at.
bool Engine::Impl::may_look_ahead() const {
  if (!backend->is_asynchronous() || lanes.empty()) return false;
  if (!targets.empty() || !prompt_rows.empty()) return false;
  const auto goes_on = [&](const DecodeLane& lane) {
    return lane.sequence != nullptr && samples.position(lane.sample) < lane.last_position;
  };
  return scheduler.goes_on() && std::ranges::all_of(lanes, goes_on);
}

void Engine::Impl::look_ahead() {
  scheduler.commit();
  plan = nullptr;
  is_ahead = true;
  for (const DecodeLane& lane : lanes) scheduler.append_token(*lane.sequence, kPendingToken);
  plan = &scheduler.schedule();
  build(*plan);
  const bool all_repeat = targets.empty() && plan->spans.size() == lanes.size();
  PAGEDCORE_CHECK(all_repeat, plan->spans.size(), " spans after ", lanes.size());
  move_blocks(*plan);
  compute(true);
}

// Drops the step that runs ahead; what it computed will be computed again.
void Engine::Impl::retract() {
  if (!std::exchange(is_ahead, false)) return;
  lanes.clear();
  scheduler.retract();
  samples.drop_started();
}

// After a failure: no token of the steps that run is taken.
void Engine::Impl::give_up() {
  if (std::exchange(is_ahead, false)) {
    for (const DecodeLane& lane : lanes) {
      if (lane.sequence != nullptr) scheduler.drop_pending(*lane.sequence);
    }
  }
  lanes.clear();
  if (plan != nullptr) scheduler.abandon();
  samples.drop_started();
}

// A sequence ends: a step that runs ahead has no token for it, and those behind it move up later.
void Engine::Impl::leave_lane(const SequenceState& state) {
  const auto lane = std::ranges::find(lanes, &state, &DecodeLane::state);
  if (lane != lanes.end()) *lane = {.has_ended = true};
}

void Engine::Impl::note_preemptions(const StepPlan& plan) {
  for (RequestId id : plan.preempted) {
    RequestState& request = *requests.at(id);
    for (const auto& state : request.sequences) {
      if (state->sequence == nullptr) continue;
      const SequenceGroup& group = state->sequence->group();
      request.metrics.num_preemptions = group.num_preemptions();
      request.metrics.last_preemption = describe(group);
      break;
    }
  }
}

// Takes the memory that the rest of the step needs once the plan is carried out, so that nothing
// fails half-way.
void Engine::Impl::reserve_to_take(const StepPlan& plan) {
  std::size_t num_updates = config.max_num_seqs;
  for (const SampleTarget& target : targets) {
    RequestState& request = *target.state->request;
    if (request.beams == nullptr && !request.awaits_first_token()) continue;
    reserve_siblings(request, *target.state->sequence);
  }
  for (RequestId id : plan.capacity_exceeded) {
    RequestState& request = *requests.at(id);
    num_updates += request.num_sequences;
    std::int64_t num_tokens = 0;
    for (const auto& state : request.sequences) {
      if (state->sequence == nullptr) continue;
      num_tokens += state->sequence->num_tokens();
      reserve_siblings(request, *state->sequence);
    }
    request.explanation =
        detail::concat("the request's ", request.num_unfinished, " sequence(s) of ", num_tokens,
                       " tokens in all need more than the KV cache's ", memory.num_blocks,
                       " blocks of ", config.block_size, " tokens");
  }
  updates.reserve(num_updates);
}

void Engine::Impl::reserve_siblings(RequestState& request, Sequence& sequence) {
  scheduler.reserve_forks(sequence, request.num_sequences);
  request.reserve_sequences(request.num_sequences);
}

// None of their sequences has a token to take in this step.
void Engine::Impl::end_exceeding(const StepPlan& plan) {
  for (RequestId id : plan.capacity_exceeded) {
    RequestState& request = *requests.at(id);
    if (request.beams != nullptr) {
      rank_hypotheses(request, FinishReason::kCapacity);
    } else {
      for (const auto& state : request.sequences) {
        if (state->sequence == nullptr) continue;
        finish(*state, FinishReason::kCapacity, -1);
        if (!request.updates_at_end) report(*state, {}, {});
      }
      if (request.updates_at_end) rank_samples(request);
    }
    if (request.updates_at_end) report_ranked(request);
    // Those of its n sequences that were to part with their first tokens.
    for (auto i = std::ssize(request.sequences); i < request.params.n; ++i) {
      SequenceUpdate& update = new_update(request);
      update.index = static_cast<std::int32_t>(i);
      update.finish_reason = FinishReason::kCapacity;
      update.explanation = request.explanation;
    }
    end_request(request);
  }
}

void Engine::Impl::build(const StepPlan& plan) {
  batch.begin();
  samples.clear();
  targets.clear();
  prompt_rows.clear();
  std::size_t next_lane = 0;
  for (std::size_t i = 0; i < plan.spans.size();) {
    const std::size_t num_repeated = repeat_lanes(std::span(plan.spans).subspan(i), next_lane);
    i += num_repeated;
    if (num_repeated > 0) continue;
    add_span(plan.spans[i++]);
    ++next_lane;
  }
  lanes.resize(batch.num_seqs());
  num_sampled_rows = batch.num_logit_rows();
  for (const PromptRows& rows : prompt_rows) {
    for (std::int32_t i = 0; i < rows.count; ++i) batch.add_logit_row(rows.first_token + i);
  }
  logprob_entries.reserve(samples.max_logprob_entries());
  counters.num_computed_tokens += plan.num_tokens;
}

// Adds as many of the spans, from the first one on, as go on in the last step's lanes from
// `next_lane` on, which passes over these and over lanes that have ended.
std::size_t Engine::Impl::repeat_lanes(std::span<const Span> spans, std::size_t& next_lane) {
  while (next_lane < lanes.size() && lanes[next_lane].has_ended) ++next_lane;
  const auto first_lane = static_cast<std::size_t>(batch.num_seqs());
  const std::int32_t first_sample = samples.size();
  if (next_lane >= lanes.size() || lanes[next_lane].sample < first_sample) return 0;
  const DecodeLane* const last_lanes = lanes.data() + next_lane;
  const std::size_t limit = std::min(spans.size(), lanes.size() - next_lane);
  std::size_t count = 0;
  while (count < limit && last_lanes[count].sequence == spans[count].sequence &&
         spans[count].is_plain_decode) {
    ++count;
  }
  if (count == 0) return 0;
  // Lanes side by side have their samples side by side.
  const std::int32_t last_sample = last_lanes[0].sample;
  const auto num_repeated = static_cast<std::int32_t>(count);
  const auto last_span = static_cast<std::int32_t>(next_lane);
  batch.advance(last_span, spans.first(count), samples.tokens(last_sample, num_repeated));
  samples.advance(last_sample, num_repeated, batch.num_logit_rows() - num_repeated);
  const bool moves_up = next_lane != first_lane || last_sample != first_sample;
  for (std::size_t i = 0; moves_up && i < count; ++i) {
    DecodeLane& lane = lanes[first_lane + i] = last_lanes[i];
    lane.sample = first_sample + static_cast<std::int32_t>(i);
    updates[lane.update].new_tokens = samples.tokens(lane.sample);
  }
  next_lane += count;
  return count;
}

void Engine::Impl::add_span(const Span& span) {
  SequenceState& state = state_of(span);
  RequestState& request = *state.request;
  const std::int32_t first_token = batch.add(span);
  note_span(request, span, now);
  if (request.wants_prompt_logprobs()) {
    const std::int32_t begin = std::max(span.context_len, request.num_prompt_logprobs_done);
    const std::int32_t end =
        std::min(span.context_len + span.query_len, request.num_prompt_tokens - 1);
    if (begin < end) {
      prompt_rows.push_back({&request, begin, first_token + begin - span.context_len, end - begin});
    }
  }
  const std::int32_t index = batch.num_seqs() - 1;
  if (lanes.size() < static_cast<std::size_t>(batch.num_seqs())) lanes.resize(batch.num_seqs());
  lanes[index] = {};
  if (!span.reaches_end) return;
  const std::int32_t sample =
      add_samples(state, batch.add_logit_row(first_token + span.query_len - 1));
  const bool is_token_of_lane = first_token == index && span.query_len == 1;
  if (is_token_of_lane && request.decodes_plainly(state)) {
    open_lane(lanes[index], state, sample);
  } else {
    targets.push_back({&state, sample, index});
  }
}

std::int32_t Engine::Impl::add_samples(SequenceState& state, std::int32_t logit_row) {
  const RequestState& request = *state.request;
  request.prepare(state);
  state.row.logit_row = logit_row;
  const std::int32_t sample = samples.add(state.row);
  if (!request.awaits_first_token() || request.beams != nullptr) return sample;
  // The first tokens of all siblings come from one row.
  for (std::int32_t i = 1; i < request.num_sequences; ++i) {
    samples.add(samples.row(sample));
    samples.row(sample + i).seed = request.seed_of(i);
  }
  return sample;
}

void Engine::Impl::move_blocks(const StepPlan& plan) {
  const Clock::time_point begin = Clock::now();
  backend->swap_out(cache, host_blocks.data(), memory.num_host_blocks, plan.swap_out);
  backend->swap_in(cache, host_blocks.data(), memory.num_host_blocks, plan.swap_in);
  const auto num_swapped = static_cast<double>(plan.swap_out.size() + plan.swap_in.size());
  if (num_swapped > 0.0) {
    backend->synchronize();
    const double speed = num_swapped * 1e6 / microseconds_between(begin, Clock::now());
    double& known = costs.swap_blocks_per_s;
    known = known == 0.0 ? speed : known + kCostSmoothing * (speed - known);
  }
  backend->copy_blocks(cache, plan.copies);
}

void Engine::Impl::compute(bool follows_samples) {
  ForwardBatch host_batch = batch.finish();
  if (host_batch.num_tokens == 0) return;
  host_batch.follows_samples = follows_samples;
  staged = backend->stage(host_batch);
  backend->run(staged, [this] { logits = decoder.forward(staged, cache); });
  samples.start(logits, num_sampled_rows);
}

// The rows of prompt tokens lie behind those to sample from. There may be many more of them than
// the decoder gives logits for at once, and the step's own samples are not yet taken.
void Engine::Impl::compute_prompt_logprobs(std::int32_t first_row) {
  const std::int32_t rows_at_once = decoder_limits(config).max_logit_rows;
  for (const PromptRows& rows : prompt_rows) {
    RequestState& request = *rows.request;
    const std::int32_t per_token = request.prompt_logprobs_per_token();
    const std::span<const TokenId> tokens = request.sequences[0]->sequence->tokens();
    for (std::int32_t done = 0; done < rows.count;) {
      const std::int32_t count = std::min(rows.count - done, rows_at_once);
      prompt_samples.clear();
      for (std::int32_t i = 0; i < count; ++i) {
        SampleRow row;
        row.logit_row = i;
        row.num_top = per_token - 1;
        row.given_token = tokens[rows.first_position + done + i + 1];
        prompt_samples.add(row);
      }
      prompt_samples.run(decoder.logits(staged, first_row + done, count), count);
      for (std::int32_t i = 0; i < count; ++i) {
        const std::int64_t at = rows.first_position + done + i;
        prompt_samples.write_logprobs(
            i, std::span(request.prompt_logprobs).subspan(at * per_token, per_token));
      }
      done += count;
    }
    request.num_prompt_logprobs_done = rows.first_position + rows.count;
    first_row += rows.count;
  }
}

// What PreemptionMode::kAuto goes by: the shortest step, the speed of steps that are mostly prompt,
// and that of the steps' own moves, both smoothed.
void Engine::Impl::measure_costs(const StepPlan& plan) {
  if (config.preemption_mode != PreemptionMode::kAuto) return;
  const double seconds = counters.step_device_us * 1e-6;
  const auto num_seqs = static_cast<std::int64_t>(plan.spans.size());
  if (seconds <= 0.0 || plan.num_tokens == 0) return;
  costs.min_step_s = costs.min_step_s == 0.0 ? seconds : std::min(costs.min_step_s, seconds);
  double& known = costs.prefill_tokens_per_s;
  const bool is_bound_by_arithmetic = known == 0.0 || seconds > kLongStep * costs.min_step_s;
  if (is_bound_by_arithmetic && plan.num_tokens >= kPromptTokensPerSequence * num_seqs) {
    const double speed = plan.num_tokens / seconds;
    known = known == 0.0 ? speed : known + kCostSmoothing * (speed - known);
  }
  scheduler.set_costs(costs);
}

}  // namespace pagedcore
