// Paged attention over all layers of a cache that lies in memory, in bfloat16: decode steps, a
// prompt, and decode steps of sequences with one prefix, shared and not. Divides by the limits
// measured between the repetitions: the larger of bytes (each block once for all who hold it) over
// read bandwidth and operations over the peak of dot products.
//   bench_attention [--shape=M] [--case=decode,prefill,prefix] [--seqs=32] [--context=2048]
//                   [--prefix=1024] [--new=1] [--block_size=16] [--layers=4] [--threads=0]
//                   [--isa=] [--dtype=bfloat16] [--repeats=9]
// --case=prefix takes steps of `new` tokens a sequence, --case=shared the shared ones alone.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bench/bench.h"
#include "cpp/backend/cpu/attention_plan.h"
#include "pagedcore/backend.h"
#include "pagedcore/cpu_limits.h"

namespace pagedcore::bench {
namespace {

struct Shape {
  const char* name;
  std::int64_t heads, kv_heads, head_dim;
};
constexpr Shape kShapes[] = {{"S", 9, 3, 64}, {"M", 32, 8, 64}};

// One batch of equal sequences, each with `query_len` tokens after those in the cache, and all with
// the same first `prefix` tokens.
class Batch {
 public:
  Batch(int seqs, int total, int query_len, int prefix, int block_size)
      : num_seqs_(seqs), total_(total), query_len_(query_len) {
    const int blocks = (total + block_size - 1) / block_size;
    const int shared = prefix / block_size;
    num_blocks_ = shared + seqs * (blocks - shared);
    std::vector<BlockId> ids(num_blocks_);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
    for (int seq = 0; seq < seqs; ++seq) {
      for (int i = 0; i < blocks; ++i) {
        tables_.push_back(i < shared ? ids[i] : ids[shared + seq * (blocks - shared) + i - shared]);
      }
      starts_.push_back(seq * query_len);
      contexts_.push_back(total - query_len);
      rows_.push_back(seq);
    }
    starts_.push_back(seqs * query_len);
    batch_.num_tokens = seqs * query_len;
    batch_.num_seqs = seqs;
    batch_.max_query_len = query_len;
    batch_.max_context_len = total;
    batch_.query_starts = starts_.data();
    batch_.context_lens = contexts_.data();
    batch_.table_rows = rows_.data();
    batch_.block_tables = tables_.data();
    batch_.table_stride = blocks;
    unique_tokens_ = prefix / block_size * block_size;
    unique_tokens_ += seqs * (total - unique_tokens_);
  }

  const ForwardBatch& get() const { return batch_; }
  std::int64_t num_blocks() const { return num_blocks_; }
  // Positions in the cache, each counted once however many hold it, and once for each holder.
  std::int64_t unique_tokens() const { return unique_tokens_; }
  std::int64_t held_tokens() const { return std::int64_t{num_seqs_} * total_; }
  // Pairs of a query and a position that it sees.
  double pairs() const {
    const double first = total_ - query_len_ + 1;
    return num_seqs_ * query_len_ * (first + total_) / 2;
  }

 private:
  int num_seqs_, total_, query_len_;
  std::int64_t num_blocks_ = 0;
  std::int64_t unique_tokens_ = 0;
  std::vector<BlockId> tables_;
  std::vector<std::int32_t> starts_, contexts_, rows_;
  ForwardBatch batch_;
};

struct Setting {
  Shape shape;
  DType dtype;
  int layers, block_size, repeats;
  CpuBackendOptions options;
};

// Random bytes that are small finite numbers in any format.
void fill(Buffer& buffer) {
  std::uint32_t state = 1;
  for (std::int64_t i = 0; i + 4 <= buffer.bytes(); i += 4) {
    state = state * 1664525u + 1013904223u;
    const std::uint32_t bits = 0x3c003c00u | (state & 0x80ff80ffu);
    std::memcpy(buffer.as<char>() + i, &bits, 4);
  }
}

class Run {
 public:
  Run(const Setting& setting, const Batch& batch, Backend& backend)
      : setting_(setting), batch_(batch), backend_(backend) {
    const Shape& shape = setting.shape;
    KvCacheView& cache = params_.cache;
    cache.dtype = setting.dtype;
    cache.num_blocks = batch.num_blocks();
    cache.num_layers = setting.layers;
    cache.num_kv_heads = shape.kv_heads;
    cache.block_size = setting.block_size;
    cache.head_dim = shape.head_dim;
    cache_ = Buffer(backend, cache.num_blocks * cache.block_bytes());
    const std::int64_t width = shape.heads * shape.head_dim;
    query_ = Buffer(backend, batch.get().num_tokens * width * 4);
    out_ = Buffer(backend, batch.get().num_tokens * width * 4);
    fill(cache_);
    fill(query_);
    cache.data = cache_.data();
    params_.num_heads = shape.heads;
    params_.query = query_.data();
    params_.scale = 0.125f;
    params_.out = out_.data();
  }

  // Bytes that a step reads from the cache, a tile counted each time that a task takes it.
  double bytes_read() const {
    cpu::AttentionPlan plan;
    plan.prepare(batch_.get(), params_,
                 setting_.options.num_threads > 0 ? setting_.options.num_threads : 2);
    return bytes(plan.num_tiles_read() * cpu::kAttentionTile);
  }
  double flops() const {
    return 4.0 * batch_.pairs() * setting_.shape.heads * setting_.shape.head_dim * setting_.layers;
  }
  double bytes(std::int64_t tokens) const {
    const KvCacheView& cache = params_.cache;
    return static_cast<double>(tokens) * cache.block_bytes() / cache.block_size;
  }

