#include "cuda/kernels/stream_linear.cuh"

#include <nv/target>

#include <algorithm>

namespace pagedcore::cuda {
namespace {

constexpr int kMaxRows = 32;
constexpr int kSplitRows = 64;  // weight rows of a thread block whose columns are split, at most
constexpr std::int64_t kSplitColumns = 2048;  // of a split, at least

template <typename T, int kTiles>
__global__ void __launch_bounds__(StreamLinear<T, kTiles>::kThreads, 2)
    stream_linear_kernel(const __grid_constant__ LinearParams p,
                         const __grid_constant__ StreamPlan plan) {
  extern __shared__ __align__(128) char shared[];
  NV_IF_TARGET(NV_PROVIDES_SM_90, (StreamLinear<T, kTiles>(p, plan, shared).run();))
}

// With few outputs and many columns a thread block would read more of x than of its weights; then
// several share the outputs of as many.
int splits_of(const LinearParams& p, std::int64_t outputs, int num_sms) {
  if (p.epilogue == LinearEpilogue::kGated) return 1;
  int splits = 1;
  while (outputs * 2 * splits <= std::int64_t{num_sms} * kSplitRows &&
         p.in_features / (2 * splits) >= kSplitColumns && p.in_features % (128 * splits) == 0) {
    splits *= 2;
  }
  return splits;
}

template <typename T, int kTiles>
void launch(const LinearParams& p, const StreamWorkspace& workspace, int num_sms,
            cudaStream_t stream) {
  using Kernel = StreamLinear<T, kTiles>;
  std::int64_t outputs = p.weights[0].out_features;
  if (p.epilogue != LinearEpilogue::kGated) {
    for (int i = 1; i < p.num_weights; ++i) outputs += p.weights[i].out_features;
  }
  const StreamPlan plan{.outputs = static_cast<std::int32_t>(outputs),
                        .splits = kTiles == 1 ? 1 : splits_of(p, outputs, num_sms),
                        .partial = workspace.partial,
                        .arrivals = workspace.arrivals};
  const auto kernel = stream_linear_kernel<T, kTiles>;
  PAGEDCORE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            Kernel::kSharedBytes));
  const std::int64_t shares =
      std::min<std::int64_t>(num_sms / plan.splits, ceil_div(plan.outputs, 8));
  launch_dependent(kernel, dim3(static_cast<unsigned>(shares * plan.splits)), Kernel::kThreads,
                   Kernel::kSharedBytes, stream, p, plan);
}

template <typename T>
void launch_of(const LinearParams& p, const StreamWorkspace& workspace, int num_sms,
               cudaStream_t stream) {
  p.num_rows <= 8 ? launch<T, 1>(p, workspace, num_sms, stream)
                  : launch<T, 4>(p, workspace, num_sms, stream);
}

}  // namespace

std::int64_t stream_partial_bytes(int num_sms) {
  return std::int64_t{num_sms} * kSplitRows * kMaxRows * std::int64_t{sizeof(float)};
}

bool stream_linear_serves(const LinearParams& p) {
  bool serves = p.num_rows <= kMaxRows && dtype_bits(p.x_dtype) == 16 && p.in_features % 64 == 0 &&
                p.x_stride % 8 == 0 && reinterpret_cast<std::uintptr_t>(p.x) % 16 == 0;
  for (int i = 0; i < p.num_weights; ++i) {
    const LinearWeight& w = p.weights[i];
    serves = serves && w.dtype == p.x_dtype && w.layout == WeightLayout::kOutIn &&
             reinterpret_cast<std::uintptr_t>(w.data) % 16 == 0;
  }
  return serves;
}

void launch_stream_linear(const LinearParams& p, const StreamWorkspace& workspace, int num_sms,
                          cudaStream_t stream) {
  p.x_dtype == DType::kBFloat16 ? launch_of<__nv_bfloat16>(p, workspace, num_sms, stream)
                                : launch_of<__half>(p, workspace, num_sms, stream);
}

}  // namespace pagedcore::cuda
