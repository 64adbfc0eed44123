#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pagedcore/export.h"
#include "pagedcore/step_plan.h"
#include "pagedcore/types.h"

namespace pagedcore {

class KvManager;
class SchedulerCore;
class Sequence;

enum class PreemptionMode : std::int8_t { kRecompute, kSwap, kAuto };

struct SchedulerConfig {
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 16;
  std::int32_t max_num_seqs = 256;  // sequences in one step
  std::int32_t max_num_batched_tokens = 2048;
  std::int32_t max_model_len = 2048;
  bool enable_prefix_caching = true;
  std::int32_t num_host_blocks = 0;  // swap space
  PreemptionMode preemption_mode = PreemptionMode::kRecompute;
  std::int32_t max_waiting = 0;  // 0: unbounded; else add() throws QueueFull beyond it
};

// What add() needs to know of a request.
struct GroupSpec {
  RequestId request_id = 0;
  std::span<const TokenId> prompt = {};
  std::int32_t num_sequences = 1;     // that the group will have once its prompt is computed
  std::int32_t max_total_tokens = 0;  // prompt and output of its longest sequence, at most
  std::int32_t priority = 0;          // lower runs first
  std::string_view tenant = {};       // for quotas
  std::string_view cache_salt = {};   // separates tenants in the prefix cache
  bool read_prefix_cache = true;      // false where every prompt position must be computed
};

// Decides who runs and where their tokens lie. Knows no phases: a sequence has num_tokens() and
// num_computed(), and steps hand out a token budget until it catches up. Owns the sequences and
// the block bookkeeping; sees no device memory. Not thread-safe.
//
// A step: plan = schedule(); the caller computes the spans; commit(); then for every span that
// reaches_end: append_token(), fork() or finish() on its sequence.
class PAGEDCORE_API Scheduler {
 public:
  // Pages the KV cache.
  explicit Scheduler(const SchedulerConfig& config);
  // Another manager of the same pool: num_blocks, block_size and enable_prefix_caching are its own.
  Scheduler(const SchedulerConfig& config, std::shared_ptr<KvManager> kv);
  ~Scheduler();
  Scheduler(Scheduler&&) noexcept;
  Scheduler& operator=(Scheduler&&) noexcept;

  // Queues a group with one sequence holding the prompt. Throws InvalidArgument, with the numbers,
  // for a group that can never fit; QueueFull.
  Sequence& add(const GroupSpec& spec);

  // Plans the next step. The plan is valid until the next call.
  const StepPlan& schedule();
  // The plan's spans are computed: their blocks become findable.
  void commit();

  void append_token(Sequence& sequence, TokenId token);
  // A sibling of `sequence` in its group with the same first `num_tokens` tokens, sharing their
  // blocks. Never allocates a block.
  Sequence& fork(Sequence& sequence, std::int32_t num_tokens);
  // Ends one sequence; the group ends with its last. The reference is dead afterwards.
  void finish(Sequence& sequence);
  // Ends a group wherever it is: waiting, running, preempted or swapped.
  void abort(RequestId request_id);

  bool has_unfinished() const;
  // One line per violated invariant; empty when all hold.
  std::vector<std::string> check_invariants() const;

 private:
  std::unique_ptr<SchedulerCore> core_;
};

}  // namespace pagedcore
