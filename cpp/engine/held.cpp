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

}  // namespace

void Engine::Impl::hold(RequestId id) {
  const auto found = requests.find(id);
  if (found == requests.end()) return;
  PAGEDCORE_REQUIRE(!found->second->updates_at_end, "hold: request ", id,
                    " uses best_of or beam_width");
  found->second->is_held = true;
}

void Engine::Impl::release(RequestId id) {
  auto found = requests.find(id);
  const bool is_live = found != requests.end();
  if (!is_live && (found = held.find(id)) == held.end()) return;
  RequestState& request = *found->second;
  request.is_held = false;
  for (const auto& state : request.sequences) {
    state->held_tokens.clear();
    if (state->held != nullptr) scheduler.release(*std::exchange(state->held, nullptr));
  }
  if (is_live) return;
  ended.push_back(std::move(found->second));
  held.erase(found);
}

const SequenceState& Engine::Impl::find_sequence(RequestId id, std::int32_t index) const {
  auto found = requests.find(id);
  if (found == requests.end()) found = held.find(id);
  PAGEDCORE_REQUIRE(found != requests.end() && found != held.end(), "request_id ", id,
                    " is neither live nor held");
  const RequestState& request = *found->second;
  const auto count = static_cast<std::int32_t>(request.sequences.size());
  PAGEDCORE_REQUIRE(index >= 0 && index < count, "index must be from 0 to ", count - 1, ", got ",
                    index);
  const SequenceState& state = *request.sequences[index];
  PAGEDCORE_REQUIRE(!state.tokens().empty(), "sequence ", index, " of request ", id,
                    " has finished and is not held");
  return state;
}

RequestId Engine::Impl::fork(RequestId id, std::int32_t index, std::optional<std::int32_t> at_token,
                             const SamplingParams& params, std::span<const TokenId> more_tokens,
                             const RequestOptions& options) {
  const SequenceState& parent = find_sequence(id, index);
  const std::span<const TokenId> known = parent.tokens();
  const auto num_known = static_cast<std::int32_t>(known.size());
  const std::int32_t num_tokens = at_token.value_or(num_known);
  PAGEDCORE_REQUIRE(num_tokens >= 1 && num_tokens <= num_known, "at_token must be from 1 to ",
                    num_known, ", the sequence's tokens, got ", num_tokens);
  std::vector<TokenId> prompt(known.begin(), known.begin() + num_tokens);
  prompt.insert(prompt.end(), more_tokens.begin(), more_tokens.end());
  require_valid(prompt, params);
  auto request = make_request(static_cast<std::int32_t>(prompt.size()), params, options);
  request->options.cache_salt = parent.request->options.cache_salt;
  reserve_for(*request);
  Sequence* const sequence = parent.sequence != nullptr ? parent.sequence : parent.held;
  Sequence& child = sequence == nullptr ? scheduler.add(spec_of(*request, prompt))
                                        : scheduler.fork_request(*sequence, num_tokens,
                                                                 spec_of(*request, more_tokens));
  return start(std::move(request), child);
}

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

std::vector<std::byte> Engine::Impl::save(RequestId id, std::int32_t index) const {
  const SequenceState& state = find_sequence(id, index);
  const RequestState& request = *state.request;
  PAGEDCORE_REQUIRE(request.beams == nullptr, "save: request ", id, " uses beam_width");
  Snapshot snapshot;
  snapshot.model = model_fingerprint();
  snapshot.kv_dtype = cache.dtype;
  snapshot.params = request.params;
  snapshot.seed = request.seed_of(index);
  snapshot.num_prompt_tokens = request.num_prompt_tokens;
  snapshot.is_finished = state.sequence == nullptr;
  snapshot.cumulative_logprob = state.cumulative_logprob;
  snapshot.cache_salt = request.options.cache_salt;
  snapshot.tokens.assign(state.tokens().begin(), state.tokens().end());
  const Sequence* sequence = state.sequence != nullptr ? state.sequence : state.held;
  if (sequence != nullptr) {
    // A swapped sequence has its KV elsewhere: its tokens are computed again.
    const auto num_slots = static_cast<std::int32_t>(sequence->table().size()) * config.block_size;
    const auto last = static_cast<std::int32_t>(snapshot.tokens.size()) - 1;
    snapshot.num_computed = std::min({sequence->num_computed(), num_slots, last});
    read_kv(*sequence, snapshot.num_computed, snapshot.kv);
  }
  return encode(snapshot);
}

