#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pagedcore/backend.h"
#include "pagedcore/engine_config.h"
#include "pagedcore/export.h"
#include "pagedcore/model_config.h"
#include "pagedcore/request.h"
#include "pagedcore/sampling_params.h"
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
  // next call.
  std::span<const SequenceUpdate> step();
  // Ends a request, or one of its sequences (the caller saw a stop string): no further update
  // comes for it. Unknown and finished ids are ignored.
  void abort(RequestId request_id);
  void finish_sequence(RequestId request_id, std::int32_t index);

  bool has_unfinished() const;
  Stats stats() const;
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
