// Changes of single entries of one flat array: the digest they lead to, and the write itself.
#pragma once

#include <cstdint>

namespace cdl {

// Entries in runs, one a leaf. A run's positions count from its start in the arena.
struct Changes {
  const int64_t* starts;     // [runs]
  const int32_t* counts;     // [runs]
  int64_t runs;
  const int32_t* positions;  // [count]
  const char* bits;          // [count] words of the arena's width
  int64_t count;
};

// An array of `size` words of 1, 2, 4 or 8 bytes.
struct Arena {
  char* data;
  int64_t size;
  int width;
};

// Whether every entry lies in the arena and the counts add up.
bool Fits(const Changes& changes, const Arena& arena);

// Adds to `lanes` what the changes add to the digest (cdl_jax/core/digest.py); seeds: [runs, 4].
void AddChange(const Changes& changes, const Arena& arena, const uint32_t* seeds, uint32_t* lanes);

void Write(const Changes& changes, const Arena& arena);

}  // namespace cdl
