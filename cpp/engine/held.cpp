#include <algorithm>
#include <utility>

#include "cpp/engine/impl.h"
#include "pagedcore/error.h"

namespace pagedcore {

void Engine::Impl::hold(RequestId id) {
  const auto found = requests.find(id);
  if (found == requests.end()) return;
  found->second->is_held = true;
}

void Engine::Impl::release(RequestId id) {
  auto found = requests.find(id);
  const bool is_live = found != requests.end();
  if (!is_live && (found = held.find(id)) == held.end()) return;
  RequestState& request = *found->second;
  request.is_held = false;
  for (const auto& state : request.sequences) {
    if (state->held != nullptr) {
      state->kept_tokens = scheduler.release(*std::exchange(state->held, nullptr));
    }
    if (!request.updates_at_end) state->kept_tokens.clear();
  }
  if (is_live) return;
  ended.push_back(std::move(found->second));
  held.erase(found);
}

const RequestState& Engine::Impl::find_request(RequestId id) const {
  auto found = requests.find(id);
  if (found == requests.end()) found = held.find(id);
  PAGEDCORE_REQUIRE(found != requests.end() && found != held.end(), "request_id ", id,
                    " is neither live nor held");
  return *found->second;
}

const SequenceState& Engine::Impl::find_sequence(RequestId id, std::int32_t index) const {
  const RequestState& request = find_request(id);
  const auto count = static_cast<std::int32_t>(request.sequences.size());
  PAGEDCORE_REQUIRE(index >= 0 && index < count, "index must be from 0 to ", count - 1, ", got ",
                    index);
  const SequenceState& state = *request.sequences[index];
  const bool is_known = state.sequence != nullptr || request.is_held;
  PAGEDCORE_REQUIRE(is_known && !state.tokens().empty(), "sequence ", index, " of request ", id,
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
  auto made = make_request(static_cast<std::int32_t>(prompt.size()), params, options);
  made->options.cache_salt = parent.request->options.cache_salt;
  Sequence* const sequence = parent.sequence != nullptr ? parent.sequence : parent.held;
  return start(std::move(made), [&](RequestState& request) {
    link(request.add_sequence(),
         sequence == nullptr
             ? scheduler.add(spec_of(request, prompt))
             : scheduler.fork_request(*sequence, num_tokens, spec_of(request, more_tokens)));
  });
}

}  // namespace pagedcore
