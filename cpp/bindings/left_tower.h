#pragma once

#include <pybind11/numpy.h>

#include <span>
#include <utility>
#include <vector>

#include "cpp/bindings/bindings.h"
#include "pagedcore/types.h"

// What bind_memory.cpp and bind_scheduler.cpp share.
namespace pagedcore::bindings {

using TokenArray = py::array_t<TokenId, py::array::c_style | py::array::forcecast>;
using PyCopies = std::vector<std::pair<BlockId, BlockId>>;  // (source, destination)

inline std::span<const TokenId> to_span(const TokenArray& tokens) {
  return {tokens.data(), static_cast<std::size_t>(tokens.size())};
}

inline std::vector<BlockId> to_list(std::span<const BlockId> blocks) {
  return {blocks.begin(), blocks.end()};
}

inline PyCopies to_pairs(std::span<const BlockCopy> copies) {
  PyCopies pairs;
  pairs.reserve(copies.size());
  for (const BlockCopy& copy : copies) pairs.emplace_back(copy.src, copy.dst);
  return pairs;
}

}  // namespace pagedcore::bindings
