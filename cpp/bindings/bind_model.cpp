#include <pybind11/functional.h>
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpp/backend/cpu/memory.h"
#include "cpp/bindings/bindings.h"
#include "cpp/bindings/record.h"
#include "cpp/model/rope.h"
#include "pagedcore/decoder.h"
#include "pagedcore/error.h"
#include "pagedcore/model_config.h"
#include "pagedcore/quantize_weights.h"
#include "pagedcore/tensor.h"

namespace pagedcore::bindings {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// (address, dtype, shape, owner), as pagedcore.tensors.Tensor holds them.
using PyTensor = std::tuple<std::intptr_t, std::string, std::vector<std::int64_t>, py::object>;

Weights make_weights(const std::map<std::string, PyTensor>& tensors) {
  using Owners = std::vector<py::object>;
  const std::shared_ptr<Owners> owners(new Owners, [](Owners* objects) {
    const py::gil_scoped_acquire gil;
    delete objects;
  });
  Weights weights;
  weights.keep_alive = owners;
  for (const auto& [name, tensor] : tensors) {
    const auto& [address, dtype, shape, owner] = tensor;
    TensorView view;
    PAGEDCORE_REQUIRE(shape.size() <= view.shape.size(), "tensor '", name,
                      "' must have at most four dimensions, got ", shape.size());
    view.data = reinterpret_cast<const void*>(address);
    view.dtype = dtype_from_name(dtype);
    view.rank = static_cast<int>(shape.size());
    std::ranges::copy(shape, view.shape.begin());
    weights.tensors.emplace(name, view);
    owners->push_back(owner);
  }
  return weights;
}

// Each tensor's (dtype, shape).
std::map<std::string, std::tuple<std::string, std::vector<std::int64_t>>> describe(
    const Weights& weights) {
  std::map<std::string, std::tuple<std::string, std::vector<std::int64_t>>> result;
  for (const auto& [name, view] : weights.tensors) {
    const std::vector<std::int64_t> shape(view.shape.begin(), view.shape.begin() + view.rank);
    result.emplace(name, std::tuple(std::string(dtype_name(view.dtype)), shape));
  }
  return result;
}

void fault_in(const Weights& weights) {
  for (const auto& [name, view] : weights.tensors) cpu::fault_in(view.data, view.num_bytes());
}

Weights quantize_with_progress(
    const ModelConfig& config, const Weights& weights, const std::string& dtype,
    std::int64_t group_size, int num_threads,
    const std::optional<std::function<void(std::string, std::int64_t, std::int64_t)>>& progress) {
  const WeightQuantization quantization{dtype_from_name(dtype), group_size, num_threads};
  const py::gil_scoped_release no_gil;
  if (!progress) return quantize_weights(config, weights, quantization);
  return quantize_weights(config, weights, quantization,
                          [&](std::string_view tensor, std::int64_t done, std::int64_t total) {
                            const py::gil_scoped_acquire gil;
                            (*progress)(std::string(tensor), done, total);
                          });
}

KvCacheView cache_view(const py::array& array, const std::string& dtype) {
  PAGEDCORE_REQUIRE(array.ndim() == 6 && array.shape(2) == 2 && array.writeable() &&
                        (array.flags() & py::array::c_style) != 0,
                    "cache must be a writable dense array [num_blocks, num_layers, 2, "
                    "num_kv_heads, block_size, head_dim]");
  KvCacheView view;
  view.data = const_cast<void*>(array.data());
  view.dtype = dtype_from_name(dtype);
  PAGEDCORE_REQUIRE(array.itemsize() * 8 == dtype_bits(view.dtype), "cache must have elements of ",
                    dtype_bits(view.dtype), " bits for ", dtype, ", got ", array.itemsize() * 8);
  view.num_blocks = array.shape(0);
  view.num_layers = array.shape(1);
  view.num_kv_heads = array.shape(3);
  view.block_size = array.shape(4);
  view.head_dim = array.shape(5) - view.row_scale_bytes();
  return view;
}

// One forward pass over host arrays that must agree with each other as ForwardBatch says.
py::array_t<float> forward(Decoder& decoder, Backend& backend, const Array<std::int32_t>& tokens,
                           const Array<std::int32_t>& positions, const Array<std::int64_t>& slots,
                           const Array<std::int32_t>& query_starts,
                           const Array<std::int32_t>& context_lens,
                           const Array<std::int32_t>& block_tables,
                           const Array<std::int32_t>& logit_rows, const py::array& cache,
                           const std::string& cache_dtype) {
  const KvCacheView view = cache_view(cache, cache_dtype);
  PAGEDCORE_REQUIRE(block_tables.ndim() == 2 && block_tables.shape(0) == context_lens.size() &&
                        query_starts.size() == context_lens.size() + 1,
                    "block_tables and query_starts must fit context_lens");
  PAGEDCORE_REQUIRE(positions.size() == tokens.size() && slots.size() == tokens.size(),
                    "positions and slots must have one entry a token");
  PAGEDCORE_REQUIRE(logit_rows.size() <= decoder.limits().max_logit_rows,
                    "logit_rows must have at most max_logit_rows (",
                    decoder.limits().max_logit_rows, ") entries, got ", logit_rows.size());
  ForwardBatch batch;
  batch.num_tokens = static_cast<std::int32_t>(tokens.size());
  batch.num_seqs = static_cast<std::int32_t>(context_lens.size());
  batch.num_logit_rows = static_cast<std::int32_t>(logit_rows.size());
  std::vector<std::int32_t> table_rows(batch.num_seqs);
  for (std::int32_t i = 0; i < batch.num_seqs; ++i) {
    const std::int32_t query_len = query_starts.at(i + 1) - query_starts.at(i);
    batch.max_query_len = std::max(batch.max_query_len, query_len);
    batch.max_context_len = std::max(batch.max_context_len, context_lens.at(i) + query_len);
    table_rows[i] = i;
  }
  batch.tokens = tokens.data();
  batch.positions = positions.data();
  batch.slots = slots.data();
  batch.query_starts = query_starts.data();
  batch.context_lens = context_lens.data();
  batch.table_rows = table_rows.data();
  batch.block_tables = block_tables.data();
  batch.table_stride = block_tables.shape(1);
  batch.logit_rows = logit_rows.data();

  py::array_t<float> logits({logit_rows.size(), py::ssize_t{decoder.config().vocab_size}});
  float* const out = logits.mutable_data();
  const py::gil_scoped_release no_gil;
  const float* const result = decoder.forward(backend.stage(batch), view);
  backend.download(out, result, logits.nbytes());
  return logits;
}

void bind_enums(py::module_& m) {
  py::native_enum<NormKind>(m, "NormKind", "enum.Enum")
      .value("RMS", NormKind::kRms)
      .value("LAYER", NormKind::kLayer)
      .finalize();
  py::native_enum<Activation>(m, "Activation", "enum.Enum")
      .value("SILU", Activation::kSilu)
      .value("GELU", Activation::kGelu)
      .value("GELU_TANH", Activation::kGeluTanh)
      .value("RELU", Activation::kRelu)
      .finalize();
  py::native_enum<PositionKind>(m, "PositionKind", "enum.Enum")
      .value("ROPE", PositionKind::kRope)
      .value("LEARNED", PositionKind::kLearned)
      .finalize();
  py::native_enum<RopeScalingKind>(m, "RopeScalingKind", "enum.Enum")
      .value("NONE", RopeScalingKind::kNone)
      .value("LINEAR", RopeScalingKind::kLinear)
      .value("DYNAMIC", RopeScalingKind::kDynamic)
      .value("YARN", RopeScalingKind::kYarn)
      .value("LLAMA3", RopeScalingKind::kLlama3)
      .finalize();
}

void bind_model_config(py::module_& m) {
  Record<RopeScaling>(m, "RopeScaling")
      .read_write("kind", &RopeScaling::kind)
      .read_write("factor", &RopeScaling::factor)
      .read_write("low_freq_factor", &RopeScaling::low_freq_factor)
      .read_write("high_freq_factor", &RopeScaling::high_freq_factor)
      .read_write("original_max_position_embeddings",
                  &RopeScaling::original_max_position_embeddings)
      .read_write("beta_fast", &RopeScaling::beta_fast)
      .read_write("beta_slow", &RopeScaling::beta_slow)
      .read_write("attention_factor", &RopeScaling::attention_factor)
      .read_write("mscale", &RopeScaling::mscale)
      .read_write("mscale_all_dim", &RopeScaling::mscale_all_dim)
      .read_write("truncate", &RopeScaling::truncate)
      .def(py::init<>());

  Record<ModelConfig>(m, "ModelConfig")
      .read_write("architecture", &ModelConfig::architecture)
      .read_write("vocab_size", &ModelConfig::vocab_size)
      .read_write("hidden_size", &ModelConfig::hidden_size)
      .read_write("intermediate_size", &ModelConfig::intermediate_size)
      .read_write("num_layers", &ModelConfig::num_layers)
      .read_write("num_heads", &ModelConfig::num_heads)
      .read_write("num_kv_heads", &ModelConfig::num_kv_heads)
      .read_write("head_dim", &ModelConfig::head_dim)
      .read_write("max_position_embeddings", &ModelConfig::max_position_embeddings)
      .read_write("embedding_size", &ModelConfig::embedding_size)
      .read_write("norm", &ModelConfig::norm)
      .read_write("norm_epsilon", &ModelConfig::norm_epsilon)
      .read_write("norm_affine", &ModelConfig::norm_affine)
      .read_write("norm_after", &ModelConfig::norm_after)
      .read_write("final_norm", &ModelConfig::final_norm)
      .read_write("qk_norm", &ModelConfig::qk_norm)
      .read_write("position", &ModelConfig::position)
      .read_write("position_offset", &ModelConfig::position_offset)
      .read_write("rope_theta", &ModelConfig::rope_theta)
      .read_write("rotary_dim", &ModelConfig::rotary_dim)
      .read_write("rope_scaling", &ModelConfig::rope_scaling)
      .read_write("activation", &ModelConfig::activation)
      .read_write("gated_mlp", &ModelConfig::gated_mlp)
      .read_write("qkv_bias", &ModelConfig::qkv_bias)
      .read_write("output_bias", &ModelConfig::output_bias)
      .read_write("mlp_bias", &ModelConfig::mlp_bias)
      .read_write("tied_embeddings", &ModelConfig::tied_embeddings)
      .read_write("sliding_window", &ModelConfig::sliding_window)
      .read_write("layer_uses_window", &ModelConfig::layer_uses_window)
      .read_write("attention_softcap", &ModelConfig::attention_softcap)
      .read_write("attention_scale", &ModelConfig::attention_scale)
      .read_write("attention_scale_by_layer", &ModelConfig::attention_scale_by_layer)
      .def(py::init<>())
      .def("validate", &ModelConfig::validate);
  m.def("supported_architectures", &supported_architectures);
  m.def(
      "rope_table",
      [](const ModelConfig& config, std::int64_t num_positions) {
        config.validate();
        const std::vector<float> table = rope_table(config, num_positions);
        return py::array_t<float>({num_positions, rotary_dim(config)}, table.data());
      },
      py::arg("config"), py::arg("num_positions"));
}

}  // namespace

