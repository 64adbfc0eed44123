// Requests that leave an engine as bytes, and come into one.
#include <algorithm>
#include <cstring>
#include <utility>

#include "cpp/engine/impl.h"
#include "cpp/engine/snapshot.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace {

template <typename T>
std::uint64_t hash_value(const T& value, std::uint64_t hash) {
  return hash_bytes(std::as_bytes(std::span(&value, 1)), hash);
}

std::uint64_t hash_text(std::string_view text, std::uint64_t hash) {
  return hash_bytes(std::as_bytes(std::span(text)), hash);
}

// Bytes that one token's key or value takes in one head.
std::int64_t row_bytes(const KvCacheView& cache) {
  return cache.row_stride() * dtype_bits(cache.dtype) / 8;
}

// f(offset in the saved KV, offset in a block, bytes) for each run of bytes that `count` tokens
// have in one block: from token `first` of the saved num_tokens on, from `offset` of the block on.
template <typename F>
void for_each_run(const KvCacheView& cache, std::int64_t num_tokens, std::int64_t first,
                  std::int64_t offset, std::int64_t count, const F& f) {
  const std::int64_t token_bytes = row_bytes(cache);
  const std::int64_t num_planes = cache.num_layers * 2 * cache.num_kv_heads;
  for (std::int64_t plane = 0; plane < num_planes; ++plane) {
    f((plane * num_tokens + first) * token_bytes, (plane * cache.block_size + offset) * token_bytes,
      count * token_bytes);
  }
}

// First blocks that two sequences of a group share, on the device or, behind these, on the host.
std::int64_t num_shared_blocks(const Sequence& a, const Sequence& b) {
  const auto num_common = [](std::span<const BlockId> x, std::span<const BlockId> y) {
    return std::ranges::mismatch(x, y).in1 - x.begin();
  };
  const std::ptrdiff_t num_blocks = num_common(a.table(), b.table());
  const bool is_all = num_blocks == std::ssize(a.table()) && num_blocks == std::ssize(b.table());
  return num_blocks + (is_all ? num_common(a.host_table(), b.host_table()) : 0);
}

// Tokens whose KV is stored; of a sequence that is being rebuilt, siblings have still to compute
// it.
std::int32_t num_stored(const Sequence& sequence) {
  if (sequence.is_rebuilding()) return 0;
  return std::min(sequence.num_computed(), sequence.num_tokens() - 1);
}

// The earlier sequence of a file that shares the most tokens' blocks with the last one.
void find_shared(std::span<const Sequence* const> sources, std::span<SavedSequence> saved,
                 std::int32_t block_size) {
  SavedSequence& last = saved.back();
  for (std::size_t i = 0; i + 1 < saved.size(); ++i) {
    if (sources[i] == nullptr) continue;
    const std::int64_t num_blocks = num_shared_blocks(*sources.back(), *sources[i]);
    const auto num_shared = static_cast<std::int32_t>(std::min<std::int64_t>(
        {num_blocks * block_size, last.num_computed, saved[i].num_computed}));
    if (num_shared <= last.num_shared) continue;
    last.sibling = static_cast<std::int32_t>(i);
    last.num_shared = num_shared;
  }
}

// Copies the KV of the tokens [first, end) of a saved sequence to the beginning of a block.
void copy_saved(const KvCacheView& cache, std::span<const SavedSequence> saved, std::size_t index,
                std::int32_t first, std::int32_t end, std::byte* block) {
  for (std::int32_t at = first; at < end;) {
    const SavedSequence* owner = &saved[index];
    std::int32_t run_end = end;
    while (at < owner->num_shared) {
      run_end = std::min(run_end, owner->num_shared);
      owner = &saved[owner->sibling];
    }
    for_each_run(cache, owner->num_computed - owner->num_shared, at - owner->num_shared, at - first,
                 run_end - at, [&](std::int64_t in_file, std::int64_t in_block, std::int64_t size) {
                   std::memcpy(block + in_block, owner->kv.data() + in_file, size);
                 });
    at = run_end;
  }
}

