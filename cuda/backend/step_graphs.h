#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <variant>
#include <vector>

#include "cuda/backend/resources.h"
#include "pagedcore/ops.h"

namespace pagedcore::cuda {

// Records the ops of decode steps as CUDA graphs, one a shape, and replays them. A
// replay first calls the step's function with nothing launched, and confirms that it asks for the
// same ops with the same parameters as when it was recorded: another model, cache or workspace can
// never replay this one's.
class StepGraphs {
 public:
  using Op = std::variant<EmbedParams, NormParams, LinearParams, RopeAndCacheParams,
                          PagedAttentionParams, GatedActivationParams>;
  enum class Mode { kLaunch, kRecord, kCompare };

  // What a launch may depend on beside its op.
  struct Shape {
    std::int32_t num_rows = 0;   // padded
    std::int64_t max_items = 0;  // of decode attention
    auto operator<=>(const Shape&) const = default;
  };

  // Runs `forward` for a shape: the first time as it is, the second time recording, then by replay.
  void run(const Shape& shape, const std::function<void()>& forward, cudaStream_t stream);

  // To be called with each op; tells whether the op is to be launched.
  bool admit(const Op& op);

 private:
  struct Entry {
    bool warm = false;  // ran once, so that nothing is left to allocate or to choose
    GraphExec exec;
    std::vector<Op> ops;
  };
  void record(Entry& entry, const std::function<void()>& forward, cudaStream_t stream);

  std::map<Shape, Entry> entries_;
  Mode mode_ = Mode::kLaunch;
  Entry* current_ = nullptr;
  std::size_t cursor_ = 0;
  bool same_ = true;
};

}  // namespace pagedcore::cuda
