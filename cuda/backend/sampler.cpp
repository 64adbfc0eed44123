#include "cuda/backend/sampler.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "cuda/common/launch.h"
#include "pagedcore/error.h"

namespace pagedcore::cuda {
namespace {

std::int64_t row_stride(std::int64_t vocab_size) {
  return ceil_div(vocab_size + kMaxSortedTop, 64) * 64;
}

template <typename T>
Range append(std::vector<T>& list, std::span<const T> items) {
  const auto begin = static_cast<std::int32_t>(list.size());
  list.insert(list.end(), items.begin(), items.end());
  return {begin, static_cast<std::int32_t>(list.size())};
}

std::int64_t padded(std::int64_t bytes) { return ceil_div(bytes, 16) * 16; }

template <typename T>
std::int64_t bytes_of(const std::vector<T>& list) {
  return padded(static_cast<std::int64_t>(list.size() * sizeof(T)));
}

}  // namespace

std::int64_t Sampler::workspace_bytes(std::int64_t vocab_size, std::int32_t max_samples) {
  // Enough thread blocks to fill the largest devices; more samples take turns.
  constexpr std::int32_t kMaxSlots = 160;
  return std::min(max_samples, kMaxSlots) * row_stride(vocab_size) *
         static_cast<std::int64_t>(sizeof(float));
}

Sampler::Sampler(Backend& backend) : lists_(backend), tokens_(backend) {
  for (Call& call : calls_) {
    PAGEDCORE_CUDA_CHECK(cudaEventCreateWithFlags(call.done.put(), cudaEventDisableTiming));
  }
}

std::int64_t Sampler::device_bytes(std::int64_t max_samples) {
  return max_samples * static_cast<std::int64_t>(sizeof(TokenId));
}

void Sampler::reserve(std::int64_t max_samples) { tokens_.reserve(device_bytes(max_samples)); }

void Sampler::pack(const SampleParams& params) {
  tasks_.clear(), seen_.clear(), bias_.clear(), allowed_.clear(), banned_.clear();
  for (const SampleRow& row : params.samples) {
    PAGEDCORE_REQUIRE(row.num_top <= kMaxSortedTop, "num_top on CUDA must be at most ",
                      kMaxSortedTop, ", got ", row.num_top);
    tasks_.push_back({.logit_row = row.logit_row,
                      .top_k = row.top_k,
                      .num_top = row.num_top,
                      .given_token = row.given_token,
                      .temperature = row.temperature,
                      .top_p = row.top_p,
                      .min_p = row.min_p,
                      .repetition_penalty = row.repetition_penalty,
                      .presence_penalty = row.presence_penalty,
                      .frequency_penalty = row.frequency_penalty,
                      .seed = row.seed,
                      .position = row.position,
                      .seen = append(seen_, row.seen),
                      .bias = append(bias_, row.bias),
                      .allowed = append(allowed_, row.allowed),
                      .banned = append(banned_, row.banned)});
  }
}

void Sampler::start(const SampleParams& params, int num_sms, cudaStream_t stream) {
  PAGEDCORE_CHECK(num_started_ < 2, num_started_);
  pack(params);
  const auto count = static_cast<std::int64_t>(params.samples.size());
  const SampleOutputs& out = params.outputs;
  const std::int64_t stride = row_stride(params.vocab_size);
  const std::int64_t slots = std::min<std::int64_t>(
      {count, num_sms, params.workspace_bytes / (stride * std::int64_t{sizeof(float)})});
  PAGEDCORE_REQUIRE(slots >= 1, "sample: workspace_bytes must be at least ", stride * sizeof(float),
                    ", got ", params.workspace_bytes);

  Call& call = calls_[next_];
  const std::int64_t task_bytes = bytes_of(tasks_);
  const std::int64_t list_bytes =
      bytes_of(seen_) + bytes_of(bias_) + bytes_of(allowed_) + bytes_of(banned_);
  char* host = static_cast<char*>(call.inputs.reserve(task_bytes + list_bytes));
  std::memcpy(host, tasks_.data(), tasks_.size() * sizeof(SampleTask));
  char* lists = static_cast<char*>(lists_.reserve(list_bytes));
  std::int64_t offset = 0;
  const auto put = [&]<typename T>(const std::vector<T>& list) {
    if (!list.empty()) {
      std::memcpy(host + task_bytes + offset, list.data(), list.size() * sizeof(T));
    }
    const T* result = reinterpret_cast<const T*>(lists + offset);
    offset += bytes_of(list);
    return result;
  };
  char* results =
      static_cast<char*>(call.results.reserve(count * (12 + std::int64_t{out.max_top} * 8)));
  tokens_.reserve(device_bytes(count));
  const SampleArgs args{.logits = params.logits,
                        .vocab_size = params.vocab_size,
                        .num_samples = static_cast<std::int32_t>(count),
                        .tasks = reinterpret_cast<const SampleTask*>(host),
                        .seen = put(seen_),
                        .bias = put(bias_),
                        .allowed = put(allowed_),
                        .banned = put(banned_),
                        .workspace = static_cast<float*>(params.workspace),
                        .row_stride = stride,
                        .num_slots = static_cast<std::int32_t>(slots),
                        .device_tokens = tokens_.as<TokenId>(),
                        .tokens = reinterpret_cast<TokenId*>(results),
                        .logprobs = reinterpret_cast<float*>(results + 4 * count),
                        .ranks = reinterpret_cast<std::int32_t*>(results + 8 * count),
                        .max_top = out.max_top,
                        .top_tokens = reinterpret_cast<TokenId*>(results + 12 * count),
                        .top_logprobs = reinterpret_cast<float*>(
                            results + (12 + 4 * std::int64_t{out.max_top}) * count)};
  if (list_bytes > 0) {
    PAGEDCORE_CUDA_CHECK(
        cudaMemcpyAsync(lists, host + task_bytes, list_bytes, cudaMemcpyHostToDevice, stream));
  }
  launch_sample(args, stream);
  PAGEDCORE_CUDA_CHECK(cudaEventRecord(call.done.get(), stream));
  call.outputs = out;
  call.num_samples = count;
  next_ ^= 1;
  ++num_started_;
}

void Sampler::finish() {
  if (num_started_ == 0) return;
  const Call& call = calls_[num_started_ == 2 ? next_ : next_ ^ 1];
  --num_started_;
  PAGEDCORE_CUDA_CHECK(cudaEventSynchronize(call.done.get()));
  const char* results = call.results.as<char>();
  const std::int64_t count = call.num_samples;
  const SampleOutputs& out = call.outputs;
  const auto take = [&](auto span, std::int64_t at, std::int64_t n) {
    if (!span.empty()) std::memcpy(span.data(), results + at, n * 4);
  };
  take(out.tokens, 0, count);
  take(out.logprobs, 4 * count, count);
  take(out.ranks, 8 * count, count);
  take(out.top_tokens, 12 * count, count * out.max_top);
  take(out.top_logprobs, (12 + 4 * std::int64_t{out.max_top}) * count, count * out.max_top);
}

}  // namespace pagedcore::cuda
