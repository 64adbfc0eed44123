#include "cpp/backend/cpu/kernels/sample.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "cpp/backend/cpu/kernels/kernels.h"
#include "cpp/backend/cpu/kernels/sample_scan.h"
#include "cpp/base/philox.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {
namespace {

// Below this many logits in all, waking the pool costs more than it saves.
constexpr std::int64_t kMinLogitsForPool = 1 << 16;
// Keeps the reciprocal finite.
constexpr float kMinTemperature = 1e-20f;

struct Candidate {
  float score = 0.0f;
  TokenId id = 0;
};

// Its linkage is internal, as are so the standard algorithms made with it: their code may use this
// instruction set and must not be shared with the others.
struct MoreLikely {
  bool operator()(float a, float b) const { return a > b; }
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
  }
};

// Samples one row after the other with one thread's workspace.
class Sampler {
 public:
  Sampler(const SampleParams& params, int thread)
      : params_(params),
        vocab_size_(params.vocab_size),
        num_blocks_(num_sample_blocks(params.vocab_size)) {
    auto* workspace = static_cast<char*>(params.workspace) +
                      thread * sample_workspace_bytes_per_thread(vocab_size_);
    weights_ = reinterpret_cast<float*>(workspace);
    candidates_ = reinterpret_cast<Candidate*>(weights_ + num_blocks_ * kSampleBlock);
    lane_max_ = reinterpret_cast<float*>(candidates_ + num_blocks_ * kSampleBlock);
    scratch_ = lane_max_ + num_blocks_ * kLanes;
    sums_ = scratch_ + num_blocks_ * kLanes;
  }

  void sample(std::int64_t index) {
    const SampleRow& how = params_.samples[index];
    const float* row = params_.logits + how.logit_row * vocab_size_;
    const bool reports = how.num_top >= 0;
    float max = 0.0f;
    double log_sum = 0.0;
    if (reports) {
      max = scan_max(row, vocab_size_, lane_max_);
      log_sum = std::log(scan_weights<false>(row, vocab_size_, max, 1.0f, nullptr, nullptr));
      report_top(index, row, max, log_sum);
    }
    const TokenId token = how.given_token >= 0 ? how.given_token : choose(how, row);
    params_.outputs.tokens[index] = token;
    if (!reports) return;
    if (!params_.outputs.logprobs.empty()) {
      params_.outputs.logprobs[index] = logprob(row[token], max, log_sum);
    }
    if (!params_.outputs.ranks.empty()) {
      params_.outputs.ranks[index] = rank_of(row, vocab_size_, token);
    }
  }

 private:
  static float logprob(float logit, float max, double log_sum) {
    return static_cast<float>((static_cast<double>(logit) - max) - log_sum);
  }

  void report_top(std::int64_t index, const float* row, float max, double log_sum) {
    const SampleOutputs& out = params_.outputs;
    const std::int64_t wanted = params_.samples[index].num_top;
    const std::int64_t found = wanted > 0 ? select_top(row, wanted) : 0;
    for (std::int64_t i = 0; i < found; ++i) {
      out.top_tokens[index * out.max_top + i] = candidates_[i].id;
      out.top_logprobs[index * out.max_top + i] = logprob(candidates_[i].score, max, log_sum);
    }
    for (std::int64_t i = found; i < wanted; ++i) {
      out.top_tokens[index * out.max_top + i] = -1;
      out.top_logprobs[index * out.max_top + i] = kNegativeInfinity;
    }
  }

  TokenId choose(const SampleRow& how, const float* row) {
    const float* scores = row;
    if (is_changed(how)) {
      apply_changes(how, row);
      scores = weights_;
    }
    const float max = scan_max(scores, vocab_size_, lane_max_);
    if (max == kNegativeInfinity) return how.allowed.empty() ? 0 : how.allowed.front();
    if (how.temperature == 0.0f || std::isinf(max)) return first_of(scores, max);
    const float scale =
        1.0f / (how.temperature > kMinTemperature ? how.temperature : kMinTemperature);
    if (how.top_k > 0 && how.top_k < vocab_size_) return draw_of_top(how, scores, scale);
    return draw_of_all(how, scores, max, scale);
  }

