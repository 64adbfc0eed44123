#pragma once

#include "cpp/backend/cpu/kernels/caches.h"
#include "cpp/backend/cpu/kernels/linear_formats.h"
#include "pagedcore/ops.h"

// The inner loops of linear. Whatever the number of rows, the sums of an output run over the inputs
// of a segment in order, are added, and so are the segments: an output's bits depend on its weights
// and its row of x only.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// Bytes of a row of x in a segment: several rows stay in the L1 cache, a panel's rows in L2.
inline constexpr std::int64_t kSegmentBytes = 3072;
// Rows of a packed panel lie so far apart, so that they do not push each other out of the cache.
inline constexpr std::int64_t kPanelRowBytes = kSegmentBytes + kLineBytes;
// A panel is up to so many blocks of kLanes outputs; of gate and up for one row of x, which reads a
// panel once, more: every change from one to the other costs a stream from memory its start.
inline constexpr int kPanelBlocks = 4;
inline constexpr int kMostPanelBlocks = 16;
inline constexpr int kPanelWidth = kPanelBlocks * kLanes;
inline constexpr std::int64_t kPanelBytes = kPanelWidth * kPanelRowBytes;

template <typename F>
constexpr std::int64_t segment_inputs() {
  return kSegmentBytes / sizeof(typename F::Operand);
}

// kLanes outputs of one weight matrix, the last `kLanes - num_outputs` of them absent.
template <typename F>
struct Block {
  const char* data;  // of the first output
  // Bytes between outputs (kOutIn) or inputs (kInOut), or between lines of quantised weights.
  std::int64_t stride;
  WeightLayout layout;
  int num_outputs;
  const float* scales = nullptr;  // of quantised weights: groups of inputs, kBlockOutputs apart
  const std::int8_t* zero_points = nullptr;  // the same
};

// Fetches the inputs [k, k_end) of some blocks into the L2 cache, a few lines at every step of a
// loop over something else, in the order of memory.
template <typename F>
class Prefetch {
 public:
  Prefetch() = default;
  Prefetch(const Block<F>* blocks, int num_blocks, std::int64_t k, std::int64_t k_end,
           std::int64_t num_steps)
      : blocks_(blocks), k_(k) {
    const bool by_input = blocks->layout == WeightLayout::kInOut;
    num_rows_ = by_input ? k_end - k : num_blocks * kRowsOfBlock;
    row_bytes_ = by_input ? num_blocks * kLanes * sizeof(typename F::Weight)
                          : kRowOutputs * F::weight_bytes(k_end - k);
    const std::int64_t num_lines = num_rows_ * (row_bytes_ / kLineBytes + 1);
    lines_a_step_ = static_cast<int>((num_lines + num_steps - 1) / num_steps);
  }

  void step() {
    for (int i = 0; i < lines_a_step_; ++i, next_ += kLineBytes) {
      if (next_ >= end_ && !start_row()) return;
      prefetch_l2(next_);
    }
  }

 private:
  bool start_row() {
    if (row_ == num_rows_) {
      lines_a_step_ = 0;
      return false;
    }
    const bool by_input = blocks_->layout == WeightLayout::kInOut;
    const Block<F>& block = by_input ? blocks_[0] : blocks_[row_ / kRowsOfBlock];
    next_ = block.data +
            (by_input ? (k_ + row_) * block.stride
                      : row_ % kRowsOfBlock * block.stride + kRowOutputs * F::weight_bytes(k_));
    end_ = next_ + row_bytes_;
    ++row_;
    return true;
  }

  // Outputs whose weights of the same inputs lie in one piece.
  static constexpr int kRowOutputs = F::kQuantized ? kBlockOutputs : 1;
  static constexpr int kRowsOfBlock = F::kQuantized ? 1 : kLanes;

  const Block<F>* blocks_ = nullptr;
  std::int64_t k_ = 0;
  std::int64_t num_rows_ = 0;
  std::int64_t row_bytes_ = 0;
  std::int64_t row_ = 0;
  const char* next_ = nullptr;
  const char* end_ = nullptr;
  int lines_a_step_ = 0;
};

// The rows of V outputs from `first` on, from input k; behind the last output, that again.
template <typename F, int V>
[[gnu::always_inline]] inline void rows_of_outputs(const Block<F>& block, int first, std::int64_t k,
                                                   const typename F::Weight* (&rows)[V]) {
  for (int v = 0; v < V; ++v) {
    const int output = first + v < block.num_outputs ? first + v : block.num_outputs - 1;
    rows[v] = reinterpret_cast<const typename F::Weight*>(block.data + output * block.stride +
                                                          F::weight_bytes(k));
  }
}

