// The C interface gives what the C++ one gives, and says what is wrong.
#include <cstring>
#include <string>
#include <vector>

#include "pagedcore/c.h"
#include "pagedcore/engine.h"
#include "tests/native/check.h"
#include "tests/support/tiny_model.h"

using namespace pagedcore;

namespace {

const std::vector<std::int32_t> kPrompt = {3, 1, 4, 1, 5, 9, 2, 6};

pagedcore_options* make_options(const char* kind) {
  pagedcore_options* options = nullptr;
  CHECK(pagedcore_options_create(kind, &options) == PAGEDCORE_OK);
  return options;
}

void set(pagedcore_options* options, const char* name, double value) {
  CHECK(pagedcore_options_set_number(options, name, value) == PAGEDCORE_OK);
}

bool last_error_has(const char* text) {
  return std::strstr(pagedcore_last_error(), text) != nullptr;
}

pagedcore_options* make_model(const ModelConfig& model) {
  pagedcore_options* options = make_options("model");
  CHECK(pagedcore_options_set_text(options, "architecture", model.architecture.c_str()) ==
        PAGEDCORE_OK);
  set(options, "vocab_size", static_cast<double>(model.vocab_size));
  set(options, "hidden_size", static_cast<double>(model.hidden_size));
  set(options, "embedding_size", static_cast<double>(model.embedding_size));
  set(options, "intermediate_size", static_cast<double>(model.intermediate_size));
  set(options, "num_layers", static_cast<double>(model.num_layers));
  set(options, "num_heads", static_cast<double>(model.num_heads));
  set(options, "num_kv_heads", static_cast<double>(model.num_kv_heads));
  set(options, "head_dim", static_cast<double>(model.head_dim));
  set(options, "max_position_embeddings", static_cast<double>(model.max_position_embeddings));
  return options;
}

std::vector<pagedcore_tensor> make_tensors(const Weights& weights) {
  std::vector<pagedcore_tensor> tensors;
  for (const auto& [name, view] : weights.tensors) {
    tensors.push_back({name.c_str(),
                       "float32",
                       view.data,
                       view.rank,
                       {view.shape[0], view.shape[1], view.shape[2], view.shape[3]}});
  }
  return tensors;
}

std::vector<TokenId> generate_in_cpp(const ModelConfig& model, const Weights& weights) {
  EngineConfig config;
  config.num_blocks = 32;
  Engine engine(model, weights, make_cpu_backend({1, ""}), config);
  SamplingParams params;
  params.seed = 5;
  params.max_tokens = 12;
  engine.add_request(kPrompt, params);
  std::vector<TokenId> tokens;
  while (engine.has_unfinished()) {
    for (const SequenceUpdate& update : engine.step()) tokens.push_back(update.new_tokens[0]);
  }
  return tokens;
}

std::vector<TokenId> generate_in_c(pagedcore_engine* engine, const pagedcore_options* sampling) {
  std::int64_t id = -1;
  CHECK(pagedcore_add_request(engine, kPrompt.data(), kPrompt.size(), sampling, nullptr, &id) ==
        PAGEDCORE_OK);
  std::vector<TokenId> tokens;
  std::int32_t unfinished = 1;
  while (unfinished != 0) {
    const pagedcore_update* updates = nullptr;
    size_t num_updates = 0;
    CHECK(pagedcore_step(engine, &updates, &num_updates) == PAGEDCORE_OK);
    CHECK(pagedcore_has_unfinished(engine, &unfinished) == PAGEDCORE_OK);
    for (size_t i = 0; i < num_updates; ++i) {
      CHECK(updates[i].request_id == id && updates[i].num_new_tokens == 1);
      tokens.push_back(updates[i].new_tokens[0]);
      CHECK((updates[i].finish_reason != nullptr) == (unfinished == 0));
    }
  }
  return tokens;
}

// Two requests of one tenant whose quota lets one run at a time: the later one first, by priority.
void check_request_options(pagedcore_engine* engine, const pagedcore_options* sampling) {
  pagedcore_options* request = make_options("request");
  CHECK(pagedcore_options_set_text(request, "tenant", "anna") == PAGEDCORE_OK);
  CHECK(pagedcore_set_tenant_quota(engine, "anna", 2) == PAGEDCORE_OK);
  std::int64_t ids[2] = {-1, -1};
  for (int i = 0; i < 2; ++i) {
    set(request, "priority", 1 - i);
    CHECK(pagedcore_add_request(engine, kPrompt.data(), kPrompt.size(), sampling, request,
                                &ids[i]) == PAGEDCORE_OK);
  }
  std::vector<std::int64_t> ended;
  while (ended.size() < 2) {
    const pagedcore_update* updates = nullptr;
    size_t num_updates = 0;
    CHECK(pagedcore_step(engine, &updates, &num_updates) == PAGEDCORE_OK);
    for (size_t i = 0; i < num_updates; ++i) {
      if (updates[i].finish_reason != nullptr) ended.push_back(updates[i].request_id);
    }
  }
  CHECK(ended[0] == ids[1] && ended[1] == ids[0]);
  CHECK(pagedcore_set_tenant_quota(engine, "anna", 0) == PAGEDCORE_OK);
  CHECK(pagedcore_set_tenant_quota(engine, "anna", -1) == PAGEDCORE_INVALID_ARGUMENT);
  CHECK(pagedcore_add_request(engine, kPrompt.data(), 1, sampling, sampling, ids) ==
        PAGEDCORE_INVALID_ARGUMENT);
  CHECK(last_error_has("\"request\""));
  pagedcore_options_destroy(request);
}

}  // namespace

