#include "cpp/backend/cpu/cpu_backend.h"

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "cpp/backend/cpu/kernels/sample.h"
#include "cpp/backend/cpu/memory.h"
#include "pagedcore/error.h"

namespace pagedcore {
namespace cpu {

CpuBackend::CpuBackend(int num_threads, const Kernels& kernels)
    : kernels_(kernels), pool_(num_threads) {}

std::string CpuBackend::description() const {
  return detail::concat("cpu (", kernels_.isa, ", ", pool_.size(),
                        pool_.size() == 1 ? " thread)" : " threads)");
}

ActivationDTypes CpuBackend::activation_dtypes(DType weights) const {
  ActivationDTypes dtypes;
  if (weights == DType::kBFloat16) dtypes.operand = kernels_.bf16_operand;
  return dtypes;
}

ForwardBatch CpuBackend::stage(const ForwardBatch& host_batch) {
  attention_plan_.reset();
  return host_batch;
}

void CpuBackend::upload(void* dst, const void* host_src, std::int64_t bytes) {
  if (bytes > 0) std::memcpy(dst, host_src, bytes);
}

void CpuBackend::download(void* host_dst, const void* src, std::int64_t bytes) {
  if (bytes > 0) std::memcpy(host_dst, src, bytes);
}

std::int64_t CpuBackend::sample_workspace_bytes(std::int64_t vocab_size, std::int32_t) const {
  return pool_.size() * sample_workspace_bytes_per_thread(vocab_size);
}

void* CpuBackend::allocate_host(std::int64_t bytes) { return allocate_aligned(bytes); }
void CpuBackend::free_host(void* data) noexcept { free_aligned(data); }
void* CpuBackend::do_allocate(std::int64_t bytes) { return allocate_aligned(bytes); }
void CpuBackend::do_free(void* data) noexcept { free_aligned(data); }

void CpuBackend::do_copy_blocks(const KvCacheView& cache, std::span<const BlockCopy> copies) {
  move_blocks(cache.data, cache.data, cache.block_bytes(), copies);
}

void CpuBackend::do_swap_out(const KvCacheView& cache, void* host,
                             std::span<const BlockCopy> copies) {
  move_blocks(host, cache.data, cache.block_bytes(), copies);
}

void CpuBackend::do_swap_in(const KvCacheView& cache, const void* host,
                            std::span<const BlockCopy> copies) {
  move_blocks(cache.data, host, cache.block_bytes(), copies);
}

void CpuBackend::check_cache_dtype(DType dtype) {
  PAGEDCORE_REQUIRE(dtype == DType::kFloat32 || dtype == DType::kFloat16 ||
                        dtype == DType::kBFloat16 || dtype == DType::kInt8,
                    "the CPU's KV cache must be float32, float16, bfloat16 or int8, got ",
                    dtype_name(dtype));
}

void CpuBackend::move_blocks(void* dst, const void* src, std::int64_t block_bytes,
                             std::span<const BlockCopy> copies) {
  const auto num_copies = static_cast<std::int64_t>(copies.size());
  pool_.run([&](int thread) {
    const std::int64_t end = num_copies * (thread + 1) / pool_.size();
    for (std::int64_t i = num_copies * thread / pool_.size(); i < end; ++i) {
      std::memcpy(static_cast<std::byte*>(dst) + copies[i].dst * block_bytes,
                  static_cast<const std::byte*>(src) + copies[i].src * block_bytes, block_bytes);
    }
  });
}

std::unique_ptr<CpuBackend> make_backend(const CpuBackendOptions& options) {
  PAGEDCORE_REQUIRE(options.num_threads >= 0,
                    "num_threads must be 0 (as many as this process may use) or more, got ",
                    options.num_threads);
  std::string isa = options.isa;
  if (isa.empty()) {
    if (const char* forced = std::getenv("PAGEDCORE_ISA")) isa = forced;
  }
  const int num_threads = options.num_threads > 0 ? options.num_threads : num_usable_cpus();
  return std::make_unique<CpuBackend>(num_threads, select_kernels(isa));
}

}  // namespace cpu

std::unique_ptr<Backend> make_cpu_backend(const CpuBackendOptions& options) {
  return cpu::make_backend(options);
}

}  // namespace pagedcore