// acc[r][v]: the products of R rows of x and V of weights. `before` is called for each vector of
// inputs.
template <typename F, int R, int V, typename W, typename Before>
[[gnu::always_inline]] inline void multiply_rows(const W* const* w,
                                                 const typename F::Operand* const* x,
                                                 std::int64_t num_inputs, Before&& before,
                                                 Vec (&acc)[R][V]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[r][v] = zero();
  }
  const auto step = [&](auto load_inputs, std::int64_t k) __attribute__((always_inline)) {
    before(k);
    Vec weights[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) weights[v] = load_inputs(w[v] + k);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec operand = load_inputs(x[r] + k);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[r][v] = F::multiply_add(acc[r][v], weights[v], operand);
    }
  };
  std::int64_t k = 0;
  for (; k + F::kVecInputs <= num_inputs; k += F::kVecInputs) {
    step([](const auto* p) __attribute__((always_inline)) { return F::load_inputs(p); }, k);
  }
  if (k == num_inputs) return;
  const int rest = static_cast<int>(num_inputs - k);
  step([rest](const auto* p) __attribute__((always_inline)) { return F::load_inputs(p, rest); }, k);
}

// The totals of V outputs for R rows of x, eight at a time, stored to sums or, but for the first
// segment, added to them.
template <bool kFirst, int R, int V>
[[gnu::always_inline]] inline void put_totals(const Vec (&acc)[R][V], float* sums) {
  constexpr int kRows = 8 / V;
#pragma GCC unroll 4
  for (int row = 0; row < R; row += kRows) {
    Vec parts[2][4];  // behind the last row, that again
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const int r = row + i / V < R ? row + i / V : R - 1;
      parts[i / 4][i % 4] = acc[r][i % V];
    }
    float totals[kRows][V];
    sum_each(parts[0], parts[1], totals[0], totals[kRows / 2]);
    for (int r = 0; r < kRows && row + r < R; ++r) {
      float* to = sums + (row + r) * kPanelWidth;
      for (int v = 0; v < V; ++v) to[v] = kFirst ? totals[r][v] : to[v] + totals[r][v];
    }
  }
}

// Two pieces of code, since one that asks for every total waits for each to pass through memory.
template <int R, int V>
[[gnu::always_inline]] inline void add_totals(const Vec (&acc)[R][V], bool first, float* sums) {
  first ? put_totals<true>(acc, sums) : put_totals<false>(acc, sums);
}

// The products of one row of x and one of weights, which are part of a stream.
template <typename F, bool kFetchesAhead>
[[gnu::always_inline]] inline Vec multiply_row(const typename F::Weight* w,
                                               const typename F::Operand* x,
                                               std::int64_t num_inputs) {
  constexpr int kUnroll = 6;
  constexpr std::int64_t kVecBytes = F::kVecInputs * sizeof(*w);
  Vec acc = zero();
  std::int64_t k = 0;
  for (; k + kUnroll * F::kVecInputs <= num_inputs; k += kUnroll * F::kVecInputs) {
    const auto* ahead = reinterpret_cast<const std::byte*>(w + k) + kStreamAheadBytes;
#pragma GCC unroll 6
    for (int i = 0; i < kUnroll; ++i) {
      const std::int64_t at = k + i * F::kVecInputs;
      if (kFetchesAhead && i * kVecBytes % kLineBytes == 0) prefetch_l2(ahead + i * kVecBytes);
      acc = F::multiply_add(acc, F::load_inputs(w + at), F::load_inputs(x + at));
    }
  }
  for (; k + F::kVecInputs <= num_inputs; k += F::kVecInputs) {
    acc = F::multiply_add(acc, F::load_inputs(w + k), F::load_inputs(x + k));
  }
  if (k == num_inputs) return acc;
  const int rest = static_cast<int>(num_inputs - k);
  return F::multiply_add(acc, F::load_inputs(w + k, rest), F::load_inputs(x + k, rest));
}

// Segments of a row that are read before their lanes are added.
inline constexpr int kStreamSegments = 8;

// One row: the sums of one kOutIn block, whose weights are read in the order of memory, an output
// after the other.
template <typename F, bool kFetchesAhead>
void stream_block_once(const Block<F>& block, std::int64_t in_features,
                       const typename F::Operand* x, float* sums) {
  for (int quad = 0; quad < block.num_outputs; quad += 4) {
    for (std::int64_t k = 0; k < in_features; k += kStreamSegments * segment_inputs<F>()) {
      const typename F::Weight* w[4];
      rows_of_outputs(block, quad, k, w);
      Vec acc[kStreamSegments][1][4];
      int num_segments = 0;
      for (int v = 0; v < 4; ++v) {
        std::int64_t rest = in_features - k;
        for (num_segments = 0; num_segments < kStreamSegments && rest > 0; ++num_segments) {
          const std::int64_t at = num_segments * segment_inputs<F>();
          const std::int64_t count = rest < segment_inputs<F>() ? rest : segment_inputs<F>();
          acc[num_segments][0][v] = multiply_row<F, kFetchesAhead>(w[v] + at, x + k + at, count);
          rest -= count;
        }
      }
      for (int i = 0; i < num_segments; ++i) add_totals(acc[i], k + i == 0, sums + quad);
    }
  }
}