// Gives a request what it had come to when it was saved, but for its sequences.
void go_on(RequestState& request, const Snapshot& snapshot) {
  request.seed = snapshot.seed;
  request.prompt_logprobs_reported = snapshot.prompt_logprobs_reported;
  request.num_prompt_logprobs_done = snapshot.num_prompt_logprobs_done;
  if (!snapshot.prompt_logprobs_reported) request.prompt_logprobs = snapshot.prompt_logprobs;
  if (request.beams != nullptr) {
    request.beams->restore(snapshot.beam_scores, snapshot.hypotheses);
  }
}

}  // namespace

// Of the configuration, and of a few bytes of every tensor.
std::uint64_t Engine::Impl::model_fingerprint() const {
  constexpr std::int64_t kSampleBytes = 64;
  std::uint64_t hash = hash_text(model.architecture, hash_bytes({}));
  for (std::int64_t value : {model.vocab_size, model.hidden_size, model.num_layers, model.num_heads,
                             model.num_kv_heads, model.head_dim}) {
    hash = hash_value(value, hash);
  }
  hash = hash_value(model.rope_theta, hash);
  for (const auto& [name, tensor] : checkpoint.tensors) {
    hash = hash_text(name, hash);
    hash = hash_value(tensor.dtype, hash);
    hash = hash_value(tensor.shape, hash);
    const std::span bytes(static_cast<const std::byte*>(tensor.data), tensor.num_bytes());
    hash = hash_bytes(bytes.first(std::min<std::int64_t>(kSampleBytes, tensor.num_bytes())), hash);
  }
  return hash;
}

std::vector<std::byte> Engine::Impl::save(RequestId id, std::optional<std::int32_t> index) const {
  const RequestState& request = find_request(id);
  Snapshot snapshot;
  snapshot.model = model_fingerprint();
  snapshot.kv_dtype = cache.dtype;
  snapshot.params = request.params;
  snapshot.params.stop_token_ids = request.stop_tokens;
  snapshot.params.ignore_eos = true;
  snapshot.params.max_tokens = request.max_total_tokens - request.num_prompt_tokens;
  snapshot.params.min_tokens = std::min(request.params.min_tokens, *snapshot.params.max_tokens);
  snapshot.num_prompt_tokens = request.num_prompt_tokens;
  snapshot.cache_salt = request.options.cache_salt;
  const SequenceState* state = index ? &find_sequence(id, *index) : nullptr;
  if (state != nullptr && request.num_sequences > 1) {
    save_sequence(*state, snapshot);
  } else {
    PAGEDCORE_REQUIRE(request.sequences.size() == 1 || requests.contains(id),
                      "index must be given: request ", id,
                      " has finished, and only one of its sequences can be gone on from");
    save_whole(request, snapshot);
  }
  return encode(snapshot);
}

// One of several sequences, as a request of its own.
void Engine::Impl::save_sequence(const SequenceState& state, Snapshot& snapshot) const {
  const RequestState& request = *state.request;
  snapshot.params.n = 1;
  snapshot.params.best_of = 0;
  snapshot.params.prompt_logprobs = -1;
  snapshot.seed = request.seed_of(state.index);
  snapshot.needs_params = state.sequence == nullptr || request.beams != nullptr;
  std::vector<const Sequence*> sources;
  add_saved(state, sources, snapshot);
  snapshot.sequences[0].logprobs.clear();  // those to come are reported as they come
}

void Engine::Impl::save_whole(const RequestState& request, Snapshot& snapshot) const {
  snapshot.seed = request.seed;
  snapshot.needs_params = std::ranges::all_of(
      request.sequences, [](const auto& state) { return state->sequence == nullptr; });
  snapshot.prompt_logprobs_reported = request.prompt_logprobs_reported;
  snapshot.num_prompt_logprobs_done = request.num_prompt_logprobs_done;
  if (!request.prompt_logprobs_reported) snapshot.prompt_logprobs = request.prompt_logprobs;
  if (request.beams != nullptr) {
    const std::span<const float> scores = request.beams->beam_scores();
    const auto hypotheses = std::as_const(*request.beams).hypotheses();
    snapshot.beam_scores.assign(scores.begin(), scores.end());
    snapshot.hypotheses.assign(hypotheses.begin(), hypotheses.end());
  }
  std::vector<const Sequence*> sources;
  for (const auto& state : request.sequences) add_saved(*state, sources, snapshot);
}

