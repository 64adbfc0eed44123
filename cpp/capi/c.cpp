#include "pagedcore/c.h"

#include <charconv>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "cpp/capi/options.h"
#include "pagedcore/engine.h"
#include "pagedcore/error.h"

using namespace pagedcore::capi;
using pagedcore::Engine;

struct pagedcore_engine {
  std::unique_ptr<Engine> engine;
  std::vector<pagedcore_update> updates;  // of the last step
};

namespace {

// The one thing that a C caller cannot be handed: kept for each thread.
std::string& last_error() {
  thread_local std::string message;
  return message;
}

pagedcore_status fail(pagedcore_status status, const char* message) noexcept {
  try {
    last_error() = message;
  } catch (...) {
    last_error().clear();
  }
  return status;
}

// Runs f and turns what it throws into a status and a message.
template <typename F>
pagedcore_status guarded(F&& f) noexcept {
  try {
    f();
    return PAGEDCORE_OK;
  } catch (const pagedcore::InvalidArgument& error) {
    return fail(PAGEDCORE_INVALID_ARGUMENT, error.what());
  } catch (const pagedcore::QueueFull& error) {
    return fail(PAGEDCORE_QUEUE_FULL, error.what());
  } catch (const pagedcore::OutOfMemory& error) {
    return fail(PAGEDCORE_OUT_OF_MEMORY, error.what());
  } catch (const std::bad_alloc& error) {
    return fail(PAGEDCORE_OUT_OF_MEMORY, error.what());
  } catch (const pagedcore::BackendUnavailable& error) {
    return fail(PAGEDCORE_BACKEND_UNAVAILABLE, error.what());
  } catch (const pagedcore::DeviceError& error) {
    return fail(PAGEDCORE_DEVICE_ERROR, error.what());
  } catch (const std::exception& error) {
    return fail(PAGEDCORE_INTERNAL_ERROR, error.what());
  }
}

template <typename T>
T& checked(T* pointer, const char* name) {
  PAGEDCORE_REQUIRE(pointer != nullptr, name, " must not be null");
  return *pointer;
}

std::string_view checked_text(const char* text, const char* name) { return &checked(text, name); }

template <typename T>
const T& options_of(const pagedcore_options* options, const char* name, const char* kind) {
  const T* value = std::get_if<T>(&checked(options, name).value);
  PAGEDCORE_REQUIRE(value != nullptr, name, " must be options of kind \"", kind, "\"");
  return *value;
}

std::unique_ptr<pagedcore::Backend> make_backend(std::string_view device,
                                                 std::int32_t num_threads) {
  if (device == "cpu") return pagedcore::make_cpu_backend({num_threads, ""});
  int number = 0;
  std::string_view rest = device;
  bool is_valid = rest.starts_with("cuda");
  if (is_valid && rest.size() > 4) {
    rest.remove_prefix(4);
    const char* end = rest.data() + rest.size();
    is_valid = rest.size() > 1 && rest[0] == ':' &&
               std::from_chars(rest.data() + 1, end, number).ptr == end && number >= 0;
  }
  PAGEDCORE_REQUIRE(is_valid, "device must be \"cpu\", \"cuda\" or \"cuda:N\", got \"", device,
                    "\"");
  return pagedcore::make_cuda_backend({.device = number});
}

pagedcore::Weights make_weights(const pagedcore_tensor* tensors, size_t count) {
  pagedcore::Weights weights;
  for (size_t i = 0; i < count; ++i) {
    const pagedcore_tensor& tensor = checked(tensors + i, "tensors");
    pagedcore::TensorView view;
    PAGEDCORE_REQUIRE(tensor.rank >= 0 && tensor.rank <= 4, "tensors[", i,
                      "].rank must be from 0 to 4, got ", tensor.rank);
    view.data = &checked(static_cast<const char*>(tensor.data), "tensors[].data");
    view.dtype = pagedcore::dtype_from_name(checked_text(tensor.dtype, "tensors[].dtype"));
    view.rank = tensor.rank;
    for (std::int32_t j = 0; j < tensor.rank; ++j) view.shape[j] = tensor.shape[j];
    weights.tensors.emplace(checked_text(tensor.name, "tensors[].name"), view);
  }
  return weights;
}

}  // namespace

const char* pagedcore_last_error(void) { return last_error().c_str(); }

