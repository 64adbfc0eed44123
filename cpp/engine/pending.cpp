#include "pagedcore/engine.h"
#include "pagedcore/error.h"

namespace pagedcore {

struct Engine::Impl {};

Engine::Engine(const ModelConfig&, Weights, std::unique_ptr<Backend>, const EngineConfig&) {
  PAGEDCORE_CHECK(false, "the engine is not there yet");
}
Engine::~Engine() = default;
RequestId Engine::add_request(std::span<const TokenId>, const SamplingParams&,
                              const RequestOptions&) {
  return 0;
}
std::span<const SequenceUpdate> Engine::step() { return {}; }
void Engine::abort(RequestId) {}
void Engine::finish_sequence(RequestId, std::int32_t) {}
bool Engine::has_unfinished() const { return false; }
Stats Engine::stats() const { return {}; }
std::optional<RequestMetrics> Engine::metrics(RequestId) const { return {}; }
std::vector<std::string> Engine::verify() const { return {}; }
const EngineConfig& Engine::config() const { PAGEDCORE_CHECK(false); }
const ModelConfig& Engine::model_config() const { PAGEDCORE_CHECK(false); }
const MemoryPlan& Engine::memory_plan() const { PAGEDCORE_CHECK(false); }
Backend& Engine::backend() { PAGEDCORE_CHECK(false); }
MemoryPlan Engine::plan_memory(const ModelConfig&, const Weights&, const Backend&,
                               const EngineConfig&) {
  return {};
}

}  // namespace pagedcore
