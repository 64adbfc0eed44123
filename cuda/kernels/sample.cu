#include "cpp/base/philox.h"
#include "cuda/common/launch.cuh"
#include "cuda/kernels/sample.h"
#include "cuda/kernels/sample_search.cuh"

namespace pagedcore::cuda {
namespace {

constexpr int kBlock = 256;  // weights that have one sum
constexpr float kMinTemperature = 1e-20f;

// Samples one row with one thread block. Every method is called by all threads.
class RowSampler : RowSearch {
 public:
  __device__ RowSampler(const SampleArgs& args, Shared& shared, float* sums)
      : RowSearch(static_cast<std::int32_t>(args.vocab_size), shared), args_(args), sums_(sums) {
    work_ = args.workspace + blockIdx.x * args.row_stride;
  }

  __device__ void sample(std::int32_t index) {
    static_assert(sizeof(SampleTask) % 4 == 0 && sizeof(SampleTask) / 4 <= kThreads);
    if (threadIdx.x < sizeof(SampleTask) / 4) {
      reinterpret_cast<std::uint32_t*>(&s_.task)[threadIdx.x] =
          reinterpret_cast<const std::uint32_t*>(args_.tasks + index)[threadIdx.x];
    }
    __syncthreads();
    const SampleTask& task = s_.task;
    const float* row = args_.logits + task.logit_row * args_.vocab_size;
    const bool reports = task.num_top >= 0;
    float max = 0.0f;
    double log_sum = 0.0;
    if (reports) {
      max = max_of(row);
      double sum = 0.0;
      for (std::int32_t i = threadIdx.x; i < size_; i += kThreads) {
        const float w = expf(row[i] - max);
        sum += isnan(w) ? 0.0f : w;
      }
      log_sum = log(total(sum));
      report_top(index, task, row, max, log_sum);
    }
    const TokenId token = task.given_token >= 0 ? task.given_token : choose(task, row);
    const std::int32_t rank = reports ? rank_of(row, token) : 0;
    if (threadIdx.x != 0) return;
    args_.tokens[index] = args_.device_tokens[index] = token;
    args_.ranks[index] = rank;
    args_.logprobs[index] = reports ? logprob(row[token], max, log_sum) : 0.0f;
  }

 private:
  __device__ static float logprob(float logit, float max, double log_sum) {
    return static_cast<float>((static_cast<double>(logit) - max) - log_sum);
  }

  __device__ std::int32_t rank_of(const float* row, TokenId id) {
    const float score = row[id];
    std::int32_t before = 0;
    for (std::int32_t i = threadIdx.x; i < size_; i += kThreads) {
      before += row[i] > score || (row[i] == score && i < id);
    }
    return 1 + count(before);
  }

  __device__ void report_top(std::int32_t index, const SampleTask& task, const float* row,
                             float max, double log_sum) {
    if (task.num_top == 0) return;
    const std::int32_t found = select_top(row, task.num_top);
    for (std::int32_t i = threadIdx.x; i < task.num_top; i += kThreads) {
      const std::int64_t at = std::int64_t{index} * args_.max_top + i;
      args_.top_tokens[at] = i < found ? candidate_id(i) : -1;
      args_.top_logprobs[at] =
          i < found ? logprob(candidate_score(i), max, log_sum) : kNegativeInfinity;
    }
    __syncthreads();
  }

  __device__ TokenId choose(const SampleTask& task, const float* row) {
    const float* scores = row;
    const bool penalised = task.repetition_penalty != 1.0f || task.presence_penalty != 0.0f ||
                           task.frequency_penalty != 0.0f;
    if ((penalised && !empty(task.seen)) || !empty(task.bias) || !empty(task.allowed) ||
        !empty(task.banned)) {
      apply_changes(task, row);
      scores = work_;
    }
    if (task.temperature == 0.0f) return highest(task, scores);
    const float max = max_of(scores);
    if (max == kNegativeInfinity)
      return empty(task.allowed) ? 0 : args_.allowed[task.allowed.begin];
    if (isinf(max)) return first_of(scores, max);
    const float scale = 1.0f / fmaxf(task.temperature, kMinTemperature);
    const bool limited = task.top_k > 0 && task.top_k < size_;
    if (limited && task.top_k <= kMaxSortedTop) return draw_of_top(task, scores, scale);
    return draw_of_all(task, scores, max, scale, limited);
  }

  __device__ static bool empty(const Range& r) { return r.begin == r.end; }