pagedcore_status pagedcore_options_create(const char* kind, pagedcore_options** out) {
  return guarded([&] {
    pagedcore_options*& slot = checked(out, "out");
    const std::string_view name = checked_text(kind, "kind");
    auto options = std::make_unique<pagedcore_options>();
    if (name == "engine") {
      options->value = pagedcore::EngineConfig();
    } else if (name == "sampling") {
      options->value = pagedcore::SamplingParams();
    } else if (name == "request") {
      options->value = pagedcore::RequestOptions();
    } else {
      PAGEDCORE_REQUIRE(name == "model",
                        "kind must be \"model\", \"engine\", \"sampling\" or \"request\", got \"",
                        name, "\"");
    }
    slot = options.release();
  });
}

void pagedcore_options_destroy(pagedcore_options* options) {
  const std::unique_ptr<pagedcore_options> owned(options);
}

pagedcore_status pagedcore_options_set_number(pagedcore_options* options, const char* name,
                                              double value) {
  return guarded(
      [&] { set_number(checked(options, "options"), checked_text(name, "name"), value); });
}

pagedcore_status pagedcore_options_set_text(pagedcore_options* options, const char* name,
                                            const char* value) {
  return guarded([&] {
    set_text(checked(options, "options"), checked_text(name, "name"), checked_text(value, "value"));
  });
}

pagedcore_status pagedcore_options_set_tokens(pagedcore_options* options, const char* name,
                                              const int32_t* tokens, size_t count) {
  return guarded([&] {
    if (count > 0) checked(tokens, "tokens");
    token_list(checked(options, "options"), checked_text(name, "name"))
        .assign(tokens, tokens + count);
  });
}

pagedcore_status pagedcore_engine_create(const pagedcore_options* model,
                                         const pagedcore_tensor* tensors, size_t num_tensors,
                                         const char* device, int32_t num_threads,
                                         const pagedcore_options* engine, pagedcore_engine** out) {
  return guarded([&] {
    pagedcore_engine*& slot = checked(out, "out");
    auto handle = std::make_unique<pagedcore_engine>();
    handle->engine =
        std::make_unique<Engine>(options_of<pagedcore::ModelConfig>(model, "model", "model"),
                                 make_weights(tensors, num_tensors),
                                 make_backend(checked_text(device, "device"), num_threads),
                                 options_of<pagedcore::EngineConfig>(engine, "engine", "engine"));
    slot = handle.release();
  });
}

void pagedcore_engine_destroy(pagedcore_engine* engine) {
  const std::unique_ptr<pagedcore_engine> owned(engine);
}

pagedcore_status pagedcore_add_request(pagedcore_engine* engine, const int32_t* prompt,
                                       size_t prompt_length, const pagedcore_options* sampling,
                                       const pagedcore_options* request, int64_t* request_id) {
  return guarded([&] {
    if (prompt_length > 0) checked(prompt, "prompt");
    int64_t& id = checked(request_id, "request_id");
    const auto& params = options_of<pagedcore::SamplingParams>(sampling, "sampling", "sampling");
    const auto options = request == nullptr
                             ? pagedcore::RequestOptions()
                             : options_of<pagedcore::RequestOptions>(request, "request", "request");
    id = checked(engine, "engine").engine->add_request({prompt, prompt_length}, params, options);
  });
}

pagedcore_status pagedcore_set_tenant_quota(pagedcore_engine* engine, const char* tenant,
                                            int32_t num_blocks) {
  return guarded([&] {
    checked(engine, "engine").engine->set_tenant_quota(checked_text(tenant, "tenant"), num_blocks);
  });
}

pagedcore_status pagedcore_abort(pagedcore_engine* engine, int64_t request_id) {
  return guarded([&] { checked(engine, "engine").engine->abort(request_id); });
}

pagedcore_status pagedcore_has_unfinished(const pagedcore_engine* engine, int32_t* out) {
  return guarded(
      [&] { checked(out, "out") = checked(engine, "engine").engine->has_unfinished() ? 1 : 0; });
}

pagedcore_status pagedcore_step(pagedcore_engine* engine, const pagedcore_update** updates,
                                size_t* num_updates) {
  return guarded([&] {
    pagedcore_engine& handle = checked(engine, "engine");
    checked(updates, "updates");
    checked(num_updates, "num_updates");
    handle.updates.clear();
    for (const pagedcore::SequenceUpdate& update : handle.engine->step()) {
      const std::string_view reason = finish_reason_name(update.finish_reason);
      handle.updates.push_back({update.request_id, update.index, update.new_tokens.data(),
                                update.new_tokens.size(), update.cumulative_logprob,
                                reason.empty() ? nullptr : reason.data(), update.stop_token});
    }
    *updates = handle.updates.data();
    *num_updates = handle.updates.size();
  });
}
