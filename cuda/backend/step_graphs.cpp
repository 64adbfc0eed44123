#include "cuda/backend/step_graphs.h"

#include <utility>

namespace pagedcore::cuda {

bool StepGraphs::admit(const Op& op) {
  if (mode_ == Mode::kCompare) {
    same_ = same_ && cursor_ < current_->ops.size() && current_->ops[cursor_] == op;
    ++cursor_;
    return false;
  }
  if (mode_ == Mode::kRecord) current_->ops.push_back(op);
  return true;
}

void StepGraphs::record(Entry& entry, const std::function<void()>& forward, cudaStream_t stream) {
  entry.ops.clear();
  entry.exec.reset();
  current_ = &entry;
  PAGEDCORE_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  mode_ = Mode::kRecord;
  cudaGraph_t graph = nullptr;
  try {
    forward();
  } catch (...) {
    mode_ = Mode::kLaunch;
    cudaStreamEndCapture(stream, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  mode_ = Mode::kLaunch;
  PAGEDCORE_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  const cudaError_t error = cudaGraphInstantiate(entry.exec.put(), graph, 0);
  cudaGraphDestroy(graph);
  PAGEDCORE_CUDA_CHECK(error);
}

void StepGraphs::run(const Shape& shape, const std::function<void()>& forward,
                     cudaStream_t stream) {
  Entry& entry = entries_[shape];
  if (entry.exec.get() != nullptr) {
    current_ = &entry;
    cursor_ = 0;
    same_ = true;
    mode_ = Mode::kCompare;
    try {
      forward();
    } catch (...) {
      mode_ = Mode::kLaunch;
      throw;
    }
    mode_ = Mode::kLaunch;
    if (!same_ || cursor_ != entry.ops.size()) {
      entry.exec.reset();
      entry.warm = false;
    }
  }
  if (entry.exec.get() == nullptr) {
    if (!std::exchange(entry.warm, true)) {
      forward();
      return;
    }
    record(entry, forward, stream);
  }
  PAGEDCORE_CUDA_CHECK(cudaGraphLaunch(entry.exec.get(), stream));
}

}  // namespace pagedcore::cuda
