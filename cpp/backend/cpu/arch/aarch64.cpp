#include "cpp/backend/cpu/isas.h"

namespace pagedcore::cpu {

namespace neon {
extern const Kernels kKernels;
}

std::span<const Isa> all_isas() {
  static const Isa isas[] = {{&neon::kKernels, true}};
  return isas;
}

bool streams_stop_at_pages() { return false; }

}  // namespace pagedcore::cpu
