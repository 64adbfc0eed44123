// All linear ops of one forward pass, on weights of their own for every layer, as they come from
// memory. Divides by the limits measured between the repetitions.
//   bench_linear [--shape=S] [--rows=1,8,32,512] [--threads=0] [--isa=] [--dtype=bfloat16]
//                [--repeats=7] [--layers=0] [--group-size=64]
// Weights of int8 and int4 have scales too; their operations are counted at twice the bf16 rate.
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "bench/bench.h"
#include "pagedcore/backend.h"
#include "pagedcore/cpu_limits.h"

namespace pagedcore::bench {
namespace {

struct Shape {
  const char* name;
  std::int64_t hidden, layers, heads, kv_heads, head_dim, intermediate, vocab;
};
constexpr Shape kShapes[] = {{"S", 576, 30, 9, 3, 64, 1536, 49152},
                             {"M", 2048, 16, 32, 8, 64, 8192, 128256}};

// Weights in huge pages, as in a checkpoint's file mapped with MADV_HUGEPAGE: with 4 KiB pages a
// virtual machine's page walks halve the read bandwidth, of any reader.
class MappedWeights {
 public:
  explicit MappedWeights(std::int64_t bytes) : bytes_(bytes + kHugePage) {
    char* mapped = static_cast<char*>(
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mapped_ = mapped;
    data_ = mapped + (kHugePage - reinterpret_cast<std::uintptr_t>(mapped) % kHugePage);
    madvise(data_, bytes, MADV_HUGEPAGE);
    // Any 16-bit or 32-bit float made of these bytes is small and finite.
    std::uint32_t state = 1;
    for (std::int64_t i = 0; i + 4 <= bytes; i += 4) {
      state = state * 1664525u + 1013904223u;
      const std::uint32_t bits = 0x3c003c00u | (state & 0x80ff80ffu);
      std::memcpy(data_ + i, &bits, 4);
    }
  }
  ~MappedWeights() { munmap(mapped_, bytes_); }
  const char* take(std::int64_t bytes) {
    const char* taken = data_ + used_;
    used_ += bytes;
    return taken;
  }

 private:
  static constexpr std::int64_t kHugePage = std::int64_t{2} << 20;
  std::int64_t bytes_;
  std::int64_t used_ = 0;
  char* mapped_ = nullptr;
  char* data_ = nullptr;
};

class ForwardPass {
 public:
  ForwardPass(const Shape& shape, DType dtype, Backend& backend, std::int64_t max_rows,
              std::int64_t group_size)
      : shape_(shape),
        dtype_(dtype),
        backend_(backend),
        operand_(backend.activation_dtypes(dtype).operand),
        weight_bytes_((shape.layers * layer_weights() + shape.hidden * shape.vocab) *
                      dtype_bits(dtype) / 8),
        weights_(weight_bytes_ + 64),
        group_size_(group_size),
        scales_(is_quantized() ? weight_bytes_ * 8 / dtype_bits(dtype) / group_size : 0, 0.01f),
        x_(backend, max_rows * shape.intermediate * 4),
        residual_(backend, max_rows * shape.hidden * 4),
        qkv_(backend, max_rows * qkv_width() * 4),
        gated_(backend, max_rows * shape.intermediate * 4),
        logits_(backend, max_rows * shape.vocab * 4) {
    std::memset(x_.data(), 0, x_.bytes());
    std::memset(residual_.data(), 0, residual_.bytes());
    for (std::int64_t i = 0; i < shape.layers; ++i) {
      for (const std::int64_t out : {q_width(), kv_width(), kv_width()}) add(shape.hidden, out);
      add(q_width(), shape.hidden);
      add(shape.hidden, shape.intermediate);
      add(shape.hidden, shape.intermediate);
      add(shape.intermediate, shape.hidden);
    }
    add(shape.hidden, shape.vocab);
  }

  bool is_quantized() const { return dtype_bits(dtype_) <= 8; }
  std::int64_t weight_bytes() const {
    return weight_bytes_ + static_cast<std::int64_t>(scales_.size()) * 4;
  }
  double flops(std::int64_t rows, std::int64_t logit_rows) const {
    return 2.0 *
           (rows * shape_.layers * layer_weights() + logit_rows * shape_.hidden * shape_.vocab);
  }

  void run(std::int64_t rows, std::int64_t logit_rows) {
    next_ = 0;
    for (std::int64_t i = 0; i < shape_.layers; ++i) {
      op(rows, shape_.hidden, 3, LinearEpilogue::kStore, qkv_.data(), DType::kFloat32);
      op(rows, q_width(), 1, LinearEpilogue::kAccumulate, residual_.data(), DType::kFloat32);
      op(rows, shape_.hidden, 2, LinearEpilogue::kGated, gated_.data(), operand_);
      op(rows, shape_.intermediate, 1, LinearEpilogue::kAccumulate, residual_.data(),
         DType::kFloat32);
    }
    op(logit_rows, shape_.hidden, 1, LinearEpilogue::kStore, logits_.data(), DType::kFloat32);
  }

 private:
  std::int64_t q_width() const { return shape_.heads * shape_.head_dim; }
  std::int64_t kv_width() const { return shape_.kv_heads * shape_.head_dim; }
  std::int64_t qkv_width() const { return q_width() + 2 * kv_width(); }
  std::int64_t layer_weights() const {
    return shape_.hidden * (qkv_width() + q_width() + 3 * shape_.intermediate);
  }

