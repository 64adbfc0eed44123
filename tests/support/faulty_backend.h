#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pagedcore/backend.h"
#include "pagedcore/error.h"

namespace pagedcore::test {

// What a test wants to fail, and what it counts; outlives the backend.
struct Faults {
  std::int64_t allocations_until_failure = -1;  // -1: never
  std::int64_t ops_until_failure = -1;
  std::int64_t num_allocations = 0;  // alive, host ones too
};

// Another backend whose allocations and ops fail when they are told to.
class FaultyBackend final : public Backend {
 public:
  FaultyBackend(std::unique_ptr<Backend> inner, Faults& faults)
      : inner_(std::move(inner)), faults_(faults) {}

  std::string description() const override { return "faulty " + inner_->description(); }
  bool is_host() const override { return inner_->is_host(); }
  ActivationDTypes activation_dtypes(DType weights) const override {
    return inner_->activation_dtypes(weights);
  }
  void upload(void* dst, const void* src, std::int64_t bytes) override {
    inner_->upload(dst, src, bytes);
  }
  void download(void* dst, const void* src, std::int64_t bytes) override {
    inner_->download(dst, src, bytes);
  }
  std::int64_t step_bytes(const StepLimits& limits) const override {
    return inner_->step_bytes(limits);
  }
  void reserve_steps(const StepLimits& limits) override { inner_->reserve_steps(limits); }
  std::int64_t sample_workspace_bytes(std::int64_t vocab_size,
                                      std::int32_t max_samples) const override {
    return inner_->sample_workspace_bytes(vocab_size, max_samples);
  }
  ForwardBatch stage(const ForwardBatch& batch) override { return inner_->stage(batch); }
  void* allocate_host(std::int64_t bytes) override {
    count_allocation();
    void* data = inner_->allocate_host(bytes);
    ++faults_.num_allocations;
    return data;
  }
  void free_host(void* data) noexcept override {
    --faults_.num_allocations;
    inner_->free_host(data);
  }

 private:
  void count_allocation() {
    if (faults_.allocations_until_failure >= 0 && faults_.allocations_until_failure-- == 0) {
      throw OutOfMemory("injected");
    }
  }
  Backend& op() {
    if (faults_.ops_until_failure >= 0 && faults_.ops_until_failure-- == 0) {
      throw DeviceError("injected");
    }
    return *inner_;
  }
  void* do_allocate(std::int64_t bytes) override {
    count_allocation();
    auto* buffer = new Buffer(*inner_, bytes);
    ++faults_.num_allocations;
    buffers_.emplace_back(buffer);
    return buffer->data();
  }
  void do_free(void* data) noexcept override {
    --faults_.num_allocations;
    std::erase_if(buffers_, [&](const auto& buffer) { return buffer->data() == data; });
  }
  void do_embed(const EmbedParams& p) override { op().embed(p); }
  void do_norm(const NormParams& p) override { op().norm(p); }
  void do_linear(const LinearParams& p) override { op().linear(p); }
  void do_rope_and_cache(const RopeAndCacheParams& p) override { op().rope_and_cache(p); }
  void do_paged_attention(const ForwardBatch& batch, const PagedAttentionParams& p) override {
    op().paged_attention(batch, p);
  }
  void do_gated_activation(const GatedActivationParams& p) override { op().gated_activation(p); }
  void do_sample(const SampleParams& p) override { op().sample(p); }
  void do_copy_blocks(const KvCacheView& cache, std::span<const BlockCopy> copies) override {
    op().copy_blocks(cache, copies);
  }
  void do_swap_out(const KvCacheView& cache, void* host,
                   std::span<const BlockCopy> copies) override {
    op().swap_out(cache, host, 1 << 20, copies);
  }
  void do_swap_in(const KvCacheView& cache, const void* host,
                  std::span<const BlockCopy> copies) override {
    op().swap_in(cache, host, 1 << 20, copies);
  }

  std::unique_ptr<Backend> inner_;
  Faults& faults_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

}  // namespace pagedcore::test
