#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cpp/bindings/bindings.h"
#include "cpp/bindings/record.h"
#include "pagedcore/engine.h"
#include "pagedcore/error.h"

namespace pagedcore::bindings {
namespace {

py::object optional_text(std::string_view text) {
  return text.empty() ? py::object(py::none()) : py::str(text.data(), text.size());
}

// One list of (token, logprob, rank) a token; None where nothing was asked for.
py::object logprob_lists(std::span<const TokenLogprob> logprobs, std::int32_t per_token) {
  if (per_token == 0) return py::none();
  const std::size_t count = logprobs.size() / per_token;
  py::list tokens(count);
  for (std::size_t i = 0; i < count; ++i) {
    py::list entries(per_token);
    for (std::int32_t j = 0; j < per_token; ++j) {
      const TokenLogprob& entry = logprobs[i * per_token + j];
      entries[j] = py::make_tuple(entry.token, entry.logprob, entry.rank);
    }
    tokens[i] = std::move(entries);
  }
  return tokens;
}

// A SequenceUpdate that owns what it shows.
struct PyUpdate {
  explicit PyUpdate(const SequenceUpdate& update)
      : request_id(update.request_id),
        index(update.index),
        new_tokens(update.new_tokens.size()),
        logprobs(logprob_lists(update.logprobs, update.logprobs_per_token)),
        prompt_logprobs(
            update.prompt_logprobs.empty()
                ? py::object(py::none())
                : logprob_lists(update.prompt_logprobs, update.prompt_logprobs_per_token)),
        cumulative_logprob(update.cumulative_logprob),
        score(update.score),
        finish_reason(optional_text(finish_reason_name(update.finish_reason))),
        stop_token(update.stop_token < 0 ? py::object(py::none()) : py::int_(update.stop_token)),
        explanation(optional_text(update.explanation)),
        metrics(update.metrics == nullptr || update.finish_reason == FinishReason::kNone
                    ? py::object(py::none())
                    : py::cast(*update.metrics)) {
    for (std::size_t i = 0; i < update.new_tokens.size(); ++i) new_tokens[i] = update.new_tokens[i];
  }

