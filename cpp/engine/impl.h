#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "cpp/engine/batch_builder.h"
#include "cpp/engine/beam_search.h"
#include "cpp/engine/decode_lane.h"
#include "cpp/engine/host_pool.h"
#include "cpp/engine/request_state.h"
#include "cpp/engine/sample_batch.h"
#include "cpp/engine/snapshot.h"
#include "cpp/engine/step_rows.h"
#include "cpp/engine/update_list.h"
#include "pagedcore/decoder.h"
#include "pagedcore/engine.h"
#include "pagedcore/scheduler.h"

namespace pagedcore {

// What is behind Engine. A step runs through the functions in the order in which they stand here.
// Invariant: Sequence::user of every sequence of the scheduler is its SequenceState, and
// SequenceState::sequence leads back.
struct Engine::Impl {
  Impl(const ModelConfig& model, Weights weights, std::unique_ptr<Backend> backend,
       const EngineConfig& config);
  void measure_swap_speed();

  // requests.cpp
  RequestId add_request(std::span<const TokenId> prompt, const SamplingParams& params,
                        const RequestOptions& options);
  Stats stats() const;
  void require_valid(std::span<const TokenId> prompt, const SamplingParams& params) const;
  // The request of checked parameters, with everything but its sequences.
  std::unique_ptr<RequestState> make_request(std::int32_t num_prompt_tokens,
                                             const SamplingParams& params,
                                             const RequestOptions& options) const;
  GroupSpec spec_of(const RequestState& request, std::span<const TokenId> prompt) const;
  // Makes a request known whose sequences enqueue(request) makes and links. All or nothing, if
  // enqueue is.
  RequestId start(std::unique_ptr<RequestState> request,
                  const std::function<void(RequestState&)>& enqueue);
  void reserve_for(const RequestState& request);
  void abort(RequestId id);
  void finish_sequence(RequestId id, std::int32_t index);
  RequestMetrics metrics_of(const RequestState& request) const;
  std::vector<std::string> verify() const;

  // held.cpp: sequences beyond their request
  void hold(RequestId id);
  void release(RequestId id);
  const RequestState& find_request(RequestId id) const;
  const SequenceState& find_sequence(RequestId id, std::int32_t index) const;
  RequestId fork(RequestId id, std::int32_t index, std::optional<std::int32_t> at_token,
                 const SamplingParams& params, std::span<const TokenId> more_tokens,
                 const RequestOptions& options);

  // snapshots.cpp: requests that leave and come
  std::vector<std::byte> save(RequestId id, std::optional<std::int32_t> index) const;
  RequestId load(std::span<const std::byte> bytes, const SamplingParams* params,
                 const RequestOptions& options);
  std::uint64_t model_fingerprint() const;
  void save_sequence(const SequenceState& state, Snapshot& snapshot) const;
  void save_whole(const RequestState& request, Snapshot& snapshot) const;
  void add_saved(const SequenceState& state, std::vector<const Sequence*>& sources,
                 Snapshot& snapshot) const;
  void read_kv(const Sequence& sequence, SavedSequence& saved) const;
  void require_loadable(const Snapshot& snapshot, const SamplingParams* params) const;
  void restore(RequestState& request, const Snapshot& snapshot);
  void write_kv(const SequenceGroup& group, std::span<const SavedSequence> saved,
                std::span<std::byte> block, std::vector<bool>& is_written);

  // step.cpp
  std::span<const SequenceUpdate> step();
  // Plans a step and starts it; gives the time at which the device took over.
  Clock::time_point start_step();
  void note_preemptions(const StepPlan& plan);
  void reserve_to_take(const StepPlan& plan);
  void reserve_siblings(RequestState& request, Sequence& sequence);
  void end_exceeding(const StepPlan& plan);
  void build(const StepPlan& plan);
  std::size_t repeat_lanes(std::span<const Span> spans, std::size_t& next_lane);
  void add_span(const Span& span);
  std::int32_t add_samples(SequenceState& state, std::int32_t logit_row);
  void move_blocks(const StepPlan& plan);
  void compute(bool follows_samples);
  bool may_look_ahead() const;
  void look_ahead();
  void retract();
  void give_up();
  void leave_lane(const SequenceState& state);
  void compute_prompt_logprobs(std::int32_t first_row);
  void measure_costs(const StepPlan& plan);

  // outputs.cpp: what a sampled token changes
  void take_tokens();
  std::int32_t take_from_lanes(std::int32_t first);
  void take_from_target(const SampleTarget& target);
  void take_first_tokens(SequenceState& state, std::int32_t sample);
  void take_token(SequenceState& state, std::int32_t sample);
  std::span<const TokenLogprob> logprobs_of(const RequestState& request, std::int32_t sample);
  void finish(SequenceState& state, FinishReason reason, TokenId stop_token);
  void end_request(RequestState& request);
  void report(const SequenceState& state, std::span<const TokenId> tokens,
              std::span<const TokenLogprob> logprobs);
  void rank_samples(RequestState& request);
  void report_ranked(RequestState& request);
  SequenceUpdate& new_update(RequestState& request);

  // beams.cpp
  void offer_candidates(SequenceState& beam, std::int32_t sample);
  void advance_beams(RequestState& request);
  void reorder_beams(RequestState& request, std::span<const BeamSearch::Candidate> next);
  void rank_hypotheses(RequestState& request, FinishReason reason);
  void hold_hypothesis(RequestState& request, SequenceState& state);

  const ModelConfig model;
  const EngineConfig config;  // with the defaults filled in
  const std::unique_ptr<Backend> backend;
  const Weights checkpoint;  // as it was given
  const MemoryPlan memory;
  Decoder decoder;
  Buffer kv;
  HostPool host_blocks;
  KvCacheView cache;
  Scheduler scheduler;
  BatchBuilder batch;
  Buffer sample_workspace;
  SampleBatch samples;
  SampleBatch prompt_samples;

  RequestId next_request_id = 0;
  std::unordered_map<RequestId, std::unique_ptr<RequestState>> requests;
  std::unordered_map<RequestId, std::unique_ptr<RequestState>> held;  // ended

  // One step's own, kept to be used again.
  std::vector<DecodeLane> lanes;      // [spans of the last batch]
  std::vector<SampleTarget> targets;  // those without a lane
  std::vector<PromptRows> prompt_rows;
  std::int32_t num_sampled_rows = 0;  // of logits; those of prompt_rows follow
  const StepPlan* plan = nullptr;     // the scheduler's last
  bool is_ahead = false;              // the next step runs already, see look_ahead()
  ForwardBatch staged;
  const float* logits = nullptr;
  Clock::time_point now;
  UpdateList updates;
  std::vector<TokenLogprob> logprob_entries;
  std::vector<std::unique_ptr<RequestState>> ended;  // that the last updates point into

  PreemptionCosts costs;
  Stats counters;
};

}  // namespace pagedcore
