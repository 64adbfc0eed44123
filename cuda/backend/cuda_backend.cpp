#include "cuda/backend/cuda_backend.h"

#include <algorithm>
#include <cstring>

#include "cuda/common/launch.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace cuda {
namespace {

constexpr std::int64_t kMaxCopies = 16384;  // a pass

cudaDeviceProp open_device(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (error != cudaSuccess || count == 0) {
    throw BackendUnavailable(
        detail::concat("no CUDA device: ", cudaGetErrorString(error),
                       "; the CUDA backend needs an NVIDIA GPU and its driver"));
  }
  PAGEDCORE_REQUIRE(device >= 0 && device < count, "device must be from 0 to ", count - 1, ", got ",
                    device);
  PAGEDCORE_CUDA_CHECK(cudaSetDevice(device));
  cudaDeviceProp properties{};
  PAGEDCORE_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  if (properties.major < 8) {
    throw BackendUnavailable(detail::concat(properties.name, " has compute capability ",
                                            properties.major, ".", properties.minor,
                                            "; the CUDA backend needs 8.0 or newer"));
  }
  return properties;
}

}  // namespace

CudaBackend::CudaBackend(const CudaBackendOptions& options)
    : properties_(open_device(options.device)) {
  PAGEDCORE_CUDA_CHECK(cudaStreamCreateWithFlags(stream_.put(), cudaStreamNonBlocking));
  gemm_workspace_.reserve(CublasLt::kWorkspaceBytes);
  copies_.reserve(kMaxCopies * sizeof(BlockCopy));
}

CudaBackend::~CudaBackend() { cudaStreamSynchronize(stream_.get()); }

std::string CudaBackend::description() const {
  return detail::concat("cuda (", properties_.name, ", sm_", properties_.major, properties_.minor,
                        ", ", cublas_.description(), ")");
}

ActivationDTypes CudaBackend::activation_dtypes(DType weights) const {
  const bool is_16bit = weights == DType::kBFloat16 || weights == DType::kFloat16;
  const DType flowing = is_16bit ? weights : DType::kFloat32;
  // The residual is a small part of what a step moves, and float32 keeps its sums exact enough.
  return {.residual = DType::kFloat32, .operand = flowing, .qkv = flowing, .query = flowing};
}

void CudaBackend::upload(void* dst, const void* host_src, std::int64_t bytes) {
  PAGEDCORE_CUDA_CHECK(
      cudaMemcpyAsync(dst, host_src, bytes, cudaMemcpyHostToDevice, stream_.get()));
  synchronize();
}

void CudaBackend::download(void* host_dst, const void* src, std::int64_t bytes) {
  PAGEDCORE_CUDA_CHECK(
      cudaMemcpyAsync(host_dst, src, bytes, cudaMemcpyDeviceToHost, stream_.get()));
  synchronize();
}

void CudaBackend::synchronize() { PAGEDCORE_CUDA_CHECK(cudaStreamSynchronize(stream_.get())); }

void CudaBackend::reserve_steps(std::int32_t max_tokens, std::int32_t max_seqs,
                                std::int64_t table_stride) {
  stage_.reserve(max_tokens, max_seqs, table_stride);
}

std::int64_t CudaBackend::sample_workspace_bytes(std::int64_t vocab_size,
                                                 std::int32_t max_samples) const {
  return Sampler::workspace_bytes(vocab_size, max_samples);
}

ForwardBatch CudaBackend::stage(const ForwardBatch& host_batch) {
  return stage_.stage(host_batch, stream_.get());
}

void CudaBackend::run(const ForwardBatch& batch, const std::function<void()>& forward) {
  if (!stage_.inputs().padded) return forward();
  graphs_.run(batch.num_tokens, forward, stream_.get());
}

void* CudaBackend::allocate_host(std::int64_t bytes) {
  void* data = nullptr;
  PAGEDCORE_CUDA_CHECK(
      cudaHostAlloc(&data, std::max<std::int64_t>(bytes, 1), cudaHostAllocDefault));
  return data;
}

void CudaBackend::free_host(void* data) noexcept {
  cudaStreamSynchronize(stream_.get());
  cudaFreeHost(data);
}

void* CudaBackend::do_allocate(std::int64_t bytes) {
  void* data = nullptr;
  PAGEDCORE_CUDA_CHECK(cudaMalloc(&data, std::max<std::int64_t>(bytes, 1)));
  return data;
}

