#include "cpp/backend/cpu/kernels/any.h"
#include "cpp/backend/cpu/kernels/kernels.h"
#include "cpp/backend/cpu/kernels/math.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

void gated_activation(const GatedActivationParams& p, Context& context) {
  const auto rows = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t gate_at = row * 2 * p.width;
      for_each_vector(p.width, [&](std::int64_t i, int n) {
        const Vec gate = load_any(p.dtype, p.gate_up, gate_at + i, n);
        const Vec up = load_any(p.dtype, p.gate_up, gate_at + p.width + i, n);
        store_any(p.y_dtype, p.y, row * p.width + i, activate(p.activation, gate) * up, n);
      });
    }
  };
  for_each_row_range(context.pool, p.num_rows, 4 * p.width, rows);
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
