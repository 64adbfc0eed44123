#include "pagedcore/backend.h"
#include "pagedcore/error.h"

namespace pagedcore {

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions&) {
  throw BackendUnavailable(
      "this build of pagedcore has no CUDA backend; on a machine with nvcc 12.8 or newer install "
      "it with: pip install . -C cmake.define.PAGEDCORE_CUDA=ON");
}

}  // namespace pagedcore
