#include "cpp/backend/cpu/kernels/any.h"
#include "cpp/backend/cpu/kernels/kernels.h"

namespace pagedcore::cpu::PAGEDCORE_ISA {

void embed(const EmbedParams& p, Context& context) {
  for_each_row_range(context.pool, p.num_tokens, p.width,
                     [&](std::int64_t begin, std::int64_t end) {
                       for (std::int64_t token = begin; token < end; ++token) {
                         const std::int64_t source = (p.ids[token] + p.id_offset) * p.width;
                         const std::int64_t target = token * p.width;
                         for_each_vector(p.width, [&](std::int64_t i, int n) {
                           Vec value = load_any(p.table_dtype, p.table, source + i, n);
                           if (p.accumulate)
                             value = load_any(p.y_dtype, p.y, target + i, n) + value;
                           store_any(p.y_dtype, p.y, target + i, value, n);
                         });
                       }
                     });
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