  // The row with bias, allowed, banned and penalties, in work_.
  __device__ void apply_changes(const SampleTask& task, const float* row) {
    const bool all = empty(task.allowed);
    for (std::int32_t i = threadIdx.x; i < size_; i += kThreads) {
      work_[i] = all ? row[i] : kNegativeInfinity;
    }
    __syncthreads();
    for (std::int32_t i = task.allowed.begin + threadIdx.x; i < task.allowed.end; i += kThreads) {
      work_[args_.allowed[i]] = row[args_.allowed[i]];
    }
    __syncthreads();
    for (std::int32_t i = task.bias.begin + threadIdx.x; i < task.bias.end; i += kThreads) {
      atomicAdd(work_ + args_.bias[i].token, args_.bias[i].bias);
    }
    __syncthreads();
    for (std::int32_t i = task.banned.begin + threadIdx.x; i < task.banned.end; i += kThreads) {
      work_[args_.banned[i]] = kNegativeInfinity;
    }
    __syncthreads();
    for (std::int32_t i = task.seen.begin + threadIdx.x; i < task.seen.end; i += kThreads) {
      const SeenToken seen = args_.seen[i];
      float score = work_[seen.token];
      score = score > 0.0f ? score / task.repetition_penalty : score * task.repetition_penalty;
      if (seen.output_count != 0) {
        score -= task.frequency_penalty * static_cast<float>(seen.output_count);
        score -= task.presence_penalty;
      }
      work_[seen.token] = score;
    }
    __syncthreads();
  }

  // The highest score's lowest id, in one pass.
  __device__ TokenId highest(const SampleTask& task, const float* scores) {
    float best = kNegativeInfinity;
    std::int32_t best_id = size_;
    const auto offer = [&](float x, std::int32_t id) {
      if (x > best) best = x, best_id = id;
    };
    // Elements are looked at in the order of their ids, those at the end perhaps twice.
    constexpr int kUnroll = 8;
    if (size_ % 4 == 0 && reinterpret_cast<std::uintptr_t>(scores) % 16 == 0) {
      constexpr int kStep = 4 * kThreads;
      for (std::int32_t i = 4 * threadIdx.x; i < size_; i += kUnroll * kStep) {
        float4 x[kUnroll];
#pragma unroll
        for (int j = 0; j < kUnroll; ++j) {
          x[j] = *reinterpret_cast<const float4*>(scores + min(i + j * kStep, size_ - 4));
        }
#pragma unroll
        for (int j = 0; j < kUnroll; ++j) {
          const std::int32_t id = min(i + j * kStep, size_ - 4);
          offer(x[j].x, id), offer(x[j].y, id + 1), offer(x[j].z, id + 2), offer(x[j].w, id + 3);
        }
      }
    } else {
#pragma unroll 8
      for (std::int32_t i = threadIdx.x; i < size_; i += kThreads) offer(scores[i], i);
    }
    const std::uint32_t key = max_key(best_id < size_ ? order_key(best) : 0);
    if (key == 0) return empty(task.allowed) ? 0 : args_.allowed[task.allowed.begin];
    const bool mine = best_id < size_ && order_key(best) == key;
    return static_cast<TokenId>(~max_key(mine ? ~static_cast<std::uint32_t>(best_id) : 0));
  }

  __device__ TokenId first_of(const float* scores, float max) {
    std::uint32_t best = 0;  // ~id, so that the lowest id wins
    for (std::int32_t i = threadIdx.x; i < size_; i += kThreads) {
      if (scores[i] == max) {
        best = ~static_cast<std::uint32_t>(i);
        break;
      }
    }
    return static_cast<TokenId>(~max_key(best));
  }

  // Draws after top-k: the survivors lie sorted, so top-p and min-p are a prefix of them.
  __device__ TokenId draw_of_top(const SampleTask& task, const float* scores, float scale) {
    const std::int32_t found = select_top(scores, task.top_k);
    const double max = candidate_score(0);
    float* weights = work_ + size_;  // beside the scores, which may lie in work_
    for (std::int32_t i = threadIdx.x; i < found; i += kThreads) {
      weights[i] = static_cast<float>(exp((candidate_score(i) - max) * scale));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      double all = 0.0;
      for (std::int32_t i = 0; i < found; ++i) all += weights[i];
      const double mass = static_cast<double>(task.top_p) * all;
      double kept_mass = 0.0;
      std::int32_t kept = 0;
      while (kept < found && (kept == 0 || kept_mass < mass || task.top_p >= 1.0f) &&
             weights[kept] >= task.min_p) {
        kept_mass += weights[kept++];
      }
      const double target = philox_uniform(task.seed, task.position, 0) * kept_mass;
      double below = 0.0;
      s_.token = candidate_id(0);
      for (std::int32_t i = 0; i < kept; ++i) {
        below += weights[i];
        if (below > target) {
          s_.token = candidate_id(i);
          break;
        }
      }
    }
    __syncthreads();
    return s_.token;
  }

  // Sums of the weights before `place`, by block to sums_; gives the sum of all.
  __device__ double scan_before(const Place& place) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    __syncthreads();
    double sum_all = 0.0;
    for (std::int32_t first = warp * kBlock; first < size_; first += kWarps * kBlock) {
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < kBlock / 32; ++j) {
        const std::int32_t i = first + j * 32 + lane;
        if (i < size_ && place.is_after(work_[i], i)) sum += work_[i];
      }
      sum = warp_total(sum);
      if (lane == 0) sums_[first / kBlock] = sum;
      sum_all += sum;
    }
    return total(lane == 0 ? sum_all : 0.0);
  }