void bind_model(py::module_& m) {
  bind_enums(m);
  bind_model_config(m);

  m.def(  // of a buffer's first byte, for a PyTensor
      "address_of",
      [](const py::buffer& memory) {
        return reinterpret_cast<std::intptr_t>(memory.request().ptr);
      },
      py::arg("memory"));
  py::class_<Weights>(m, "Weights")
      .def(py::init(&make_weights), py::arg("tensors"))
      .def("__len__", [](const Weights& weights) { return weights.tensors.size(); })
      .def("describe", &describe)
      .def("fault_in", &fault_in, py::call_guard<py::gil_scoped_release>());
  m.def("quantize_weights", &quantize_with_progress, py::arg("config"), py::arg("weights"),
        py::arg("dtype"), py::arg("group_size") = 32, py::arg("num_threads") = 0,
        py::arg("progress") = py::none());
  m.def(
      "plan_quantized_weights",
      [](const ModelConfig& config, const Weights& weights, const std::string& dtype,
         std::int64_t group_size) {
        return plan_quantized_weights(config, weights, {dtype_from_name(dtype), group_size});
      },
      py::arg("config"), py::arg("weights"), py::arg("dtype"), py::arg("group_size") = 32);

  py::class_<Decoder>(m, "Decoder")
      .def(py::init([](const ModelConfig& config, const Weights& weights, Backend& backend,
                       std::int32_t max_tokens, std::int32_t max_logit_rows,
                       std::int32_t max_positions) {
             return std::make_unique<Decoder>(
                 config, weights, backend,
                 DecoderLimits{max_tokens, max_logit_rows, max_positions});
           }),
           py::arg("config"), py::arg("weights"), py::arg("backend"), py::arg("max_tokens"),
           py::arg("max_logit_rows"), py::arg("max_positions") = 0, py::keep_alive<1, 4>())
      .def("forward", &forward, py::arg("backend"), py::kw_only(), py::arg("tokens"),
           py::arg("positions"), py::arg("slots"), py::arg("query_starts"), py::arg("context_lens"),
           py::arg("block_tables"), py::arg("logit_rows"), py::arg("cache"), py::arg("cache_dtype"))
      .def_static(
          "workspace_bytes",
          [](const ModelConfig& config, const Weights& weights, const Backend& backend,
             std::int32_t max_tokens, std::int32_t max_logit_rows, std::int32_t max_positions) {
            return Decoder::workspace_bytes(
                config, weights, backend, DecoderLimits{max_tokens, max_logit_rows, max_positions});
          },
          py::arg("config"), py::arg("weights"), py::arg("backend"), py::arg("max_tokens"),
          py::arg("max_logit_rows"), py::arg("max_positions") = 0);
}

}  // namespace pagedcore::bindings