// Adds a sequence to a snapshot whose earlier ones have their KV in `sources`, or null.
void Engine::Impl::add_saved(const SequenceState& state, std::vector<const Sequence*>& sources,
                             Snapshot& snapshot) const {
  SavedSequence& saved = snapshot.sequences.emplace_back();
  saved.is_live = state.sequence != nullptr;
  saved.finish_reason = state.finish_reason;
  saved.stop_token = state.stop_token;
  saved.cumulative_logprob = state.cumulative_logprob;
  saved.tokens.assign(state.tokens().begin(), state.tokens().end());
  saved.logprobs = state.logprobs;
  // What has ended beside live siblings is there to be told of, not to be gone on from.
  const Sequence* held = snapshot.needs_params ? state.held : nullptr;
  sources.push_back(saved.is_live ? state.sequence : held);
  if (sources.back() == nullptr) return;
  saved.num_computed = num_stored(*sources.back());
  find_shared(sources, snapshot.sequences, config.block_size);
  read_kv(*sources.back(), saved);
}

void Engine::Impl::read_kv(const Sequence& sequence, SavedSequence& saved) const {
  const std::int64_t block_bytes = cache.block_bytes();
  const std::int32_t num_own = saved.num_computed - saved.num_shared;
  saved.kv.resize(num_own * (block_bytes / config.block_size));
  std::vector<std::byte> block(block_bytes);
  const std::span<const BlockId> table = sequence.table();
  for (std::int32_t first = saved.num_shared; first < saved.num_computed;) {
    const std::size_t index = first / config.block_size;
    if (index < table.size()) {
      const auto* device = static_cast<const std::byte*>(cache.data);
      backend->download(block.data(), device + table[index] * block_bytes, block_bytes);
    } else {
      const auto* host = static_cast<const std::byte*>(host_blocks.data());
      const BlockId id = sequence.host_table()[index - table.size()];
      std::memcpy(block.data(), host + id * block_bytes, block_bytes);
    }
    const std::int32_t offset = first % config.block_size;
    const std::int32_t count = std::min(config.block_size - offset, saved.num_computed - first);
    for_each_run(cache, num_own, first - saved.num_shared, offset, count,
                 [&](std::int64_t in_file, std::int64_t in_block, std::int64_t size) {
                   std::memcpy(saved.kv.data() + in_file, block.data() + in_block, size);
                 });
    first += count;
  }
}

RequestId Engine::Impl::load(std::span<const std::byte> bytes, const SamplingParams* params,
                             const RequestOptions& options) {
  Snapshot snapshot = decode_snapshot(bytes);
  require_loadable(snapshot, params);
  std::int32_t num_prompt_tokens = snapshot.num_prompt_tokens;
  if (params != nullptr) {
    num_prompt_tokens = static_cast<std::int32_t>(snapshot.sequences[0].tokens.size());
    SavedSequence bare;
    bare.tokens = std::move(snapshot.sequences[0].tokens);
    bare.num_computed = snapshot.sequences[0].num_computed;
    bare.kv = std::move(snapshot.sequences[0].kv);
    snapshot.sequences[0] = std::move(bare);
    // Every position of the prompt must be computed for its logprobs.
    if (params->prompt_logprobs >= 0) snapshot.sequences[0].num_computed = 0;
  }
  auto made =
      make_request(num_prompt_tokens, params != nullptr ? *params : snapshot.params, options);
  made->options.cache_salt = snapshot.cache_salt;
  if (params == nullptr) go_on(*made, snapshot);
  return start(std::move(made), [&](RequestState& request) { restore(request, snapshot); });
}

