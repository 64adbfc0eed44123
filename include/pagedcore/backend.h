#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "pagedcore/export.h"
#include "pagedcore/forward_batch.h"
#include "pagedcore/kv_cache.h"
#include "pagedcore/ops.h"
#include "pagedcore/sampling_ops.h"
#include "pagedcore/tensor.h"

namespace pagedcore {

class Backend;

// Owns one extent of a backend's memory; empty after a move.
class PAGEDCORE_API Buffer {
 public:
  Buffer() = default;
  Buffer(Backend& backend, std::int64_t bytes);  // 64-byte aligned; throws OutOfMemory
  ~Buffer();
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept;

  void* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

// The dtypes in which a model whose weights are of one dtype keeps what flows between its ops.
struct ActivationDTypes {
  DType residual = DType::kFloat32;  // the residual stream
  DType operand = DType::kFloat32;   // what linear reads: outputs of norm, attention, activation
  DType qkv = DType::kFloat32;       // output of the qkv projection
  DType query = DType::kFloat32;     // rotated queries
};

// Device memory and the ops of a forward pass. The public op checks its parameters once (throws
// InvalidArgument) and calls the private virtual do_ function, which trusts them. An empty batch is
// a no-op. Ops run in call order; none allocates. Not thread-safe.
class PAGEDCORE_API Backend {
 public:
  virtual ~Backend() = default;

  // "cpu (avx512_bf16, 2 threads)"
  virtual std::string description() const = 0;
  virtual bool is_host() const = 0;  // the host can read and write this backend's memory
  virtual ActivationDTypes activation_dtypes(DType weights) const = 0;

  // Bytes now held by Buffers of this backend.
  std::int64_t allocated_bytes() const { return allocated_bytes_; }

  // Copies between host memory and a buffer's memory; blocking.
  virtual void upload(void* dst, const void* host_src, std::int64_t bytes) = 0;
  virtual void download(void* host_dst, const void* src, std::int64_t bytes) = 0;
  // Waits until every op called so far is done.
  virtual void synchronize() {}

  // Bytes of Buffers that reserve_steps() makes a new backend hold. A request's own lists (tokens
  // seen, allowed, banned) take more when they come to be sampled with.
  virtual std::int64_t step_bytes(const StepLimits&) const { return 0; }
  // Makes room for batches up to these sizes, so that no later step allocates.
  virtual void reserve_steps(const StepLimits& limits) = 0;
  // Bytes of SampleParams::workspace for up to `max_samples` samples a call.
  virtual std::int64_t sample_workspace_bytes(std::int64_t vocab_size,
                                              std::int32_t max_samples) const = 0;
  // The batch with pointers that ops can read, valid until the next stage().
  virtual ForwardBatch stage(const ForwardBatch& host_batch) = 0;
  // Whether ops run behind the host, which may then plan and start the next step meanwhile.
  virtual bool is_asynchronous() const { return false; }
  // Runs `forward`, which calls ops on the staged `batch`; a backend may record and replay it when
  // a batch of the same padded shape comes again.
  virtual void run(const ForwardBatch& batch, const std::function<void()>& forward);

  void embed(const EmbedParams& params);
  void norm(const NormParams& params);
  void linear(const LinearParams& params);
  // Whether linear() begins or ends a split norm with these parameters, which hold one.
  virtual bool splits_norm(const LinearParams&) const { return false; }
  void rope_and_cache(const RopeAndCacheParams& params);
  // linear(qkv), then rope_and_cache(rope), whose qkv is linear's y. What y then holds is
  // undefined.
  void linear_rope_and_cache(const LinearParams& qkv, const RopeAndCacheParams& rope);
  void paged_attention(const ForwardBatch& batch, const PagedAttentionParams& params);
  void gated_activation(const GatedActivationParams& params);
  void sample(const SampleParams& params);
  // sample() in two halves: the outputs are there when finish_sampling() returns, which is for the
  // earliest call that is not finished, and does nothing if there is none. At most two are open.
  void start_sampling(const SampleParams& params);
  virtual void finish_sampling() {}

  // Whole blocks, over all layers. No dst repeats, and no dst is a src.
  void copy_blocks(const KvCacheView& cache, std::span<const BlockCopy> copies);
  // Device to host and back; `host` is the memory of a host pool of `host_blocks` equal blocks.
  void swap_out(const KvCacheView& cache, void* host, std::int64_t host_blocks,
                std::span<const BlockCopy> copies);
  void swap_in(const KvCacheView& cache, const void* host, std::int64_t host_blocks,
               std::span<const BlockCopy> copies);
  // Memory for the host pool of swap: pinned where the device gains from that.
  virtual void* allocate_host(std::int64_t bytes) = 0;
  virtual void free_host(void* data) noexcept = 0;

 private:
  friend class Buffer;
  virtual void* do_allocate(std::int64_t bytes) = 0;  // throws OutOfMemory
  virtual void do_free(void* data) noexcept = 0;
  virtual void do_embed(const EmbedParams& params) = 0;
  virtual void do_norm(const NormParams& params) = 0;
  virtual void do_linear(const LinearParams& params) = 0;
  virtual void do_rope_and_cache(const RopeAndCacheParams& params) = 0;
  virtual void do_linear_rope_and_cache(const LinearParams& qkv, const RopeAndCacheParams& rope);
  virtual void do_paged_attention(const ForwardBatch& batch,
                                  const PagedAttentionParams& params) = 0;
  virtual void do_gated_activation(const GatedActivationParams& params) = 0;
  virtual void do_sample(const SampleParams& params) = 0;
  virtual void do_start_sampling(const SampleParams& params) { do_sample(params); }
  virtual void do_copy_blocks(const KvCacheView& cache, std::span<const BlockCopy> copies) = 0;
  virtual void do_swap_out(const KvCacheView& cache, void* host,
                           std::span<const BlockCopy> copies) = 0;
  virtual void do_swap_in(const KvCacheView& cache, const void* host,
                          std::span<const BlockCopy> copies) = 0;

  std::int64_t allocated_bytes_ = 0;
};

struct CpuBackendOptions {
  int num_threads = 0;  // 0: as many as this process may use
  std::string isa;  // "avx2", "avx512", "avx512_bf16", "neon"; empty: PAGEDCORE_ISA, else the best
};
PAGEDCORE_API std::unique_ptr<Backend> make_cpu_backend(const CpuBackendOptions& options = {});

struct CudaBackendOptions {
  int device = 0;
  // A cudaStream_t of the device that all work goes to, alive as long as the backend; by default a
  // stream of the backend's own. An Engine records on it, which the legacy default stream forbids.
  std::optional<void*> stream;
};
// Throws BackendUnavailable, with the way to get it, where the build or the machine has no CUDA.
PAGEDCORE_API std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options = {});

}  // namespace pagedcore