  // The token before `place` where the running sum of those weights, sums_ by block, exceeds
  // `target`. The first warp searches.
  __device__ TokenId token_at(const Place& place, double target) {
    __syncthreads();
    if (threadIdx.x < 32) {
      const int lane = threadIdx.x;
      const std::int32_t num_blocks = (size_ + kBlock - 1) / kBlock;
      const std::int32_t share = (num_blocks + 31) / 32;
      const std::int32_t begin = min(lane * share, num_blocks);
      const std::int32_t end = min(begin + share, num_blocks);
      double mine = 0.0;
      std::int32_t last = -1;  // a block with weight
      for (std::int32_t b = begin; b < end; ++b) {
        mine += sums_[b];
        if (sums_[b] > 0.0f) last = b;
      }
      double reach = mine;
      for (int d = 1; d < 32; d *= 2) {
        const double other = __shfl_up_sync(kAll, reach, d);
        if (lane >= d) reach += other;
      }
      double below = reach - mine;
      const unsigned exceeds = __ballot_sync(kAll, reach > target && mine > 0.0);
      const int owner =
          exceeds != 0 ? __ffs(exceeds) - 1 : 31 - __clz(__ballot_sync(kAll, last >= 0));
      std::int32_t block = last;
      for (std::int32_t b = begin; b < end; ++b) {
        if (sums_[b] > 0.0f && below + sums_[b] > target) {
          block = b;
          break;
        }
        if (b < last) below += sums_[b];
      }
      block = __shfl_sync(kAll, block, owner);
      below = __shfl_sync(kAll, below, owner);
      TokenId token = -1;
      for (int j = 0; j < kBlock / 32; ++j) {
        const std::int32_t i = block * kBlock + j * 32 + lane;
        const float w = i < size_ ? work_[i] : 0.0f;
        const bool in = w > 0.0f && place.is_after(w, i);
        double sum = in ? w : 0.0f;
        for (int d = 1; d < 32; d *= 2) {
          const double other = __shfl_up_sync(kAll, sum, d);
          if (lane >= d) sum += other;
        }
        const unsigned inside = __ballot_sync(kAll, in);
        const unsigned over = __ballot_sync(kAll, in && below + sum > target);
        if (over != 0) {
          token = block * kBlock + j * 32 + __ffs(over) - 1;
          break;
        }
        if (inside != 0) token = block * kBlock + j * 32 + 31 - __clz(inside);
        below += __shfl_sync(kAll, sum, 31);
      }
      if (lane == 0) s_.token = token;
    }
    __syncthreads();
    return s_.token;
  }

  // Draws from the whole row by rejection: a token drawn from what is left belongs to the top-p set
  // iff the weights before it sum to less than top_p of all. If it does not, nothing from it on
  // does, and the next draw is among the tokens before it.
  // Method: sorting-free sampling, Ye et al., FlashInfer, 2025.
  __device__ TokenId draw_of_all(const SampleTask& task, const float* scores, float max,
                                 float scale, bool limited) {
    std::uint32_t least = 0;
    std::int32_t id_end = size_;
    if (limited) find_place(scores, task.top_k, least, id_end);
    __syncthreads();
    for (std::int32_t i = threadIdx.x; i < size_; i += kThreads) {
      const std::uint32_t key = order_key(scores[i]);
      const float w = exp2f((scores[i] - max) * (scale * 1.44269504f));
      work_[i] = key > least || (key == least && i < id_end) ? (isnan(w) ? 0.0f : w) : 0.0f;
    }
    Place place;
    double left = scan_before(place);
    const double mass = static_cast<double>(task.top_p) * left;
    if (task.min_p > 0.0f) {
      place = {__float_as_int(task.min_p), size_};
      left = scan_before(place);
    }
    for (std::uint32_t draw = 0;; ++draw) {
      const TokenId token = token_at(place, philox_uniform(task.seed, task.position, draw) * left);
      if (task.top_p >= 1.0f) return token;
      place = {__float_as_int(work_[token]), token};
      left = scan_before(place);
      if (left < mass || left == 0.0) return token;
    }
  }

  const SampleArgs& args_;
  float* sums_;  // [blocks], shared memory
  float* work_;  // [vocab_size + kMaxSortedTop]
};

// Thread block s samples rows s, s + num_slots, ... Shared memory: one sum a block of weights.
__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleArgs args) {
  extern __shared__ float sums[];
  __shared__ Shared shared;
  RowSampler sampler(args, shared, sums);
  for (std::int32_t i = blockIdx.x; i < args.num_samples; i += args.num_slots) {
    sampler.sample(i);
    __syncthreads();
  }
}

}  // namespace

void launch_sample(const SampleArgs& args, cudaStream_t stream) {
  const auto bytes = static_cast<int>(ceil_div(args.vocab_size, kBlock) * sizeof(float));
  PAGEDCORE_CUDA_CHECK(
      cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  sample_kernel<<<args.num_slots, kThreads, bytes, stream>>>(args);
  PAGEDCORE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace pagedcore::cuda
