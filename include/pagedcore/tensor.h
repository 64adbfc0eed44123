#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "pagedcore/dtype.h"
#include "pagedcore/export.h"

namespace pagedcore {

// A borrowed, dense, row-major tensor of at most four dimensions. Copying it copies no data.
struct PAGEDCORE_API TensorView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rank = 0;
  std::array<std::int64_t, 4> shape = {0, 0, 0, 0};

  std::int64_t num_elements() const;
  std::int64_t num_bytes() const;
};

// "bfloat16[576, 1536]"
PAGEDCORE_API std::string to_string(const TensorView& view);

// A checkpoint's tensors by name, used where they lie. `keep_alive` holds what they lie in
// (a mapped file, numpy arrays) for as long as any copy of this object lives.
//
// A quantised matrix "m" is kInt8 or kInt4 in the form that LinearWeight describes, with the
// "m.scales" described there beside it; "m.zero_points" and "m.x_order" (as in LinearParams) may be
// missing.
struct Weights {
  std::map<std::string, TensorView, std::less<>> tensors;
  std::shared_ptr<const void> keep_alive;
};

}  // namespace pagedcore
