#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pagedcore/backend.h"
#include "pagedcore/engine_config.h"
#include "pagedcore/export.h"
#include "pagedcore/model_config.h"
#include "pagedcore/request.h"
#include "pagedcore/sampling_params.h"
#include "pagedcore/scheduler_stats.h"
#include "pagedcore/stats.h"
#include "pagedcore/tensor.h"

namespace pagedcore {

// Serves requests over one model on one backend. One thread owns an engine. See ARCHITECTURE in
// README.md for the parts that it joins.
class PAGEDCORE_API Engine {
 public:
  // Takes all memory that plan_memory() names. Throws InvalidArgument and OutOfMemory.
  Engine(const ModelConfig& model, Weights weights, std::unique_ptr<Backend> backend,
         const EngineConfig& config);
  ~Engine();

  // Queues a request. Throws InvalidArgument (naming argument, value and rule) or QueueFull, and
  // changes nothing then.
  RequestId add_request(std::span<const TokenId> prompt, const SamplingParams& params,
                        const RequestOptions& options = {});
  // One iteration: plan, move blocks, forward, sample, commit. The updates are valid until the
  // next call. On an asynchronous backend the next iteration may run already on return: a request
  // that comes then joins the one after it; nothing else tells.
  std::span<const SequenceUpdate> step();
  // Ends a request, held or not, or one of its sequences (the caller saw a stop string): no further
  // update comes for it. Unknown and finished ids are ignored. Of several sequences one can end
  // from its first token on; finish_sequence() throws InvalidArgument before, and where the request
  // reports its sequences together at its end.
  void abort(RequestId request_id);
  void finish_sequence(RequestId request_id, std::int32_t index);

  // Starts a request that goes on from the first `at_token` tokens (none: all) of a sequence that
  // is live or held, then `more_tokens`; these together are its prompt. It shares the KV that the
  // sequence has, is scheduled at once and copies one block at most. Its cache_salt is the
  // sequence's own. Throws as add_request() does.
  RequestId fork(RequestId request_id, std::int32_t index, std::optional<std::int32_t> at_token,
                 const SamplingParams& params, std::span<const TokenId> more_tokens = {},
                 const RequestOptions& options = {});
  // Keeps the sequences' tokens and KV when the request ends, until release(); with best_of and
  // beam_width those of the n sequences that it reports, by their index there. Of a hypothesis the
  // KV that the open beams then share with it stays, the rest is computed again when it is asked
  // for. release() of a live request lets it end as usual; unknown ids are ignored.
  void hold(RequestId request_id);
  void release(RequestId request_id);
  // All tokens so far of a live or held sequence, prompt first. Throws InvalidArgument.
  std::vector<TokenId> tokens(RequestId request_id, std::int32_t index = 0) const;

  // A snapshot of a live or held request: tokens, KV (what sequences share once), sampler, random
  // state, beams, stop state. It can be loaded by any engine over the same weights with the same KV
  // dtype: another process, pool size or block size. With `index` of one of its sequences alone.
  std::vector<std::byte> save(RequestId request_id,
                              std::optional<std::int32_t> index = std::nullopt) const;
  // Goes on from a snapshot as if it had never stopped: updates are those that were still to come.
  // With `params` it goes on under those, and all tokens of its one sequence are its prompt; what
  // had finished, and one beam of several, needs them. Throws InvalidArgument for a file that is
  // not a whole, unchanged snapshot of this model.
  RequestId load(std::span<const std::byte> snapshot, const SamplingParams* params = nullptr,
                 const RequestOptions& options = {});

  // Requests of a tenant together hold at most so many KV blocks; 0: no limit.
  void set_tenant_quota(std::string_view tenant, std::int32_t num_blocks);

  bool has_unfinished() const;
  Stats stats() const;
  // Every block and every sequence. Costs time in proportion to the pool.
  KvMap kv_map() const;
  // Of a request that has not finished or is held; none for any other id.
  std::optional<RequestMetrics> metrics(RequestId request_id) const;
  // A complete consistency report: one line per violation, empty when all is well.
  std::vector<std::string> verify() const;

  const EngineConfig& config() const;  // with the defaults filled in
  const ModelConfig& model_config() const;
  const MemoryPlan& memory_plan() const;
  Backend& backend();

  // What the constructor would allocate; allocates nothing. Throws what the constructor throws.
  static MemoryPlan plan_memory(const ModelConfig& model, const Weights& weights,
                                const Backend& backend, const EngineConfig& config);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pagedcore
