#include "cuda/backend/cuda_backend.h"

#include <algorithm>
#include <cstring>

#include "cuda/common/launch.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace cuda {
namespace {

constexpr std::int64_t kMaxCopies = 16384;  // a pass
constexpr std::int64_t kCopyBytes = kMaxCopies * static_cast<std::int64_t>(sizeof(BlockCopy));

std::int64_t gate_up_bytes(const StepLimits& limits) {
  return limits.max_tokens * 2 * limits.gated_width * dtype_bits(limits.operand) / 8;
}

// Of what the splits of decode attention leave for their merge.
struct PartialBytes {
  std::int64_t out, max_sum, arrivals;
};
PartialBytes partial_bytes(const StepLimits& limits) {
  const std::int64_t splits = max_splits(limits.table_stride * limits.block_size);
  const std::int64_t heads = DecodePlan::max_slots(limits.max_seqs, splits) * limits.num_heads;
  return {.out = heads * limits.head_dim * std::int64_t{sizeof(float)},
          .max_sum = heads * std::int64_t{sizeof(float2)},
          .arrivals = heads * std::int64_t{sizeof(std::uint32_t)}};
}

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
  if (options.stream) {
    stream_ = static_cast<cudaStream_t>(*options.stream);
  } else {
    PAGEDCORE_CUDA_CHECK(cudaStreamCreateWithFlags(own_stream_.put(), cudaStreamNonBlocking));
    stream_ = own_stream_.get();
  }
}

CudaBackend::~CudaBackend() { cudaStreamSynchronize(stream_); }

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
  PAGEDCORE_CUDA_CHECK(cudaMemcpyAsync(dst, host_src, bytes, cudaMemcpyHostToDevice, stream_));
  synchronize();
}

void CudaBackend::download(void* host_dst, const void* src, std::int64_t bytes) {
  PAGEDCORE_CUDA_CHECK(cudaMemcpyAsync(host_dst, src, bytes, cudaMemcpyDeviceToHost, stream_));
  synchronize();
}

