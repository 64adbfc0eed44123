#pragma once

#include <array>
#include <span>
#include <string_view>

#include "pagedcore/ops.h"

namespace pagedcore {

// How the checkpoints of one architecture name their tensors. Names are without ".weight" and
// ".bias"; an empty name: the architecture has no such tensor.
struct TensorNames {
  std::string_view architecture = "";
  // What stands before every name but lm_head; which of them, a checkpoint tells by its embedding.
  std::array<std::string_view, 3> prefixes = {};
  WeightLayout layout = WeightLayout::kOutIn;  // of the layers' matrices

  std::string_view token_embedding = "";
  std::string_view position_embedding = "";
  std::string_view project_in = "";
  std::string_view project_out = "";
  std::string_view final_norm = "";

  std::string_view layers = "";  // "layers": layer 3's names begin with "layers.3."
  std::string_view attention_norm = "";
  std::array<std::string_view, 3> qkv = {};  // q, k and v, or one name where they are one matrix
  std::string_view q_norm = "";
  std::string_view k_norm = "";
  std::string_view attention_out = "";
  std::string_view mlp_norm = "";
  std::string_view gate = "";
  std::string_view up = "";
  std::string_view down = "";
};

// All known architectures, in alphabetical order.
std::span<const TensorNames> families();

// Throws InvalidArgument with the name and the list of those known.
const TensorNames& family(std::string_view architecture);

}  // namespace pagedcore
