// The matrix products of CudaBackend.
#include <algorithm>

#include "cuda/backend/cuda_backend.h"
#include "pagedcore/error.h"

namespace pagedcore::cuda {

CudaBackend::Product CudaBackend::choose_product(const LinearParams& p) const {
  if (p.norm.weight == nullptr && p.x_squares == nullptr && gemv_serves(p)) return Product::kGemv;
  return properties_.major == 9 && skinny_linear_serves(p) ? Product::kSkinny : Product::kCublas;
}

bool CudaBackend::splits_norm(const LinearParams& p) const {
  // Before it is ended, a row may be too large for float16.
  if (p.x_dtype != DType::kBFloat16) return false;
  if (p.norm.weight == nullptr) return p.epilogue != LinearEpilogue::kAccumulate;
  return p.x_squares == nullptr && !gemv_serves(p) && choose_product(p) == Product::kSkinny;
}

void CudaBackend::matrix_products(const LinearParams& p, void* y, std::int64_t y_stride,
                                  bool accumulate) {
  const auto bytes = [](DType dtype, std::int64_t elements) {
    return elements * dtype_bits(dtype) / 8;
  };
  std::int64_t column = 0;
  for (int i = 0; i < p.num_weights;) {
    const LinearWeight& first = p.weights[i];
    std::int64_t out_features = first.out_features;
    const char* end =
        static_cast<const char*>(first.data) + bytes(first.dtype, out_features * p.in_features);
    for (++i; i < p.num_weights && p.weights[i].data == end && first.layout == WeightLayout::kOutIn;
         ++i) {
      out_features += p.weights[i].out_features;
      end += bytes(first.dtype, p.weights[i].out_features * p.in_features);
    }
    cublas_.matmul({.num_rows = p.num_rows,
                    .in_features = p.in_features,
                    .out_features = out_features,
                    .x = p.x,
                    .x_stride = p.x_stride,
                    .weight = first.data,
                    .transposed = first.layout == WeightLayout::kInOut,
                    .dtype = first.dtype,
                    .y = static_cast<char*>(y) + bytes(p.y_dtype, column),
                    .y_dtype = p.y_dtype,
                    .y_stride = y_stride,
                    .accumulate = accumulate},
                   gemm_workspace_.reserve(CublasLt::kWorkspaceBytes), stream_);
    column += out_features;
  }
}

void CudaBackend::do_linear(const LinearParams& p) {
  PAGEDCORE_REQUIRE(p.weights[0].dtype == p.x_dtype,
                    "linear on CUDA: x must have the weights' dtype ",
                    dtype_name(p.weights[0].dtype), ", got ", dtype_name(p.x_dtype));
  if (!graphs_.admit(p)) return;
  switch (choose_product(p)) {
    case Product::kGemv:
      return launch_gemv(p, stream_);
    case Product::kSkinny:
      return launch_skinny_linear(p, nullptr, stream_);
    case Product::kCublas:
      return linear_by_cublas(p);
  }
}

namespace {

bool has_bias(const LinearParams& p) {
  return std::any_of(p.weights.begin(), p.weights.begin() + p.num_weights,
                     [](const LinearWeight& weight) { return weight.bias != nullptr; });
}

}  // namespace

void CudaBackend::linear_by_cublas(const LinearParams& p) {
  const RowSquares squares{p.x_squares, p.in_features, p.x_epsilon};
  if (p.epilogue == LinearEpilogue::kGated) return gated_linear_by_cublas(p, squares);
  biased_products(p, p.y, p.y_stride, squares);
  if (p.activation == Activation::kNone) return;
  std::int64_t width = 0;
  for (int i = 0; i < p.num_weights; ++i) width += p.weights[i].out_features;
  launch_bias_activation({.num_rows = p.num_rows,
                          .width = width,
                          .y = p.y,
                          .y_dtype = p.y_dtype,
                          .y_stride = p.y_stride,
                          .activation = p.activation},
                         stream_);
}

void CudaBackend::gated_linear_by_cublas(const LinearParams& p, const RowSquares& squares) {
  const std::int64_t width = p.weights[0].out_features, stride = 2 * width;
  PAGEDCORE_CHECK(p.y_stride == width, p.y_stride);
  void* gate_up = gate_up_.reserve(p.num_rows * stride * dtype_bits(p.y_dtype) / 8);
  // The activation ends the norm, unless a bias comes in between.
  const bool biased = has_bias(p);
  biased_products(p, gate_up, stride, biased ? squares : RowSquares{});
  launch_gated_activation({.num_rows = p.num_rows,
                           .width = width,
                           .gate_up = gate_up,
                           .dtype = p.y_dtype,
                           .activation = p.activation,
                           .y = p.y,
                           .y_dtype = p.y_dtype},
                          biased ? RowSquares{} : squares, stream_);
}

void CudaBackend::biased_products(const LinearParams& p, void* y, std::int64_t y_stride,
                                  const RowSquares& squares) {
  const bool adds = p.epilogue == LinearEpilogue::kAccumulate;
  if (squares.sums != nullptr) {
    matrix_products(p, y, y_stride, adds);
    return add_biases(p, y, y_stride, true, squares);
  }
  // A bias goes in first and the product is added to it, which rounds once as an epilogue would.
  const bool biased = has_bias(p);
  if (biased) add_biases(p, y, y_stride, adds, {});
  matrix_products(p, y, y_stride, adds || biased);
}

void CudaBackend::add_biases(const LinearParams& p, void* y, std::int64_t y_stride, bool keep_y,
                             const RowSquares& squares) {
  std::int64_t column = 0;
  for (int i = 0; i < p.num_weights; ++i) {
    const LinearWeight& weight = p.weights[i];
    const bool changes = !keep_y || squares.sums != nullptr || weight.bias != nullptr;
    if (changes) {
      launch_bias_activation({.num_rows = p.num_rows,
                              .width = weight.out_features,
                              .y = static_cast<char*>(y) + column * dtype_bits(p.y_dtype) / 8,
                              .y_dtype = p.y_dtype,
                              .y_stride = y_stride,
                              .bias = weight.bias,
                              .bias_dtype = weight.bias_dtype,
                              .keep_y = keep_y,
                              .squares = squares},
                             stream_);
    }
    column += weight.out_features;
  }
}

}  // namespace pagedcore::cuda