// The tile in which R rows of x meet weights: all rows at once where registers allow, so that each
// weight is loaded once.
template <int R>
struct StreamTile {
  static constexpr int kRows = kNumRegisters >= 32 ? R : R < 2 ? R : 2;
  static constexpr int kOutputs = kRows > 6 ? 2 : 4;
};

// Few rows: the same for R rows of x, some outputs at a time and a segment after the other, whose x
// stays in the L1 cache. `next` is the block that the caller wants next; weights are fetched
// kAhead outputs ahead.
template <typename F, int R, int kAhead = StreamTile<R>::kOutputs>
void stream_block(const Block<F>& block, const Block<F>& next, std::int64_t in_features,
                  const typename F::Operand* const* x, float* sums) {
  constexpr int kRows = StreamTile<R>::kRows;
  constexpr int V = StreamTile<R>::kOutputs;
  for (std::int64_t k = 0; k < in_features; k += segment_inputs<F>()) {
    const std::int64_t rest = in_features - k;
    const std::int64_t count = rest < segment_inputs<F>() ? rest : segment_inputs<F>();
    for (int output = 0; output < block.num_outputs; output += V) {
      const bool last = output + kAhead >= block.num_outputs;
      const bool ends = last && count == rest;
      const int ahead_output = kAhead == V ? 0 : output + kAhead - block.num_outputs;
      const typename F::Weight* w[V];
      const typename F::Weight* ahead[V];
      rows_of_outputs(block, output, k, w);
      const std::int64_t ahead_k = ends ? 0 : last ? k + count : k;
      rows_of_outputs(ends ? next : block, last ? ahead_output : output + kAhead, ahead_k, ahead);
      for (int row = 0; row < R; row += kRows) {
        const typename F::Operand* x_rows[kRows];
        for (int r = 0; r < kRows; ++r) x_rows[r] = x[row + r] + k;
        const auto fetch = [&](std::int64_t i) __attribute__((always_inline)) {
          if (row > 0) return;
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) prefetch_l2(ahead[v] + i);
        };
        Vec acc[kRows][V];
        multiply_rows<F, kRows, V>(w, x_rows, count, fetch, acc);
        add_totals(acc, k == 0, sums + row * kPanelWidth + output);
      }
    }
  }
}

// Many rows: writes the inputs [k, k_end) of one block as operands into a panel, a row an output.
template <typename F>
void pack_block(const Block<F>& block, std::int64_t k, std::int64_t k_end, std::byte* panel) {
  using Weight = typename F::Weight;
  const auto row = [&](int output, std::int64_t i) {
    return reinterpret_cast<float*>(panel + output * kPanelRowBytes) + i / F::kUnitInputs;
  };
  for (std::int64_t i = 0; k + i < k_end; i += F::kVecInputs) {
    const std::int64_t rest = k_end - k - i;
    const int n = rest < F::kVecInputs ? static_cast<int>(rest) : F::kVecInputs;
    if (block.layout == WeightLayout::kOutIn) {
      for (int output = 0; output < block.num_outputs; ++output) {
        const auto* w = reinterpret_cast<const Weight*>(block.data + output * block.stride) + k + i;
        store(row(output, i), n == F::kVecInputs ? F::load_inputs(w) : F::load_inputs(w, n));
      }
      continue;
    }
    Vec units[kLanes];
    for (int u = 0; u < kLanes; ++u) {
      const int input = u * F::kUnitInputs;
      const auto* w = reinterpret_cast<const Weight*>(block.data + (k + i + input) * block.stride);
      units[u] = input < n ? F::load_outputs(w, block.stride / sizeof(Weight), n - input,
                                             block.num_outputs)
                           : zero();
    }
    transpose(units);
    for (int output = 0; output < kLanes; ++output) store(row(output, i), units[output]);
  }
}

// Adds a quad of outputs of a segment, for R rows of x, to the sums of earlier segments (or to
// nothing, if this is the first).
template <typename F, int R>
[[gnu::always_inline]] inline void multiply_tile(const typename F::Operand* const* w,
                                                 const typename F::Operand* const* x,
                                                 std::int64_t num_inputs, bool first,
                                                 Prefetch<F>& prefetch, float* sums) {
  Vec acc[R][4];
  const auto fetch = [&](std::int64_t) __attribute__((always_inline)) { prefetch.step(); };
  multiply_rows<F, R, 4>(w, x, num_inputs, fetch, acc);
  add_totals(acc, first, sums);
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
