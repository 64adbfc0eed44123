#include <cublasLt.h>

#include "cuda/backend/cublaslt_api.h"

// Compiled only where CMake finds cuBLASLt's header.
namespace pagedcore::cuda::lt {

static_assert(kCompute32F == CUBLAS_COMPUTE_32F && kOpN == CUBLAS_OP_N && kOpT == CUBLAS_OP_T);
static_assert(kDescTransA == CUBLASLT_MATMUL_DESC_TRANSA &&
              kDescTransB == CUBLASLT_MATMUL_DESC_TRANSB &&
              kPreferenceMaxWorkspaceBytes == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(kInvalidValue == CUBLAS_STATUS_INVALID_VALUE &&
              kNotSupported == CUBLAS_STATUS_NOT_SUPPORTED);
static_assert(sizeof(HeuristicResult) == sizeof(cublasLtMatmulHeuristicResult_t) &&
              sizeof(Algo) == sizeof(cublasLtMatmulAlgo_t));

}  // namespace pagedcore::cuda::lt