  RequestId request_id;
  std::int32_t index;
  py::list new_tokens;
  py::object logprobs;
  py::object prompt_logprobs;
  double cumulative_logprob;
  double score;
  py::object finish_reason;
  py::object stop_token;
  py::object explanation;
  py::object metrics;
};

py::list step(Engine& engine) {
  std::span<const SequenceUpdate> updates;
  {
    const py::gil_scoped_release no_gil;
    updates = engine.step();
  }
  py::list result(updates.size());
  for (std::size_t i = 0; i < updates.size(); ++i) result[i] = PyUpdate(updates[i]);
  return result;
}

RequestOptions make_options(std::int32_t priority, std::string tenant, std::string cache_salt,
                            bool hold) {
  return {priority, std::move(tenant), std::move(cache_salt), hold};
}

RequestId fork(Engine& engine, RequestId request_id, const SamplingParams& params,
               std::int32_t index, std::optional<std::int32_t> at_token,
               const std::vector<TokenId>& more_tokens, std::int32_t priority, std::string tenant,
               bool hold) {
  const RequestOptions options = make_options(priority, std::move(tenant), "", hold);
  const py::gil_scoped_release no_gil;
  return engine.fork(request_id, index, at_token, params, more_tokens, options);
}

py::bytes save(const Engine& engine, RequestId request_id, std::optional<std::int32_t> index) {
  std::vector<std::byte> bytes;
  {
    const py::gil_scoped_release no_gil;
    bytes = engine.save(request_id, index);
  }
  return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

RequestId load(Engine& engine, const py::buffer& snapshot,
               const std::optional<SamplingParams>& params, std::int32_t priority,
               std::string tenant, bool hold) {
  const py::buffer_info info = snapshot.request();
  const std::span bytes(static_cast<const std::byte*>(info.ptr),
                        static_cast<std::size_t>(info.size * info.itemsize));
  const RequestOptions options = make_options(priority, std::move(tenant), "", hold);
  const py::gil_scoped_release no_gil;
  return engine.load(bytes, params ? &*params : nullptr, options);
}

RequestId add_request(Engine& engine, const std::vector<TokenId>& prompt,
                      const SamplingParams& params, std::int32_t priority, std::string tenant,
                      std::string cache_salt, bool hold) {
  const RequestOptions options =
      make_options(priority, std::move(tenant), std::move(cache_salt), hold);
  const py::gil_scoped_release no_gil;
  return engine.add_request(prompt, params, options);
}

std::string preemption_mode(const EngineConfig& config) {
  switch (config.preemption_mode) {
    case PreemptionMode::kRecompute:
      return "recompute";
    case PreemptionMode::kSwap:
      return "swap";
    case PreemptionMode::kAuto:
      return "auto";
  }
  return "";
}

void set_preemption_mode(EngineConfig& config, const std::string& name) {
  for (const PreemptionMode mode :
       {PreemptionMode::kRecompute, PreemptionMode::kSwap, PreemptionMode::kAuto}) {
    config.preemption_mode = mode;
    if (preemption_mode(config) == name) return;
  }
  PAGEDCORE_REQUIRE(false, "preemption_mode must be \"recompute\", \"swap\" or \"auto\", got \"",
                    name, "\"");
}

void bind_engine_config(py::module_& m) {
  Record<EngineConfig>(m, "EngineConfig")
      .keyword_init()
      .read_write("block_size", &EngineConfig::block_size)
      .read_write("kv_cache_bytes", &EngineConfig::kv_cache_bytes)
      .read_write("num_blocks", &EngineConfig::num_blocks)
      .read_write("max_model_len", &EngineConfig::max_model_len)
      .read_write("max_num_seqs", &EngineConfig::max_num_seqs)
      .read_write("max_num_batched_tokens", &EngineConfig::max_num_batched_tokens)
      .read_write("enable_prefix_caching", &EngineConfig::enable_prefix_caching)
      .read_write("swap_space_bytes", &EngineConfig::swap_space_bytes)
      .read_write("max_waiting", &EngineConfig::max_waiting)
      .read_write("eos_token_ids", &EngineConfig::eos_token_ids)
      .read_write("seed", &EngineConfig::seed)
      .def_property(
          "kv_dtype",
          [](const EngineConfig& config) {
            return config.kv_dtype ? optional_text(dtype_name(*config.kv_dtype)) : py::none();
          },
          [](EngineConfig& config, const std::optional<std::string>& name) {
            config.kv_dtype =
                name ? std::optional<DType>(dtype_from_name(*name)) : std::optional<DType>();
          })
      .def_property("preemption_mode", &preemption_mode, &set_preemption_mode)
      .def("validate", &EngineConfig::validate);

  Record<MemoryPlan>(m, "MemoryPlan")
      .read("weights_bytes", &MemoryPlan::weights_bytes)
      .read("block_bytes", &MemoryPlan::block_bytes)
      .read("num_blocks", &MemoryPlan::num_blocks)
      .read("kv_cache_bytes", &MemoryPlan::kv_cache_bytes)
      .read("workspace_bytes", &MemoryPlan::workspace_bytes)
      .read("num_host_blocks", &MemoryPlan::num_host_blocks)
      .read("swap_bytes", &MemoryPlan::swap_bytes)
      .read("total_bytes", &MemoryPlan::total_bytes);
}

void bind_updates(py::module_& m) {
  Record<RequestMetrics>(m, "RequestMetrics")
      .read("queue_us", &RequestMetrics::queue_us)
      .read("first_token_us", &RequestMetrics::first_token_us)
      .read("total_us", &RequestMetrics::total_us)
      .read("num_prompt_tokens", &RequestMetrics::num_prompt_tokens)
      .read("num_cached_tokens", &RequestMetrics::num_cached_tokens)
      .read("num_preemptions", &RequestMetrics::num_preemptions)
      .read("num_recomputed_tokens", &RequestMetrics::num_recomputed_tokens)
      .def_property_readonly("last_preemption", [](const RequestMetrics& metrics) {
        return optional_text(metrics.last_preemption);
      });

  Record<PyUpdate>(m, "SequenceUpdate")
      .read("request_id", &PyUpdate::request_id)
      .read("index", &PyUpdate::index)
      .read("new_tokens", &PyUpdate::new_tokens)
      .read("logprobs", &PyUpdate::logprobs)
      .read("prompt_logprobs", &PyUpdate::prompt_logprobs)
      .read("cumulative_logprob", &PyUpdate::cumulative_logprob)
      .read("score", &PyUpdate::score)
      .read("finish_reason", &PyUpdate::finish_reason)
      .read("stop_token", &PyUpdate::stop_token)
      .read("explanation", &PyUpdate::explanation)
      .read("metrics", &PyUpdate::metrics);
}

// Destroys an engine without the GIL: freeing the cache takes time, and other threads may run.
struct EngineDeleter {
  void operator()(Engine* engine) const {
    const py::gil_scoped_release no_gil;
    delete engine;
  }
};

}  // namespace

void bind_engine(py::module_& m) {
  bind_engine_config(m);
  bind_updates(m);

  py::class_<Engine, std::unique_ptr<Engine, EngineDeleter>>(m, "Engine")
      .def(py::init([](const ModelConfig& model, const Weights& weights,
                       std::unique_ptr<Backend> backend, const EngineConfig& config) {
             const py::gil_scoped_release no_gil;
             return std::unique_ptr<Engine, EngineDeleter>(
                 new Engine(model, weights, std::move(backend), config));
           }),
           py::arg("model"), py::arg("weights"), py::arg("backend"), py::arg("config"))
      .def("add_request", &add_request, py::arg("prompt"), py::arg("params"), py::kw_only(),
           py::arg("priority") = 0, py::arg("tenant") = "", py::arg("cache_salt") = "",
           py::arg("hold") = false)
      .def("step", &step)
      .def("abort", &Engine::abort, py::arg("request_id"), py::call_guard<py::gil_scoped_release>())
      .def("finish_sequence", &Engine::finish_sequence, py::arg("request_id"), py::arg("index"),
           py::call_guard<py::gil_scoped_release>())
      .def("fork", &fork, py::arg("request_id"), py::arg("params"), py::kw_only(),
           py::arg("index") = 0, py::arg("at_token") = py::none(),
           py::arg("more_tokens") = std::vector<TokenId>(), py::arg("priority") = 0,
           py::arg("tenant") = "", py::arg("hold") = false)
      .def("hold", &Engine::hold, py::arg("request_id"))
      .def("release", &Engine::release, py::arg("request_id"))
      .def("tokens", &Engine::tokens, py::arg("request_id"), py::arg("index") = 0)
      .def("save", &save, py::arg("request_id"), py::arg("index") = py::none())
      .def("load", &load, py::arg("snapshot"), py::arg("params") = py::none(), py::kw_only(),
           py::arg("priority") = 0, py::arg("tenant") = "", py::arg("hold") = false)
      .def("set_tenant_quota", &Engine::set_tenant_quota, py::arg("tenant"), py::arg("num_blocks"))
      .def("has_unfinished", &Engine::has_unfinished)
      .def("stats", &Engine::stats)
      .def("kv_map", &Engine::kv_map, py::call_guard<py::gil_scoped_release>())
      .def("metrics", &Engine::metrics, py::arg("request_id"))
      .def("verify", &Engine::verify, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("config", &Engine::config)
      .def_property_readonly("model_config", &Engine::model_config)
      .def_property_readonly("memory_plan", &Engine::memory_plan)
      .def_property_readonly("backend_description",
                             [](Engine& engine) { return engine.backend().description(); })
      .def_property_readonly("allocated_bytes",
                             [](Engine& engine) { return engine.backend().allocated_bytes(); })
      .def_static("plan_memory", &Engine::plan_memory, py::arg("model"), py::arg("weights"),
                  py::arg("backend"), py::arg("config"));
}

}  // namespace pagedcore::bindings