  static bool is_changed(const SampleRow& how) {
    const bool penalised = how.repetition_penalty != 1.0f || how.presence_penalty != 0.0f ||
                           how.frequency_penalty != 0.0f;
    return (penalised && !how.seen.empty()) || !how.bias.empty() || !how.allowed.empty() ||
           !how.banned.empty();
  }

  // The row with bias, allowed, banned and penalties, in weights_.
  void apply_changes(const SampleRow& how, const float* row) {
    float* x = weights_;
    if (how.allowed.empty()) {
      std::memcpy(x, row, vocab_size_ * sizeof(float));
      for (const LogitBias& b : how.bias) x[b.token] += b.bias;
    } else {
      for (std::int64_t i = 0; i < vocab_size_; ++i) x[i] = kNegativeInfinity;
      for (TokenId token : how.allowed) x[token] = row[token];
      for (const LogitBias& b : how.bias) x[b.token] += b.bias;
    }
    for (TokenId token : how.banned) x[token] = kNegativeInfinity;
    for (const SeenToken& seen : how.seen) {
      float& score = x[seen.token];
      score = score > 0.0f ? score / how.repetition_penalty : score * how.repetition_penalty;
      if (seen.output_count == 0) continue;
      score -= how.frequency_penalty * static_cast<float>(seen.output_count);
      score -= how.presence_penalty;
    }
  }

  // The lowest id whose score is `max`, which scan_max found.
  TokenId first_of(const float* scores, float max) const {
    const Floats wanted = Floats{} + max;
    std::int64_t b = 0;
    while (!any_lane(load(lane_max_ + b * kLanes) == wanted)) ++b;
    std::int64_t i = b * kSampleBlock;
    while (scores[i] != max) ++i;
    return static_cast<TokenId>(i);
  }

  // Puts the `count` most likely scores (fewer where fewer are above -infinity) first into
  // candidates_, most likely first, and gives their number. REQUIRES: scan_max of the scores.
  std::int64_t select_top(const float* scores, std::int64_t count) {
    const float floor = score_floor(count);
    std::int64_t found = 0;
    for_each_block(scores, vocab_size_, [&](std::int64_t b, const float* x) {
      if (!any_lane(load(lane_max_ + b * kLanes) >= floor)) return;
      for (int v = 0; v < kVectorsPerBlock; ++v) {
        if (!any_lane(load(x + v * kLanes) >= floor)) continue;
        for (int i = v * kLanes; i < (v + 1) * kLanes; ++i) {
          if (!(x[i] >= floor) || x[i] == kNegativeInfinity) continue;
          candidates_[found++] = {x[i], static_cast<TokenId>(b * kSampleBlock + i)};
        }
      }
    });
    if (found > count) {
      std::nth_element(candidates_, candidates_ + count - 1, candidates_ + found, MoreLikely());
      found = count;
    }
    std::sort(candidates_, candidates_ + found, MoreLikely());
    return found;
  }

  // A score that at least `count` scores reach: the count-th largest of the maxima of as many
  // disjoint parts of the row as make the selection cheap.
  float score_floor(std::int64_t count) {
    const std::int64_t num_lanes = num_blocks_ * kLanes;
    std::int64_t num_parts = 0;
    if (count <= num_blocks_ / 2) {
      num_parts = num_blocks_;
      for (std::int64_t b = 0; b < num_blocks_; ++b) {
        float max = lane_max_[b * kLanes];
        for (int i = 1; i < kLanes; ++i) {
          const float score = lane_max_[b * kLanes + i];
          max = score > max ? score : max;
        }
        scratch_[b] = max;
      }
    } else if (count <= num_lanes / 2) {
      num_parts = num_lanes;
      std::memcpy(scratch_, lane_max_, num_lanes * sizeof(float));
    } else {
      return kNegativeInfinity;
    }
    std::nth_element(scratch_, scratch_ + count - 1, scratch_ + num_parts, MoreLikely());
    return scratch_[count - 1];
  }