void CudaBackend::do_free(void* data) noexcept {
  cudaStreamSynchronize(stream_.get());
  cudaFree(data);
}

void CudaBackend::do_embed(const EmbedParams& params) {
  if (graphs_.admit(params)) launch_embed(params, stream_.get());
}

void CudaBackend::do_norm(const NormParams& params) {
  if (graphs_.admit(params)) launch_norm(params, stream_.get());
}

void CudaBackend::do_gated_activation(const GatedActivationParams& params) {
  if (graphs_.admit(params)) launch_gated_activation(params, stream_.get());
}

void CudaBackend::do_rope_and_cache(const RopeAndCacheParams& params) {
  PAGEDCORE_REQUIRE(params.cache.dtype != DType::kInt8,
                    "the KV cache dtype on CUDA must be float32, float16, bfloat16 or fp8_e4m3, "
                    "got int8");
  if (graphs_.admit(params)) launch_rope_and_cache(params, stream_.get());
}

void CudaBackend::matrix_products(const LinearParams& p, void* y, DType y_dtype,
                                  std::int64_t y_stride, bool accumulate) {
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
                    .y = static_cast<char*>(y) + bytes(y_dtype, column),
                    .y_dtype = y_dtype,
                    .y_stride = y_stride,
                    .accumulate = accumulate},
                   gemm_workspace_.as<void>(), stream_.get());
    column += out_features;
  }
}

void CudaBackend::do_linear(const LinearParams& p) {
  PAGEDCORE_REQUIRE(p.weights[0].dtype == p.x_dtype,
                    "linear on CUDA: x must have the weights' dtype ",
                    dtype_name(p.weights[0].dtype), ", got ", dtype_name(p.x_dtype));
  if (!graphs_.admit(p)) return;
  if (gemv_serves(p)) return launch_gemv(p, stream_.get());

  const bool gated = p.epilogue == LinearEpilogue::kGated;
  void* y = p.y;
  std::int64_t y_stride = p.y_stride;
  if (gated) {
    PAGEDCORE_CHECK(p.y_stride == p.weights[0].out_features, p.y_stride);
    y_stride = 2 * p.weights[0].out_features;
    y = gate_up_.reserve(p.num_rows * y_stride * dtype_bits(p.y_dtype) / 8);
  }
  // A bias goes in first and the product is added to it, which rounds once as an epilogue would.
  bool any_bias = false;
  for (int i = 0; i < p.num_weights; ++i) any_bias = any_bias || p.weights[i].bias != nullptr;
  const bool adds = p.epilogue == LinearEpilogue::kAccumulate;
  BiasActivationParams part{.num_rows = p.num_rows, .y_dtype = p.y_dtype, .y_stride = y_stride};
  std::int64_t width = 0;
  for (int i = 0; i < p.num_weights; ++i) {
    const LinearWeight& weight = p.weights[i];
    part.y = static_cast<char*>(y) + width * dtype_bits(p.y_dtype) / 8;
    part.width = weight.out_features;
    part.bias = weight.bias;
    part.bias_dtype = weight.bias_dtype;
    part.keep_y = adds;
    if (any_bias && !(adds && weight.bias == nullptr)) launch_bias_activation(part, stream_.get());
    width += weight.out_features;
  }
  matrix_products(p, y, p.y_dtype, y_stride, adds || any_bias);
  if (gated) {
    launch_gated_activation({.num_rows = p.num_rows,
                             .width = p.weights[0].out_features,
                             .gate_up = y,
                             .dtype = p.y_dtype,
                             .activation = p.activation,
                             .y = p.y,
                             .y_dtype = p.y_dtype},
                            stream_.get());
  } else if (p.activation != Activation::kNone) {
    launch_bias_activation({.num_rows = p.num_rows,
                            .width = width,
                            .y = y,
                            .y_dtype = p.y_dtype,
                            .y_stride = y_stride,
                            .activation = p.activation},
                           stream_.get());
  }
}