  double step_seconds() {
    const auto start = std::chrono::steady_clock::now();
    const ForwardBatch staged = backend_.stage(batch_.get());
    for (int layer = 0; layer < setting_.layers; ++layer) {
      params_.layer = layer;
      backend_.paged_attention(staged, params_);
    }
    return seconds_since(start);
  }

 private:
  const Setting& setting_;
  const Batch& batch_;
  Backend& backend_;
  PagedAttentionParams params_;
  Buffer cache_, query_, out_;
};

// Prints a line and gives the median of a step's seconds.
double measure(const Setting& setting, const std::string& name, const Batch& batch) {
  const auto backend = make_cpu_backend(setting.options);
  Run run(setting, batch, *backend);
  std::vector<double> seconds;
  CpuLimits limits;
  run.step_seconds();
  for (int i = 0; i < setting.repeats; ++i) {
    if (i % 3 == 0) {
      const CpuLimits now = measure_cpu_limits(setting.options);
      limits.dram_gb_s = std::max(limits.dram_gb_s, now.dram_gb_s);
      limits.f32_gflop_s = std::max(limits.f32_gflop_s, now.f32_gflop_s);
      limits.bf16_gflop_s = std::max(limits.bf16_gflop_s, now.bf16_gflop_s);
    }
    seconds.push_back(run.step_seconds());
  }
  const bool pairs = setting.dtype == DType::kBFloat16 || setting.dtype == DType::kInt8;
  const double peak = pairs ? limits.bf16_gflop_s : limits.f32_gflop_s;
  const double bytes_s = run.bytes(batch.unique_tokens()) / 1e9 / limits.dram_gb_s;
  const double flops_s = run.flops() / 1e9 / peak;
  const double limit = std::max(bytes_s, flops_s);
  const double middle = median(seconds);
  const double best = *std::min_element(seconds.begin(), seconds.end());
  std::printf(
      "{\"bench\": \"attention\", \"commit\": \"%s\", \"backend\": \"%s\", \"shape\": \"%s\", "
      "\"dtype\": \"%s\", \"case\": \"%s\", \"layers\": %d, \"block_size\": %d, \"us\": %.0f, "
      "\"best_us\": %.0f, \"gb_s\": %.1f, \"gflop_s\": %.1f, \"limit_gb_s\": %.1f, "
      "\"limit_gflop_s\": %.1f, \"bound\": \"%s\", \"share\": %.3f, \"best_share\": %.3f, "
      "\"held_over_unique\": %.2f, \"read_over_unique\": %.2f}\n",
      commit().c_str(), backend->description().c_str(), setting.shape.name,
      std::string(dtype_name(setting.dtype)).c_str(), name.c_str(), setting.layers,
      setting.block_size, middle * 1e6, best * 1e6, run.bytes(batch.unique_tokens()) / 1e9 / middle,
      run.flops() / 1e9 / middle, limits.dram_gb_s, peak, bytes_s > flops_s ? "bytes" : "flops",
      limit / middle, limit / best,
      static_cast<double>(batch.held_tokens()) / static_cast<double>(batch.unique_tokens()),
      run.bytes_read() / run.bytes(batch.unique_tokens()));
  std::fflush(stdout);
  return middle;
}

int main(const Arguments& arguments) {
  Setting setting;
  setting.shape = arguments.text("shape", "M") == "S" ? kShapes[0] : kShapes[1];
  setting.dtype = dtype_from_name(arguments.text("dtype", "bfloat16"));
  setting.layers = arguments.number("layers", 4);
  setting.block_size = arguments.number("block_size", 16);
  setting.repeats = arguments.number("repeats", 9);
  setting.options = {.num_threads = arguments.number("threads", 0),
                     .isa = arguments.text("isa", "")};
  const std::string cases = arguments.text("case", "decode,prefill,prefix");
  const int seqs = arguments.number("seqs", 32);
  const int context = arguments.number("context", 2048);
  const int prefix = arguments.number("prefix", 1024);
  if (cases.find("decode") != std::string::npos) {
    measure(setting, "decode", Batch(seqs, context, 1, 0, setting.block_size));
  }
  if (cases.find("prefill") != std::string::npos) {
    measure(setting, "prefill", Batch(1, context, context, 0, setting.block_size));
  }
  const int tokens = arguments.number("new", 1);
  const int total = prefix + 64;
  const auto measure_shared = [&] {
    const Batch batch(seqs, total, tokens, prefix, setting.block_size);
    return measure(setting, "prefix, shared", batch);
  };
  if (cases.find("prefix") != std::string::npos) {
    const Batch batch(seqs, total, tokens, 0, setting.block_size);
    const double apart = measure(setting, "prefix, held apart", batch);
    std::printf("{\"bench\": \"attention\", \"case\": \"prefix\", \"speedup\": %.2f}\n",
                apart / measure_shared());
  }
  if (cases.find("shared") != std::string::npos) measure_shared();
  return 0;
}

}  // namespace
}  // namespace pagedcore::bench

int main(int argc, char** argv) {
  return pagedcore::bench::main(pagedcore::bench::Arguments(argc, argv));
}
