#include "cpp/backend/cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "pagedcore/error.h"

namespace pagedcore::cpu {
namespace {

constexpr std::int64_t kCacheLine = 64;
constexpr std::int64_t kHugePage = std::int64_t{2} << 20;
constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, which older C libraries do not name

}  // namespace

void* allocate_aligned(std::int64_t bytes) {
  const std::int64_t alignment = bytes >= kHugePage ? kHugePage : kCacheLine;
  const std::int64_t rounded =
      (std::max<std::int64_t>(bytes, 1) + kCacheLine - 1) / kCacheLine * kCacheLine;
  void* data = nullptr;
  if (posix_memalign(&data, alignment, rounded) != 0) {
    throw OutOfMemory(detail::concat("could not allocate ", bytes, " bytes of host memory"));
  }
  if (bytes >= kHugePage) madvise(data, rounded, MADV_HUGEPAGE);
  return data;
}

void free_aligned(void* data) noexcept { std::free(data); }

void fault_in(const void* data, std::int64_t bytes) noexcept {
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t inside = begin % static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  madvise(reinterpret_cast<void*>(begin - inside), bytes + inside, kPopulateRead);
}

}  // namespace pagedcore::cpu
