#include "pagedcore/tensor.h"

namespace pagedcore {

std::int64_t TensorView::num_elements() const {
  std::int64_t count = 1;
  for (int i = 0; i < rank; ++i) count *= shape[i];
  return count;
}

std::int64_t TensorView::num_bytes() const { return num_elements() * dtype_bits(dtype) / 8; }

std::string to_string(const TensorView& view) {
  std::string text(dtype_name(view.dtype));
  text += '[';
  for (int i = 0; i < view.rank; ++i) text += (i ? ", " : "") + std::to_string(view.shape[i]);
  return text + ']';
}

}  // namespace pagedcore