  // Draws after top-k: the survivors lie sorted, so top-p and min-p are a prefix of them.
  TokenId draw_of_top(const SampleRow& how, const float* scores, float scale) {
    const std::int64_t found = select_top(scores, how.top_k);
    const double max = candidates_[0].score;
    double total = 0.0;
    for (std::int64_t i = 0; i < found; ++i) {
      candidates_[i].score = static_cast<float>(std::exp((candidates_[i].score - max) * scale));
      total += candidates_[i].score;
    }
    const double mass = static_cast<double>(how.top_p) * total;
    double kept_mass = 0.0;
    std::int64_t kept = 0;
    while (kept < found && (kept == 0 || kept_mass < mass || how.top_p >= 1.0f) &&
           candidates_[kept].score >= how.min_p) {
      kept_mass += candidates_[kept++].score;
    }
    const double target = philox_uniform(how.seed, how.position, 0) * kept_mass;
    double below = 0.0;
    for (std::int64_t i = 0; i < kept; ++i) {
      below += candidates_[i].score;
      if (below > target) return candidates_[i].id;
    }
    return candidates_[0].id;
  }

  // Draws from the whole row by rejection: a token drawn from what is left belongs to the top-p set
  // iff the weights before it sum to less than top_p of all. If it does not, nothing from it on
  // does, and the next draw is among the tokens before it. Each pass about halves what is too much.
  // Method: sorting-free sampling, Ye et al., FlashInfer, 2025.
  TokenId draw_of_all(const SampleRow& how, const float* scores, float max, float scale) {
    const double total = scan_weights<true>(scores, vocab_size_, max, scale, weights_, sums_);
    const double mass = static_cast<double>(how.top_p) * total;
    Place place;  // of the first token that is known to be out
    double left = total;
    if (how.min_p > 0.0f) {
      std::memcpy(&place.bits, &how.min_p, sizeof(place.bits));
      place.id = num_blocks_ * kSampleBlock;
      left = scan_before(weights_, num_blocks_, place, sums_);
    }
    for (std::uint32_t draw = 0;; ++draw) {
      const TokenId token = token_at(place, philox_uniform(how.seed, how.position, draw) * left);
      if (how.top_p >= 1.0f) return token;
      std::memcpy(&place.bits, &weights_[token], sizeof(place.bits));
      place.id = token;
      left = scan_before(weights_, num_blocks_, place, sums_);
      if (left < mass || left == 0.0) return token;
    }
  }

  // The token before `place` where the running sum of those weights, sums_ by block, exceeds
  // `target`.
  TokenId token_at(const Place& place, double target) const {
    std::int64_t b = 0;
    std::int64_t last = 0;
    double below = 0.0;
    for (; b < num_blocks_; ++b) {
      if (sums_[b] > 0.0f) last = b;
      if (below + sums_[b] > target) break;
      below += sums_[b];
    }
    if (b == num_blocks_) b = last;
    std::int64_t token = b * kSampleBlock;
    for (std::int64_t i = b * kSampleBlock; i < (b + 1) * kSampleBlock; ++i) {
      if (weights_[i] <= 0.0f || !place.is_after(weights_[i], i)) continue;
      token = i;
      below += weights_[i];
      if (below > target) break;
    }
    return static_cast<TokenId>(token);
  }

  const SampleParams& params_;
  std::int64_t vocab_size_;
  std::int64_t num_blocks_;
  float* weights_;         // [blocks * kSampleBlock]
  Candidate* candidates_;  // [blocks * kSampleBlock]
  float* lane_max_;        // [blocks, kLanes]
  float* scratch_;         // [blocks, kLanes]
  float* sums_;            // [blocks]
};

}  // namespace

void sample(const SampleParams& params, Context& context) {
  ThreadPool& pool = context.pool;
  const auto num_samples = static_cast<std::int64_t>(params.samples.size());
  if (pool.size() == 1 || num_samples * params.vocab_size < kMinLogitsForPool) {
    Sampler sampler(params, 0);
    for (std::int64_t i = 0; i < num_samples; ++i) sampler.sample(i);
    return;
  }
  std::atomic<std::int64_t> next{0};
  pool.run([&](int thread) {
    Sampler sampler(params, thread);
    for (std::int64_t i = next++; i < num_samples; i = next++) sampler.sample(i);
  });
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
