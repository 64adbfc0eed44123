#pragma once

#include <cstdint>

namespace pagedcore {

using TokenId = std::int32_t;
using BlockId = std::int32_t;

// Ids of requests and sequences grow and are never reused by an engine.
using RequestId = std::int64_t;
using SequenceId = std::int64_t;

// One block's content is copied from `src` to `dst`, over all layers.
struct BlockCopy {
  BlockId src = -1;
  BlockId dst = -1;
  friend bool operator==(const BlockCopy&, const BlockCopy&) = default;
};

}  // namespace pagedcore