RequestId Engine::Impl::load(std::span<const std::byte> bytes, const SamplingParams* params,
                             const RequestOptions& options) {
  Snapshot snapshot = decode_snapshot(bytes);
  PAGEDCORE_REQUIRE(snapshot.model == model_fingerprint(),
                    "the snapshot is of another model than this engine's");
  PAGEDCORE_REQUIRE(snapshot.kv_dtype == cache.dtype, "the snapshot's KV is ",
                    dtype_name(snapshot.kv_dtype), ", this engine's ", dtype_name(cache.dtype));
  PAGEDCORE_REQUIRE(params != nullptr || !snapshot.is_finished,
                    "params must be given: the snapshot's sequence had finished");
  const std::span<const TokenId> tokens = snapshot.tokens;
  const SamplingParams& how = params != nullptr ? *params : snapshot.params;
  require_valid(tokens, how);
  const std::int32_t num_prompt_tokens =
      params != nullptr ? static_cast<std::int32_t>(tokens.size()) : snapshot.num_prompt_tokens;
  const std::int64_t token_bytes = cache.block_bytes() / config.block_size;
  PAGEDCORE_REQUIRE(
      snapshot.num_computed >= 0 &&
          snapshot.num_computed < static_cast<std::int32_t>(tokens.size()) &&
          snapshot.num_computed * token_bytes == static_cast<std::int64_t>(snapshot.kv.size()),
      "the snapshot holds ", snapshot.kv.size(), " bytes of KV for ", snapshot.num_computed,
      " tokens of ", token_bytes, " bytes");

  auto request = make_request(num_prompt_tokens, how, options);
  if (params == nullptr) request->seed = snapshot.seed;
  request->options.cache_salt = snapshot.cache_salt;
  reserve_for(*request);
  const bool uses_kv = !request->wants_prompt_logprobs();
  Sequence& sequence = scheduler.restore(spec_of(*request, tokens.first(num_prompt_tokens)), tokens,
                                         uses_kv ? snapshot.num_computed : 0);
  if (sequence.num_computed() > 0) write_kv(sequence, snapshot.kv);
  RequestState& started = *request;
  const RequestId id = start(std::move(request), sequence);
  if (params == nullptr) {
    SequenceState& state = *started.sequences[0];
    state.cumulative_logprob = snapshot.cumulative_logprob;
  }
  return id;
}

namespace {

// f(offset in the file, offset in a block, bytes) for each run of bytes that the tokens
// [first, first + count) of a sequence of num_tokens have in one block.
template <typename F>
void for_each_run(const KvCacheView& cache, std::int64_t num_tokens, std::int64_t first,
                  std::int64_t count, const F& f) {
  const std::int64_t token_bytes = cache.row_stride() * dtype_bits(cache.dtype) / 8;
  const std::int64_t num_planes = cache.num_layers * 2 * cache.num_kv_heads;
  for (std::int64_t plane = 0; plane < num_planes; ++plane) {
    f((plane * num_tokens + first) * token_bytes, plane * cache.block_size * token_bytes,
      count * token_bytes);
  }
}

}  // namespace

void Engine::Impl::read_kv(const Sequence& sequence, std::int32_t num_tokens,
                           std::vector<std::byte>& bytes) const {
  const std::int64_t block_bytes = cache.block_bytes();
  bytes.resize(num_tokens * (block_bytes / config.block_size));
  std::vector<std::byte> block(block_bytes);
  for (std::int32_t first = 0; first < num_tokens; first += config.block_size) {
    const BlockId id = sequence.table()[first / config.block_size];
    backend->download(block.data(), static_cast<std::byte*>(cache.data) + id * block_bytes,
                      block_bytes);
    const std::int32_t count = std::min(config.block_size, num_tokens - first);
    for_each_run(cache, num_tokens, first, count,
                 [&](std::int64_t in_file, std::int64_t in_block, std::int64_t size) {
                   std::memcpy(bytes.data() + in_file, block.data() + in_block, size);
                 });
  }
}

void Engine::Impl::write_kv(const Sequence& sequence, std::span<const std::byte> bytes) {
  const std::int64_t block_bytes = cache.block_bytes();
  const std::int32_t num_tokens = sequence.num_computed();
  std::vector<std::byte> block(block_bytes);
  for (std::int32_t first = 0; first < num_tokens; first += config.block_size) {
    const std::int32_t count = std::min(config.block_size, num_tokens - first);
    for_each_run(cache, num_tokens, first, count,
                 [&](std::int64_t in_file, std::int64_t in_block, std::int64_t size) {
                   std::memcpy(block.data() + in_block, bytes.data() + in_file, size);
                 });
    const BlockId id = sequence.table()[first / config.block_size];
    backend->upload(static_cast<std::byte*>(cache.data) + id * block_bytes, block.data(),
                    block_bytes);
  }
}

}  // namespace pagedcore
