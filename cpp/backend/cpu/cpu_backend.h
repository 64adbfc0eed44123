#pragma once

#include <memory>
#include <string>

#include "cpp/backend/cpu/isas.h"
#include "cpp/backend/cpu/kernels.h"
#include "cpp/backend/cpu/workspace.h"
#include "cpp/base/thread_pool.h"
#include "pagedcore/backend.h"

namespace pagedcore::cpu {

// The Backend on the host: its memory is host memory, every op is done when the call returns.
class CpuBackend final : public Backend {
 public:
  CpuBackend(int num_threads, const Kernels& kernels);

  std::string description() const override;
  bool is_host() const override { return true; }
  ActivationDTypes activation_dtypes(DType weights) const override;
  void upload(void* dst, const void* host_src, std::int64_t bytes) override;
  void download(void* host_dst, const void* src, std::int64_t bytes) override;
  void reserve_steps(const StepLimits&) override {}
  std::int64_t sample_workspace_bytes(std::int64_t vocab_size,
                                      std::int32_t max_samples) const override;
  ForwardBatch stage(const ForwardBatch& host_batch) override;
  void* allocate_host(std::int64_t bytes) override;
  void free_host(void* data) noexcept override;

  const Kernels& kernels() const { return kernels_; }
  ThreadPool& pool() { return pool_; }

 private:
  void* do_allocate(std::int64_t bytes) override;
  void do_free(void* data) noexcept override;
  void do_embed(const EmbedParams& params) override { kernels_.embed(params, context_); }
  void do_norm(const NormParams& params) override { kernels_.norm(params, context_); }
  void do_linear(const LinearParams& params) override { kernels_.linear(params, context_); }
  void do_rope_and_cache(const RopeAndCacheParams& params) override {
    check_cache_dtype(params.cache.dtype);
    kernels_.rope_and_cache(params, context_);
  }
  void do_paged_attention(const ForwardBatch& batch, const PagedAttentionParams& params) override {
    check_cache_dtype(params.cache.dtype);
    kernels_.paged_attention(batch, params, context_);
  }
  void do_gated_activation(const GatedActivationParams& params) override {
    kernels_.gated_activation(params, context_);
  }
  void do_sample(const SampleParams& params) override { kernels_.sample(params, context_); }
  void do_copy_blocks(const KvCacheView& cache, std::span<const BlockCopy> copies) override;
  void do_swap_out(const KvCacheView& cache, void* host,
                   std::span<const BlockCopy> copies) override;
  void do_swap_in(const KvCacheView& cache, const void* host,
                  std::span<const BlockCopy> copies) override;
  // Throws InvalidArgument for a cache that these kernels don't read.
  static void check_cache_dtype(DType dtype);
  // Copies blocks of block_bytes from one pool to another, split over the threads.
  void move_blocks(void* dst, const void* src, std::int64_t block_bytes,
                   std::span<const BlockCopy> copies);

  const Kernels& kernels_;
  ThreadPool pool_;
  Workspace workspace_;
  AttentionPlan attention_plan_;
  Context context_{pool_, workspace_, attention_plan_, streams_stop_at_pages()};
};

std::unique_ptr<CpuBackend> make_backend(const CpuBackendOptions& options);

}  // namespace pagedcore::cpu
