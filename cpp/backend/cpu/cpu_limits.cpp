#include "pagedcore/cpu_limits.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <vector>

#include "cpp/backend/cpu/cpu_backend.h"
#include "cpp/backend/cpu/memory.h"

namespace pagedcore {
namespace {

constexpr std::int64_t kDramBytes = std::int64_t{512} << 20;
constexpr std::int64_t kL2Bytes = std::int64_t{256} << 10;  // a thread
constexpr std::int64_t kL2Passes = 400;
constexpr std::int64_t kIterations = 1 << 20;
constexpr int kNumPasses = 4;

// The best rate of several passes: work(thread) gives the amount that it did.
template <typename F>
double best_rate(ThreadPool& pool, F&& work) {
  std::vector<double> done(pool.size());
  double best = 0.0;
  for (int pass = 0; pass < kNumPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](int thread) { done[thread] = work(thread); });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    double total = 0.0;
    for (const double amount : done) total += amount;
    best = std::max(best, total / elapsed.count());
  }
  return best / 1e9;
}

}  // namespace

CpuLimits measure_cpu_limits(const CpuBackendOptions& options) {
  const std::unique_ptr<cpu::CpuBackend> backend = cpu::make_backend(options);
  const cpu::Probes& probes = backend->kernels().probes;
  ThreadPool& pool = backend->pool();
  const Buffer memory(*backend, kDramBytes);
  const std::int64_t share = kDramBytes / pool.size() / 4096 * 4096;
  const auto part = [&](int thread) { return memory.as<char>() + thread * share; };
  struct alignas(64) Sink {
    float values[16] = {};
  };
  std::vector<Sink> sinks(pool.size());

  pool.run([&](int thread) { std::memset(part(thread), 0, share); });
  CpuLimits limits;
  limits.dram_gb_s = best_rate(pool, [&](int thread) {
    sinks[thread].values[0] += probes.read(part(thread), share);
    return static_cast<double>(share);
  });
  limits.l2_gb_s = best_rate(pool, [&](int thread) {
    for (int i = 0; i < kL2Passes; ++i) {
      sinks[thread].values[0] += probes.read(part(thread), kL2Bytes);
    }
    return static_cast<double>(kL2Bytes * kL2Passes);
  });
  limits.f32_gflop_s = best_rate(
      pool, [&](int thread) { return probes.multiply_add_f32(kIterations, sinks[thread].values); });
  limits.bf16_gflop_s = best_rate(pool, [&](int thread) {
    return probes.multiply_add_bf16(kIterations, sinks[thread].values);
  });
  return limits;
}

}  // namespace pagedcore