void CudaBackend::reserve_partials(const PagedAttentionParams& p) {
  const std::int64_t max_len = stage_.table_stride() * p.cache.block_size;
  const std::int64_t splits =
      std::min<std::int64_t>(kMaxSplits, std::max<std::int64_t>(8, ceil_div(max_len, 1024)) + 1);
  const std::int64_t slots = DecodePlan::max_slots(stage_.max_seqs(), splits);
  partial_out_.reserve(slots * p.num_heads * p.cache.head_dim * std::int64_t{sizeof(float)});
  partial_max_sum_.reserve(slots * p.num_heads * std::int64_t{sizeof(float2)});
  const std::int64_t bytes = slots * p.num_heads * std::int64_t{sizeof(std::uint32_t)};
  if (bytes <= arrivals_.bytes()) return;
  arrivals_.reserve(bytes);
  PAGEDCORE_CUDA_CHECK(cudaMemsetAsync(arrivals_.as<char>(), 0, bytes, stream_.get()));
}

void CudaBackend::do_paged_attention(const ForwardBatch& batch, const PagedAttentionParams& p) {
  if (!graphs_.admit(p)) return;
  const StepInputs& step = stage_.inputs();
  AttentionArgs args{.op = p,
                     .batch = batch,
                     .header = step.header,
                     .items = step.items,
                     .prefill = step.prefill,
                     .num_sms = properties_.multiProcessorCount,
                     .sm_major = properties_.major};
  if (!tensor_core_attention_serves(p)) return launch_simple_attention(args, stream_.get());
  if (step.padded || step.num_items > 0) {
    reserve_partials(p);
    args.partial_out = partial_out_.as<float>();
    args.partial_max_sum = partial_max_sum_.as<float2>();
    args.arrivals = arrivals_.as<std::uint32_t>();
    // A recorded launch serves later steps of as many sequences, whatever their lengths.
    const bool recording = graphs_.mode() == StepGraphs::Mode::kRecord;
    launch_decode_attention(args,
                            recording ? std::int64_t{batch.num_seqs} * kMaxSplits : step.num_items,
                            stream_.get());
  }
  std::int64_t tiles = 0;
  for (const std::int32_t len : step.prefill_lens) tiles += prefill_tiles(p, len);
  if (tiles > 0) launch_prefill_attention(args, tiles, stream_.get());
}

void CudaBackend::do_sample(const SampleParams& params) {
  sampler_.sample(params, properties_.multiProcessorCount, stream_.get());
}

void CudaBackend::do_copy_blocks(const KvCacheView& cache, std::span<const BlockCopy> copies) {
  for (std::size_t first = 0; first < copies.size(); first += kMaxCopies) {
    const auto part =
        copies.subspan(first, std::min<std::size_t>(kMaxCopies, copies.size() - first));
    std::memcpy(copies_ring_.begin(kMaxCopies * sizeof(BlockCopy)), part.data(), part.size_bytes());
    copies_ring_.submit(copies_.as<char>(), part.size_bytes(), stream_.get());
    launch_copy_blocks(cache, copies_.as<BlockCopy>(), part.size(), stream_.get());
  }
}

namespace {

// Copies whole blocks; neighbours on both sides go as one.
void move_blocks(char* dst, const char* src, std::int64_t block_bytes,
                 std::span<const BlockCopy> copies, cudaMemcpyKind kind, cudaStream_t stream) {
  for (std::size_t i = 0; i < copies.size();) {
    std::size_t n = 1;
    while (i + n < copies.size() && copies[i + n].src == copies[i].src + static_cast<BlockId>(n) &&
           copies[i + n].dst == copies[i].dst + static_cast<BlockId>(n)) {
      ++n;
    }
    PAGEDCORE_CUDA_CHECK(cudaMemcpyAsync(dst + copies[i].dst * block_bytes,
                                         src + copies[i].src * block_bytes, n * block_bytes, kind,
                                         stream));
    i += n;
  }
}

}  // namespace

void CudaBackend::do_swap_out(const KvCacheView& cache, void* host,
                              std::span<const BlockCopy> copies) {
  move_blocks(static_cast<char*>(host), static_cast<const char*>(cache.data), cache.block_bytes(),
              copies, cudaMemcpyDeviceToHost, stream_.get());
}

void CudaBackend::do_swap_in(const KvCacheView& cache, const void* host,
                             std::span<const BlockCopy> copies) {
  move_blocks(static_cast<char*>(cache.data), static_cast<const char*>(host), cache.block_bytes(),
              copies, cudaMemcpyHostToDevice, stream_.get());
}

}  // namespace cuda

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options) {
  return std::make_unique<cuda::CudaBackend>(options);
}

}  // namespace pagedcore
