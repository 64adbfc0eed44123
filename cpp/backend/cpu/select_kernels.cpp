#include <string>

#include "cpp/backend/cpu/isas.h"
#include "pagedcore/error.h"

namespace pagedcore::cpu {

const Kernels& select_kernels(std::string_view isa) {
  std::string possible;
  for (const Isa& candidate : all_isas()) {
    if (!candidate.supported) continue;
    if (isa.empty() || isa == candidate.kernels->isa) return *candidate.kernels;
    possible += (possible.empty() ? "" : ", ") + std::string(candidate.kernels->isa);
  }
  PAGEDCORE_REQUIRE(!possible.empty(),
                    "this processor runs none of the instruction sets of this build (x86-64-v3 is "
                    "the least on x86)");
  PAGEDCORE_REQUIRE(false, "isa must be one of ", possible, " on this processor, got '", isa, "'");
}

}  // namespace pagedcore::cpu
