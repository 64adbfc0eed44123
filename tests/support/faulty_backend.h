#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
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
  bool is_asynchronous = false;      // samples are told as late as they may be
  std::int64_t num_followed = 0;     // batches whose tokens were samples that nobody knew yet
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
  ForwardBatch stage(const ForwardBatch& batch) override {
    ForwardBatch staged = batch;
    if (batch.follows_samples) {
      ++faults_.num_followed;
      last_tokens_ = started_.back().tokens;
      staged.tokens = last_tokens_.data();
    }
    return inner_->stage(staged);
  }
  bool is_asynchronous() const override { return faults_.is_asynchronous; }
  void finish_sampling() override {
    if (started_.empty()) return;
    const Started& first = started_.front();
    const SampleOutputs& outputs = first.outputs;
    std::ranges::copy(first.tokens, outputs.tokens.begin());
    std::ranges::copy(first.logprobs, outputs.logprobs.begin());
    std::ranges::copy(first.ranks, outputs.ranks.begin());
    std::ranges::copy(first.top_tokens, outputs.top_tokens.begin());
    std::ranges::copy(first.top_logprobs, outputs.top_logprobs.begin());
    started_.pop_front();
  }
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
  void do_start_sampling(const SampleParams& p) override {
    if (!faults_.is_asynchronous) return do_sample(p);
    const std::size_t count = p.samples.size(), top = count * p.outputs.max_top;
    Started started{p.outputs,
                    std::vector<TokenId>(count),
                    std::vector<float>(count),
                    std::vector<std::int32_t>(count),
                    std::vector<TokenId>(top),
                    std::vector<float>(top)};
    SampleParams late = p;
    late.outputs = {started.tokens,    started.logprobs,   started.ranks,
                    p.outputs.max_top, started.top_tokens, started.top_logprobs};
    do_sample(late);
    started_.push_back(std::move(started));
  }
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

  struct Started {
    SampleOutputs outputs;
    std::vector<TokenId> tokens;
    std::vector<float> logprobs;
    std::vector<std::int32_t> ranks;
    std::vector<TokenId> top_tokens;
    std::vector<float> top_logprobs;
  };

  std::deque<Started> started_;
  std::vector<TokenId> last_tokens_;
  std::unique_ptr<Backend> inner_;
  Faults& faults_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

}  // namespace pagedcore::test
