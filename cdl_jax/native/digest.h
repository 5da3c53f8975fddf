// The digest's mix, summed over many words (core/digest.py is its specification).
#pragma once

#include <cstdint>

namespace cdl {

inline constexpr int kLanes = 4;
inline constexpr int64_t kDigestBlock = 512;  // words at a time: they stay in the first cache

// Adds the mixes of n words at these positions to the lanes; a seed for each lane.
void AddMixes(const uint32_t* positions, const uint32_t* words, int64_t n, const uint32_t* seed,
              uint32_t* lanes);

// The same for all of `count` entries of a tensor of 1, 2, 4 or 8 bytes each, from entry `begin`
// on; `data` is where the tensor starts.
void AddEntries(const char* data, int width, int64_t begin, int64_t count, const uint32_t* seed,
                uint32_t* lanes);

}  // namespace cdl
