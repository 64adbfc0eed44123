#include "cpp/model/device_weights.h"

#include <memory>
#include <string>

namespace pagedcore {
namespace {

constexpr std::int64_t kWeightAlignment = 256;

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + kWeightAlignment - 1) / kWeightAlignment * kWeightAlignment;
}

}  // namespace

std::int64_t uploaded_bytes(const ModelWeights& model, const Weights& weights) {
  std::int64_t bytes = 0;
  for (const std::string& name : model.used) bytes += aligned(weights.tensors.at(name).num_bytes());
  return bytes;
}

Weights upload_weights(const ModelWeights& model, const Weights& weights, Backend& backend) {
  const auto buffer = std::make_shared<Buffer>(backend, uploaded_bytes(model, weights));
  Weights result;
  result.keep_alive = buffer;
  char* data = buffer->as<char>();
  for (const std::string& name : model.used) {
    TensorView view = weights.tensors.at(name);
    backend.upload(data, view.data, view.num_bytes());
    view.data = data;
    data += aligned(view.num_bytes());
    result.tensors.emplace(name, view);
  }
  return result;
}

}  // namespace pagedcore