void Engine::Impl::require_loadable(const Snapshot& snapshot, const SamplingParams* params) const {
  PAGEDCORE_REQUIRE(snapshot.model == model_fingerprint(),
                    "the snapshot is of another model than this engine's");
  PAGEDCORE_REQUIRE(snapshot.kv_dtype == cache.dtype, "the snapshot's KV is ",
                    dtype_name(snapshot.kv_dtype), ", this engine's ", dtype_name(cache.dtype));
  require_sound(snapshot, model.vocab_size, cache.block_bytes() / config.block_size);
  if (params != nullptr) {
    PAGEDCORE_REQUIRE(snapshot.sequences.size() == 1, "params cannot be given: the snapshot has ",
                      snapshot.sequences.size(), " sequences; save one of them");
    return require_valid(snapshot.sequences[0].tokens, *params);
  }
  PAGEDCORE_REQUIRE(!snapshot.needs_params,
                    "params must be given: the snapshot's request had finished, or it is one beam");
  for (const SavedSequence& saved : snapshot.sequences) {
    if (saved.is_live) require_valid(saved.tokens, snapshot.params);
  }
}

// Makes and queues the live sequences of a saved request.
void Engine::Impl::restore(RequestState& request, const Snapshot& snapshot) {
  std::vector<SequenceSpec> specs;
  std::vector<std::int32_t> place;  // in specs, of each saved sequence
  std::vector<SequenceState*> live;
  std::vector<std::byte> block(cache.block_bytes());
  std::vector<bool> is_written(memory.num_blocks, false);
  request.reserve_sequences(static_cast<std::int32_t>(snapshot.sequences.size()));
  for (const SavedSequence& saved : snapshot.sequences) {
    SequenceState& state = request.add_sequence();
    state.finish_reason = saved.finish_reason;
    state.stop_token = saved.stop_token;
    state.cumulative_logprob = saved.cumulative_logprob;
    state.logprobs = saved.logprobs;
    place.push_back(static_cast<std::int32_t>(specs.size()));
    if (saved.is_live) {
      live.push_back(&state);
      specs.push_back({.tokens = saved.tokens,
                       .num_computed = saved.num_computed,
                       .sibling = saved.sibling < 0 ? -1 : place[saved.sibling],
                       .num_shared = saved.num_shared});
    } else if (request.keeps_tokens()) {
      state.kept_tokens = saved.tokens;
    }
  }
  request.num_unfinished = static_cast<std::int32_t>(live.size());
  const SequenceGroup& group =
      scheduler.restore(spec_of(request, specs[0].tokens.first(request.num_prompt_tokens)), specs);
  for (std::size_t i = 0; i < live.size(); ++i) link(*live[i], *group.sequences()[i]);
  try {
    write_kv(group, snapshot.sequences, block, is_written);
  } catch (...) {
    scheduler.abort(request.id);
    throw;
  }
}

// Writes the KV of a restored group, every block once; `block` is room for one.
void Engine::Impl::write_kv(const SequenceGroup& group, std::span<const SavedSequence> saved,
                            std::span<std::byte> block, std::vector<bool>& is_written) {
  const auto block_bytes = static_cast<std::int64_t>(block.size());
  auto sequence = group.sequences().begin();
  for (std::size_t i = 0; i < saved.size(); ++i) {
    if (!saved[i].is_live) continue;
    const std::span<const BlockId> table = (*sequence)->table();
    const std::int32_t num_tokens = (*sequence++)->num_computed();
    for (std::int32_t first = 0; first < num_tokens; first += config.block_size) {
      const BlockId id = table[first / config.block_size];
      if (is_written[id]) continue;
      is_written[id] = true;
      const std::int32_t end = std::min(first + config.block_size, num_tokens);
      copy_saved(cache, saved, i, first, end, block.data());
      backend->upload(static_cast<std::byte*>(cache.data) + id * block_bytes, block.data(),
                      block_bytes);
    }
  }
}

}  // namespace pagedcore
