#pragma once

#include <memory>
#include <string>

#include "cuda/backend/cublaslt.h"
#include "cuda/backend/sampler.h"
#include "cuda/backend/step_graphs.h"
#include "cuda/backend/step_stage.h"
#include "cuda/backend/upload_ring.h"
#include "cuda/kernels/kernels.h"
#include "pagedcore/backend.h"

namespace pagedcore::cuda {

// The Backend on one NVIDIA GPU: own kernels, cuBLASLt for matrix products, one stream. Every op
// is asynchronous but upload(), download() and sample(), whose results the host reads.
class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaBackendOptions& options);
  ~CudaBackend() override;

  std::string description() const override;
  bool is_host() const override { return false; }
  ActivationDTypes activation_dtypes(DType weights) const override;
  bool splits_norm(const LinearParams& params) const override;
  void upload(void* dst, const void* host_src, std::int64_t bytes) override;
  void download(void* host_dst, const void* src, std::int64_t bytes) override;
  void synchronize() override;
  std::int64_t step_bytes(const StepLimits& limits) const override;
  void reserve_steps(const StepLimits& limits) override;
  std::int64_t sample_workspace_bytes(std::int64_t vocab_size,
                                      std::int32_t max_samples) const override;
  ForwardBatch stage(const ForwardBatch& host_batch) override;
  bool is_asynchronous() const override { return true; }
  void run(const ForwardBatch& batch, const std::function<void()>& forward) override;
  void finish_sampling() override { sampler_.finish(); }
  void* allocate_host(std::int64_t bytes) override;
  void free_host(void* data) noexcept override;

 private:
  void* do_allocate(std::int64_t bytes) override;
  void do_free(void* data) noexcept override;
  void do_embed(const EmbedParams& params) override;
  void do_norm(const NormParams& params) override;
  void do_linear(const LinearParams& params) override;
  void do_rope_and_cache(const RopeAndCacheParams& params) override;
  void do_linear_rope_and_cache(const LinearParams& qkv, const RopeAndCacheParams& rope) override;
  void do_paged_attention(const ForwardBatch& batch, const PagedAttentionParams& params) override;
  void do_gated_activation(const GatedActivationParams& params) override;
  void do_sample(const SampleParams& params) override;
  void do_start_sampling(const SampleParams& params) override;
  void do_copy_blocks(const KvCacheView& cache, std::span<const BlockCopy> copies) override;
  void do_swap_out(const KvCacheView& cache, void* host,
                   std::span<const BlockCopy> copies) override;
  void do_swap_in(const KvCacheView& cache, const void* host,
                  std::span<const BlockCopy> copies) override;

  enum class Product { kGemv, kSkinny, kCublas };
  Product choose_product(const LinearParams& params) const;
  void linear_by_cublas(const LinearParams& params);
  void gated_linear_by_cublas(const LinearParams& params, const RowSquares& squares);
  // y = what ends the norm of x, where there are squares, * x W^T + biases, or added to y.
  void biased_products(const LinearParams& params, void* y, std::int64_t y_stride,
                       const RowSquares& squares);
  // y[.., column ..] = x W^T, or added to it; weights that lie one behind the other at once.
  void matrix_products(const LinearParams& params, void* y, std::int64_t y_stride, bool accumulate);
  // y = what ends the norm, where there are squares, * y + biases; without keep_y: y = biases.
  void add_biases(const LinearParams& params, void* y, std::int64_t y_stride, bool keep_y,
                  const RowSquares& squares);
  void reserve_partials(const StepLimits& limits);

  cudaDeviceProp properties_{};
  Stream own_stream_;
  cudaStream_t stream_ = nullptr;
  CublasLt cublas_;
  StepStage stage_{*this};
  StepGraphs graphs_;
  Sampler sampler_{*this};
  UploadRing copies_ring_;
  Scratch copies_{*this};
  Scratch gemm_workspace_{*this};
  Scratch gate_up_{*this};
  Scratch partial_out_{*this};
  Scratch partial_max_sum_{*this};
  Scratch arrivals_{*this};
};

}  // namespace pagedcore::cuda