void CudaBackend::synchronize() { PAGEDCORE_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

std::int64_t CudaBackend::step_bytes(const StepLimits& limits) const {
  const PartialBytes partials = partial_bytes(limits);
  return CublasLt::kWorkspaceBytes + kCopyBytes + StepStage::device_bytes(limits) +
         Sampler::device_bytes(limits.max_seqs) + gate_up_bytes(limits) + partials.out +
         partials.max_sum + partials.arrivals;
}

void CudaBackend::reserve_steps(const StepLimits& limits) {
  gemm_workspace_.reserve(CublasLt::kWorkspaceBytes);
  copies_.reserve(kCopyBytes);
  stage_.reserve(limits);
  sampler_.reserve(limits.max_seqs);
  gate_up_.reserve(gate_up_bytes(limits));
  reserve_partials(limits);
}

std::int64_t CudaBackend::sample_workspace_bytes(std::int64_t vocab_size,
                                                 std::int32_t max_samples) const {
  return Sampler::workspace_bytes(vocab_size, max_samples);
}

ForwardBatch CudaBackend::stage(const ForwardBatch& host_batch) {
  return stage_.stage(host_batch, sampler_.tokens(), stream_);
}

void CudaBackend::run(const ForwardBatch& batch, const std::function<void()>& forward) {
  if (!stage_.inputs().padded) return forward();
  graphs_.run({batch.num_tokens, stage_.inputs().max_items}, forward, stream_);
}

void* CudaBackend::allocate_host(std::int64_t bytes) {
  void* data = nullptr;
  PAGEDCORE_CUDA_CHECK(
      cudaHostAlloc(&data, std::max<std::int64_t>(bytes, 1), cudaHostAllocDefault));
  return data;
}

void CudaBackend::free_host(void* data) noexcept {
  cudaStreamSynchronize(stream_);
  cudaFreeHost(data);
}

void* CudaBackend::do_allocate(std::int64_t bytes) {
  void* data = nullptr;
  PAGEDCORE_CUDA_CHECK(cudaMalloc(&data, std::max<std::int64_t>(bytes, 1)));
  return data;
}

void CudaBackend::do_free(void* data) noexcept {
  cudaStreamSynchronize(stream_);
  cudaFree(data);
}

void CudaBackend::do_embed(const EmbedParams& params) {
  if (graphs_.admit(params)) launch_embed(params, stream_);
}

void CudaBackend::do_norm(const NormParams& params) {
  if (graphs_.admit(params)) launch_norm(params, stream_);
}

void CudaBackend::do_gated_activation(const GatedActivationParams& params) {
  if (graphs_.admit(params)) launch_gated_activation(params, {}, stream_);
}

namespace {

void check_rope_and_cache(const RopeAndCacheParams& params) {
  PAGEDCORE_REQUIRE(params.cache.dtype != DType::kInt8,
                    "the KV cache dtype on CUDA must be float32, float16, bfloat16 or fp8_e4m3, "
                    "got int8");
}

}  // namespace

void CudaBackend::do_rope_and_cache(const RopeAndCacheParams& params) {
  check_rope_and_cache(params);
  if (graphs_.admit(params)) launch_rope_and_cache(params, stream_);
}

void CudaBackend::do_linear_rope_and_cache(const LinearParams& qkv,
                                           const RopeAndCacheParams& rope) {
  if (choose_product(qkv) != Product::kSkinny || !skinny_linear_serves(qkv, rope)) {
    do_linear(qkv);
    return do_rope_and_cache(rope);
  }
  check_rope_and_cache(rope);
  graphs_.admit(qkv);
  if (graphs_.admit(rope)) launch_skinny_linear(qkv, &rope, stream_);
}

void CudaBackend::reserve_partials(const StepLimits& limits) {
  const PartialBytes bytes = partial_bytes(limits);
  partial_out_.reserve(bytes.out);
  partial_max_sum_.reserve(bytes.max_sum);
  if (bytes.arrivals <= arrivals_.bytes()) return;
  arrivals_.reserve(bytes.arrivals);
  PAGEDCORE_CUDA_CHECK(cudaMemsetAsync(arrivals_.as<char>(), 0, bytes.arrivals, stream_));
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
                     .sm_major = properties_.major,
                     .max_shared_bytes = static_cast<int>(properties_.sharedMemPerBlockOptin),
                     .sm_shared_bytes = static_cast<int>(properties_.sharedMemPerMultiprocessor)};
  if (!tensor_core_attention_serves(p)) return launch_simple_attention(args, stream_);
  if (step.max_items > 0) {
    reserve_partials({.max_seqs = static_cast<std::int32_t>(stage_.max_seqs()),
                      .table_stride = stage_.table_stride(),
                      .block_size = p.cache.block_size,
                      .num_heads = p.num_heads,
                      .head_dim = p.cache.head_dim});
    args.partial_out = partial_out_.as<float>();
    args.partial_max_sum = partial_max_sum_.as<float2>();
    args.arrivals = arrivals_.as<std::uint32_t>();
    launch_decode_attention(args, step.max_items, stream_);
  }
  std::int64_t tiles = 0;
  for (const std::int32_t len : step.prefill_lens) tiles += prefill_tiles(p, len);
  if (tiles > 0) launch_prefill_attention(args, tiles, stream_);
}

void CudaBackend::do_sample(const SampleParams& params) {
  do_start_sampling(params);
  finish_sampling();
}

void CudaBackend::do_start_sampling(const SampleParams& params) {
  sampler_.start(params, properties_.multiProcessorCount, stream_);
}

void CudaBackend::do_copy_blocks(const KvCacheView& cache, std::span<const BlockCopy> copies) {
  for (std::size_t first = 0; first < copies.size(); first += kMaxCopies) {
    const auto part =
        copies.subspan(first, std::min<std::size_t>(kMaxCopies, copies.size() - first));
    copies_.reserve(kCopyBytes);
    std::memcpy(copies_ring_.begin(kCopyBytes), part.data(), part.size_bytes());
    copies_ring_.submit(copies_.as<char>(), part.size_bytes(), stream_);
    launch_copy_blocks(cache, copies_.as<BlockCopy>(), part.size(), stream_);
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
              copies, cudaMemcpyDeviceToHost, stream_);
}

void CudaBackend::do_swap_in(const KvCacheView& cache, const void* host,
                             std::span<const BlockCopy> copies) {
  move_blocks(static_cast<char*>(cache.data), static_cast<const char*>(host), cache.block_bytes(),
              copies, cudaMemcpyHostToDevice, stream_);
}

}  // namespace cuda

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options) {
  return std::make_unique<cuda::CudaBackend>(options);
}

}  // namespace pagedcore
