#include <nv/target>

#include "cuda/kernels/kernels.h"
#include "cuda/kernels/skinny_linear_sm90.cuh"
#include "cuda/kernels/tensor_map.h"

namespace pagedcore::cuda {
namespace {

constexpr std::int64_t kMaxRows = 32;  // many rows make x as large a load as the weights

template <typename T, int kTokens>
__global__ void __launch_bounds__(SkinnyLinear<T, kTokens>::kThreads)
    skinny_linear_kernel(const __grid_constant__ SkinnyLinearArgs args) {
  extern __shared__ __align__(128) char shared[];
  NV_IF_TARGET(NV_HAS_FEATURE_SM_90a, (SkinnyLinear<T, kTokens>::run(args, shared);))
}

template <typename T, int kTokens>
void launch(SkinnyLinearArgs& args, std::int64_t blocks, cudaStream_t stream) {
  using Kernel = SkinnyLinear<T, kTokens>;
  const LinearParams& p = args.op;
  args.x = describe_matrix(p.x, p.num_rows, p.in_features, p.x_stride, kTokens);
  const auto kernel = skinny_linear_kernel<T, kTokens>;
  PAGEDCORE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            Kernel::kSharedBytes));
  launch_dependent_clusters(args.num_slices, kernel,
                            dim3(static_cast<unsigned>(blocks * args.num_slices)), Kernel::kThreads,
                            Kernel::kSharedBytes, stream, args);
}

template <typename T>
void launch(SkinnyLinearArgs& args, std::int64_t blocks, cudaStream_t stream) {
  args.op.num_rows <= 16 ? launch<T, 16>(args, blocks, stream)
                         : launch<T, 32>(args, blocks, stream);
}

bool is_aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

}  // namespace

bool skinny_linear_serves(const LinearParams& p) {
  const bool adds = p.epilogue == LinearEpilogue::kAccumulate;
  bool serves = p.num_rows <= kMaxRows && (!adds || p.y_dtype == DType::kFloat32) &&
                p.in_features % 8 == 0 && p.x_stride % 8 == 0 && p.y_stride % 8 == 0 &&
                is_aligned(p.x) && is_aligned(p.y) &&
                (p.x_dtype == DType::kBFloat16 || p.x_dtype == DType::kFloat16);
  for (int i = 0; i < p.num_weights; ++i) {
    const LinearWeight& w = p.weights[i];
    serves = serves && w.dtype == p.x_dtype && w.layout == WeightLayout::kOutIn &&
             w.out_features % 8 == 0 && is_aligned(w.data) && is_aligned(w.bias);
  }
  if (p.norm.weight != nullptr) {
    serves = serves && p.num_weights == 1 && adds && is_aligned(p.norm.weight) &&
             is_aligned(p.norm.scaled);
  }
  return serves;
}

bool skinny_linear_serves(const LinearParams& p, const RopeAndCacheParams& rope) {
  const std::int64_t head_dim = rope.cache.head_dim;
  bool serves = skinny_linear_serves(p) && p.epilogue == LinearEpilogue::kStore &&
                p.activation == Activation::kNone && head_dim >= 16 && 128 % head_dim == 0 &&
                is_aligned(rope.query) && is_aligned(rope.cache.data) && is_aligned(rope.q_norm) &&
                is_aligned(rope.k_norm) && is_aligned(rope.cos_sin);
  if (rope.cos_sin != nullptr) serves = serves && rope.rotary_dim % 16 == 0;
  for (int i = 0; i < p.num_weights; ++i) {
    serves = serves && p.weights[i].out_features % head_dim == 0;
  }
  return serves;
}

void launch_skinny_linear(const LinearParams& p, const RopeAndCacheParams* rope,
                          cudaStream_t stream) {
  SkinnyLinearArgs args{.op = p, .rotates = rope != nullptr};
  if (rope != nullptr) args.rope = *rope;
  const bool gated = p.epilogue == LinearEpilogue::kGated;
  std::int64_t blocks = 0;
  for (int i = 0; i < p.num_weights; ++i) {
    const LinearWeight& w = p.weights[i];
    args.weights[i] = describe_matrix(w.data, w.out_features, p.in_features, p.in_features, 64);
    if (!gated || i == 0) blocks += ceil_div(w.out_features, gated ? 64 : 128);
  }
  // More slices until most processors have work, some of them that of two thread blocks.
  constexpr std::int64_t kEnoughBlocks = 192;
  const std::int64_t stages = ceil_div(p.in_features, 64);
  while (args.num_slices < 8 && 4 * args.num_slices <= stages &&
         blocks * args.num_slices < kEnoughBlocks) {
    args.num_slices *= 2;
  }
  p.x_dtype == DType::kBFloat16 ? launch<__nv_bfloat16>(args, blocks, stream)
                                : launch<__half>(args, blocks, stream);
}

}  // namespace pagedcore::cuda
