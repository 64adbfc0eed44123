#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "pagedcore/dtype.h"
#include "pagedcore/sampling_params.h"
#include "pagedcore/types.h"

namespace pagedcore {

// What a saved sequence consists of. The KV is that of the first num_computed tokens, whatever the
// block size was: [layer][K, V][kv head][token][head_dim].
struct Snapshot {
  std::uint64_t model = 0;  // fingerprint of configuration and weights
  DType kv_dtype = DType::kFloat32;
  SamplingParams params;
  std::int64_t seed = 0;
  std::int32_t num_prompt_tokens = 0;
  std::int32_t num_computed = 0;
  bool is_finished = false;
  double cumulative_logprob = 0.0;
  std::string cache_salt;
  std::vector<TokenId> tokens;  // prompt, then output
  std::vector<std::byte> kv;
};

// A file: magic, version, length, the fields above, checksum; little-endian throughout.
std::vector<std::byte> encode(const Snapshot& snapshot);
// Throws InvalidArgument where the bytes are not a whole and unchanged file of this version.
Snapshot decode_snapshot(std::span<const std::byte> bytes);

// FNV-1a over 8 bytes at a time.
std::uint64_t hash_bytes(std::span<const std::byte> bytes,
                         std::uint64_t hash = 0xcbf29ce484222325u);

}  // namespace pagedcore