int main() {
  const auto [model, weights] = test::make_tiny_llama();
  pagedcore_options* model_options = make_model(model);
  pagedcore_options* engine_options = make_options("engine");
  pagedcore_options* sampling = make_options("sampling");
  set(engine_options, "num_blocks", 32);
  set(sampling, "seed", 5);
  set(sampling, "max_tokens", 12);
  const std::vector<pagedcore_tensor> tensors = make_tensors(weights);

  pagedcore_engine* engine = nullptr;
  CHECK(pagedcore_engine_create(model_options, tensors.data(), tensors.size(), "cpu", 1,
                                engine_options, &engine) == PAGEDCORE_OK);
  CHECK(generate_in_c(engine, sampling) == generate_in_cpp(model, weights));
  check_request_options(engine, sampling);

  std::int64_t id = -1;
  CHECK(pagedcore_add_request(engine, nullptr, 0, sampling, nullptr, &id) ==
        PAGEDCORE_INVALID_ARGUMENT);
  CHECK(last_error_has("prompt must have at least one token"));
  CHECK(pagedcore_add_request(engine, kPrompt.data(), 1, engine_options, nullptr, &id) ==
        PAGEDCORE_INVALID_ARGUMENT);
  CHECK(last_error_has("\"sampling\""));
  CHECK(pagedcore_options_set_number(sampling, "temprature", 1) == PAGEDCORE_INVALID_ARGUMENT);
  CHECK(last_error_has("temprature"));
  CHECK(pagedcore_options_set_number(sampling, "n", 1.5) == PAGEDCORE_INVALID_ARGUMENT);
  CHECK(pagedcore_options_set_tokens(sampling, "stop_token_ids", kPrompt.data(), 2) ==
        PAGEDCORE_OK);
  CHECK(pagedcore_options_set_text(engine_options, "kv_dtype", "float16") == PAGEDCORE_OK);
  CHECK(pagedcore_options_create("unknown", &sampling) == PAGEDCORE_INVALID_ARGUMENT);
  pagedcore_engine* none = nullptr;
  CHECK(pagedcore_engine_create(model_options, tensors.data(), 1, "cpu", 1, engine_options,
                                &none) == PAGEDCORE_INVALID_ARGUMENT);
  CHECK(none == nullptr);
  CHECK(pagedcore_engine_create(model_options, tensors.data(), 1, "tpu", 1, engine_options,
                                &none) == PAGEDCORE_INVALID_ARGUMENT);
  CHECK(pagedcore_abort(engine, 99) == PAGEDCORE_OK);
  CHECK(pagedcore_abort(nullptr, 99) == PAGEDCORE_INVALID_ARGUMENT);

  pagedcore_engine_destroy(engine);
  pagedcore_engine_destroy(nullptr);
  pagedcore_options_destroy(model_options);
  pagedcore_options_destroy(engine_options);
  pagedcore_options_destroy(sampling);
}
