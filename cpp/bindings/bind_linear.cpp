#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>

#include <optional>
#include <vector>

#include "cpp/bindings/array_arg.h"
#include "cpp/bindings/bindings.h"
#include "pagedcore/backend.h"
#include "pagedcore/error.h"
#include "pagedcore/quantize.h"

namespace pagedcore::bindings {
namespace {

using OptionalArray = std::optional<py::object>;

LinearWeight linear_weight(const ArrayArg& array, WeightLayout layout, std::int64_t in_features) {
  const bool out_in = layout == WeightLayout::kOutIn;
  if (out_in) {
    array.require_shape({-1, in_features});
  } else {
    array.require_shape({in_features, -1});
  }
  LinearWeight weight;
  weight.data = array.data();
  weight.dtype = array.dtype();
  weight.layout = layout;
  weight.out_features = array.shape()[out_in ? 0 : 1];
  return weight;
}

void linear(Backend& backend, const py::object& x, const std::vector<py::object>& weights,
            const py::object& y, const std::vector<OptionalArray>& biases, LinearEpilogue epilogue,
            std::optional<Activation> activation, bool in_out, const std::string& x_dtype,
            const std::string& weight_dtype, const std::string& bias_dtype,
            const std::string& y_dtype) {
  const ArrayArg input(x, "x", x_dtype);
  const ArrayArg out(y, "y", y_dtype, true);
  input.require_shape({-1, -1});
  LinearParams params;
  params.num_rows = input.shape()[0];
  params.in_features = input.shape()[1];
  params.x = input.data();
  params.x_dtype = input.dtype();
  params.x_stride = params.in_features;
  params.epilogue = epilogue;
  params.activation = activation.value_or(Activation::kNone);
  params.num_weights = static_cast<int>(weights.size());
  PAGEDCORE_REQUIRE(weights.size() >= 1 && weights.size() <= params.weights.size(),
                    "weights must be 1 to 3 arrays, got ", weights.size());
  PAGEDCORE_REQUIRE(biases.empty() || biases.size() == weights.size(),
                    "biases must be one for each of ", weights.size(), " weights, got ",
                    biases.size());
  std::vector<ArrayArg> kept;  // holds a reference to each array for the call
  std::int64_t width = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    kept.emplace_back(weights[i], "weight", weight_dtype);
    LinearWeight& weight = params.weights[i];
    weight = linear_weight(kept.back(), in_out ? WeightLayout::kInOut : WeightLayout::kOutIn,
                           params.in_features);
    width += weight.out_features;
    if (biases.empty() || !biases[i]) continue;
    kept.emplace_back(*biases[i], "bias", bias_dtype);
    kept.back().require_shape({weight.out_features});
    weight.bias = kept.back().data();
    weight.bias_dtype = kept.back().dtype();
  }
  if (epilogue == LinearEpilogue::kGated) width = params.weights[0].out_features;
  out.require_shape({params.num_rows, width});
  params.y = out.data();
  params.y_dtype = out.dtype();
  params.y_stride = width;
  const py::gil_scoped_release no_gil;
  backend.linear(params);
}

// The shape of the bytes of a quantised matrix.
std::vector<std::int64_t> byte_shape(const TensorView& data) {
  return {data.shape[0], data.shape[1], data.shape[2], 4};
}

std::vector<std::int64_t> shape_of(const TensorView& view) {
  return {view.shape.begin(), view.shape.begin() + view.rank};
}

// Bytes and scales as LinearWeight describes them.
py::tuple quantize(const py::object& weight, const std::string& dtype, std::int64_t group_size,
                   const std::string& weight_dtype, int num_threads) {
  const ArrayArg array(weight, "weight", weight_dtype);
  array.require_shape({-1, -1});
  TensorView view{array.data(), array.dtype(), 2, {array.shape()[0], array.shape()[1]}};
  const DType target = dtype_from_name(dtype);
  PAGEDCORE_REQUIRE(group_size > 0, "group_size must be positive, got ", group_size);
  py::array_t<std::int8_t> data(
      byte_shape(quantized_data_view(target, view.shape[0], view.shape[1])));
  py::array_t<float> scales(
      shape_of(quantized_scales_view(view.shape[0], view.shape[1] / group_size)));
  auto* const bytes = reinterpret_cast<std::uint8_t*>(data.mutable_data());
  float* const factors = scales.mutable_data();
  {
    const py::gil_scoped_release no_gil;
    quantize_weight(view, {target, group_size, false, num_threads}, bytes, factors);
  }
  return py::make_tuple(data, scales);
}

void linear_quantized(Backend& backend, const py::object& x, const py::object& data,
                      const py::object& scales, const py::object& y, const std::string& dtype,
                      std::int64_t group_size, const OptionalArray& zero_points,
                      const std::string& x_dtype) {
  const ArrayArg input(x, "x", x_dtype);
  const ArrayArg bytes(data, "data", "int8");
  const ArrayArg factors(scales, "scales", "float32");
  const ArrayArg out(y, "y", "float32", true);
  input.require_shape({-1, -1});
  LinearParams params;
  params.num_rows = input.shape()[0];
  params.in_features = input.shape()[1];
  params.x = input.data();
  params.x_dtype = input.dtype();
  params.x_stride = params.in_features;
  LinearWeight& weight = params.weights[0];
  weight.dtype = dtype_from_name(dtype);
  out.require_shape({params.num_rows, -1});
  weight.out_features = out.shape()[1];
  weight.data = bytes
                    .require_shape(byte_shape(
                        quantized_data_view(weight.dtype, weight.out_features, params.in_features)))
                    .data();
  weight.group_size = group_size;
  PAGEDCORE_REQUIRE(group_size > 0, "group_size must be positive, got ", group_size);
  const std::vector<std::int64_t> groups =
      shape_of(quantized_scales_view(weight.out_features, params.in_features / group_size));
  weight.scales = factors.require_shape(groups).as<float>();
  if (zero_points) {
    weight.zero_points =
        ArrayArg(*zero_points, "zero_points", "int8").require_shape(groups).as<std::int8_t>();
  }
  params.y = out.data();
  params.y_stride = weight.out_features;
  const py::gil_scoped_release no_gil;
  backend.linear(params);
}

}  // namespace

void bind_linear(py::module_& ops) {
  py::native_enum<LinearEpilogue>(ops, "LinearEpilogue", "enum.Enum")
      .value("STORE", LinearEpilogue::kStore)
      .value("ACCUMULATE", LinearEpilogue::kAccumulate)
      .value("GATED", LinearEpilogue::kGated)
      .finalize();
  ops.def("linear", &linear, py::arg("backend"), py::arg("x"), py::arg("weights"), py::arg("y"),
          py::arg("biases") = std::vector<OptionalArray>{},
          py::arg("epilogue") = LinearEpilogue::kStore, py::arg("activation") = py::none(),
          py::arg("in_out") = false, py::arg("x_dtype") = "", py::arg("weight_dtype") = "",
          py::arg("bias_dtype") = "", py::arg("y_dtype") = "");
  ops.def("quantize_weight", &quantize, py::arg("weight"), py::arg("dtype"), py::arg("group_size"),
          py::arg("weight_dtype") = "", py::arg("num_threads") = 0);
  ops.def("linear_quantized", &linear_quantized, py::arg("backend"), py::arg("x"), py::arg("data"),
          py::arg("scales"), py::arg("y"), py::arg("dtype"), py::arg("group_size"),
          py::arg("zero_points") = py::none(), py::arg("x_dtype") = "");
}

}  // namespace pagedcore::bindings
