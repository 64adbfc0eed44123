#pragma once

#include <array>
#include <cstdint>

namespace pagedcore {

// Philox4x32-10: a random function of (key, counter), without state. Plain constexpr code, so that
// host and device draw the same numbers.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
using PhiloxWords = std::array<std::uint32_t, 4>;

constexpr PhiloxWords philox4x32(PhiloxWords counter, std::uint64_t key) {
  std::uint32_t key_low = static_cast<std::uint32_t>(key);
  std::uint32_t key_high = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {
        static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key_low, static_cast<std::uint32_t>(b),
        static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key_high, static_cast<std::uint32_t>(a)};
    key_low += 0x9E3779B9;
    key_high += 0xBB67AE85;
  }
  return counter;
}

// The `draw`-th uniform number in [0, 1) of a sequence's `position`: 53 random bits.
constexpr double philox_uniform(std::int64_t seed, std::int64_t position, std::uint32_t draw) {
  const std::uint64_t index = static_cast<std::uint64_t>(position);
  const PhiloxWords words = philox4x32(
      {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), draw, 0},
      static_cast<std::uint64_t>(seed));
  const std::uint64_t bits = (std::uint64_t{words[0]} << 32 | words[1]) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

// The seed of stream `stream` (a sibling of a group) of `seed`: stream 0 keeps it.
constexpr std::int64_t philox_stream(std::int64_t seed, std::int64_t stream) {
  if (stream == 0) return seed;
  const std::uint64_t index = static_cast<std::uint64_t>(stream);
  const PhiloxWords words =
      philox4x32({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), 0, 1},
                 static_cast<std::uint64_t>(seed));
  return static_cast<std::int64_t>(std::uint64_t{words[0]} << 32 | words[1]);
}

// Random123's known answer for an all-zero counter and key.
static_assert(philox4x32({0, 0, 0, 0}, 0) ==
              PhiloxWords{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});

}  // namespace pagedcore