  void add(std::int64_t in, std::int64_t out) {
    LinearWeight weight;
    weight.data = weights_.take(in * out * dtype_bits(dtype_) / 8);
    weight.dtype = dtype_;
    weight.out_features = out;
    if (is_quantized()) {
      weight.scales = scales_.data() + next_scale_;
      weight.group_size = group_size_;
      next_scale_ += in / group_size_ * out;
    }
    list_.push_back(weight);
  }

  void op(std::int64_t rows, std::int64_t in, int num_weights, LinearEpilogue epilogue, void* y,
          DType y_dtype) {
    LinearParams params;
    params.num_rows = rows;
    params.in_features = in;
    params.x = x_.data();
    params.x_dtype = operand_;
    params.x_stride = in;
    params.num_weights = num_weights;
    for (int i = 0; i < num_weights; ++i) {
      params.weights[i] = list_[next_++];
      params.y_stride += params.weights[i].out_features;
    }
    params.epilogue = epilogue;
    if (epilogue == LinearEpilogue::kGated) {
      params.activation = Activation::kSilu;
      params.y_stride /= 2;
    }
    params.y = y;
    params.y_dtype = y_dtype;
    backend_.linear(params);
  }

  Shape shape_;
  DType dtype_;
  Backend& backend_;
  DType operand_;
  std::int64_t weight_bytes_;
  MappedWeights weights_;
  std::int64_t group_size_;
  std::vector<float> scales_;
  std::int64_t next_scale_ = 0;
  Buffer x_, residual_, qkv_, gated_, logits_;
  std::vector<LinearWeight> list_;
  std::size_t next_ = 0;
};

void measure(ForwardPass& pass, const std::string& head, int rows, int repeats,
             const CpuBackendOptions& options, bool has_dot) {
  const int logit_rows = rows > 64 ? 1 : rows;  // of a prompt, only the last
  std::vector<double> seconds;
  CpuLimits limits;
  pass.run(rows, logit_rows);
  for (int i = 0; i < repeats; ++i) {
    if (i % 3 == 0) {
      const CpuLimits now = measure_cpu_limits(options);
      limits.dram_gb_s = std::max(limits.dram_gb_s, now.dram_gb_s);
      limits.f32_gflop_s = std::max(limits.f32_gflop_s, now.f32_gflop_s);
      limits.bf16_gflop_s = std::max(limits.bf16_gflop_s, now.bf16_gflop_s);
    }
    const auto start = std::chrono::steady_clock::now();
    pass.run(rows, logit_rows);
    seconds.push_back(seconds_since(start));
  }
  const double peak = pass.is_quantized() ? 2 * limits.bf16_gflop_s
                      : has_dot           ? limits.bf16_gflop_s
                                          : limits.f32_gflop_s;
  const double bytes_s = static_cast<double>(pass.weight_bytes()) / 1e9 / limits.dram_gb_s;
  const double flops_s = pass.flops(rows, logit_rows) / 1e9 / peak;
  const double predicted = std::max(bytes_s, flops_s);
  const double middle = median(seconds);
  const double best = *std::min_element(seconds.begin(), seconds.end());
  std::printf(
      "{%s, \"rows\": %d, \"us\": %.0f, \"best_us\": %.0f, \"gb_s\": %.1f, \"gflop_s\": %.1f, "
      "\"limit_gb_s\": %.1f, \"limit_gflop_s\": %.1f, \"predicted_us\": %.0f, \"bound\": \"%s\", "
      "\"share\": %.3f, \"best_share\": %.3f}\n",
      head.c_str(), rows, middle * 1e6, best * 1e6, pass.weight_bytes() / 1e9 / middle,
      pass.flops(rows, logit_rows) / 1e9 / middle, limits.dram_gb_s, peak, predicted * 1e6,
      bytes_s > flops_s ? "bytes" : "flops", predicted / middle, predicted / best);
  std::fflush(stdout);
}

int main(const Arguments& arguments) {
  const std::string wanted = arguments.text("shape", "S");
  Shape shape = wanted == "M" ? kShapes[1] : kShapes[0];
  if (const int layers = arguments.number("layers", 0)) shape.layers = layers;
  const DType dtype = dtype_from_name(arguments.text("dtype", "bfloat16"));
  const CpuBackendOptions options{.num_threads = arguments.number("threads", 0),
                                  .isa = arguments.text("isa", "")};
  const auto backend = make_cpu_backend(options);
  const std::vector<int> rows = arguments.numbers("rows", "1,8,32,512");
  ForwardPass pass(shape, dtype, *backend, *std::max_element(rows.begin(), rows.end()),
                   arguments.number("group-size", 64));
  const std::string head = "\"bench\": \"linear\", \"commit\": \"" + commit() +
                           "\", \"backend\": \"" + backend->description() + "\", \"shape\": \"" +
                           shape.name + "\", \"layers\": " + std::to_string(shape.layers) +
                           ", \"dtype\": \"" + std::string(dtype_name(dtype)) + "\"";
  for (const int count : rows) {
    measure(pass, head, count, arguments.number("repeats", 7), options,
            backend->activation_dtypes(dtype).operand == DType::kBFloat16);
  }
  return 0;
}

}  // namespace
}  // namespace pagedcore::bench

int main(int argc, char** argv) {
  return pagedcore::bench::main(pagedcore::bench::Arguments(argc, argv));
}
