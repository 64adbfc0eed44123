#pragma once

#include <cuda_runtime_api.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "pagedcore/dtype.h"

namespace pagedcore::cuda {

// y[num_rows, out_features] = x[num_rows, in_features] W^T + beta * y; strides in elements.
struct GemmArgs {
  std::int64_t num_rows = 0, in_features = 0, out_features = 0;
  const void* x = nullptr;
  std::int64_t x_stride = 0;
  const void* weight = nullptr;  // [out, in], or [in, out] if `transposed`
  bool transposed = false;
  DType dtype = DType::kBFloat16;  // of x and weight
  void* y = nullptr;
  DType y_dtype = DType::kBFloat16;
  std::int64_t y_stride = 0;
  bool accumulate = false;
};

// cuBLASLt, found and opened at run time: a copy that is already loaded, PAGEDCORE_CUBLASLT, pip's
// nvidia folder beside this library, CUDA_HOME, then the system's. Throws BackendUnavailable, with
// the way to get it, if there is none.
class CublasLt {
 public:
  CublasLt();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // "cuBLASLt 13.1.1 (/path/libcublasLt.so.13)"
  const std::string& description() const { return description_; }

  // `workspace` is kWorkspaceBytes of device memory. One algorithm serves all num_rows of a size
  // class, see row_class.
  void matmul(const GemmArgs& args, void* workspace, cudaStream_t stream);

  static constexpr std::int64_t kWorkspaceBytes = std::int64_t{32} << 20;
  // The number of rows whose algorithm serves `num_rows`.
  static std::int64_t row_class(std::int64_t num_rows);

 private:
  struct Api;
  struct Algorithm;
  struct Key {
    std::int64_t rows, in, out, x_stride, y_stride;
    DType dtype, y_dtype;
    bool transposed, accumulate;
    auto operator<=>(const Key&) const = default;
  };
  // The algorithm that is best for `rows`, with the layouts of args.num_rows.
  std::unique_ptr<Algorithm> choose(const GemmArgs& args, std::int64_t rows);

  std::unique_ptr<Api> api_;
  void* handle_ = nullptr;
  std::string description_;
  std::map<Key, std::unique_ptr<Algorithm>> algorithms_;
};

}  // namespace pagedcore::cuda
