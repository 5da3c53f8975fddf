// Reads, hashes and writes single entries of many arrays, given by ascending positions.
#pragma once

#include <cstdint>
#include <vector>

namespace cdl {

// One array inside a section; `begin` is its first position there.
struct Leaf {
  char* data;
  int64_t begin;
  int64_t size;
  int width;  // bytes an entry: 1, 2, 4 or 8
};

// Positions count over the concatenation of the leaves. Those past its end are padding: they
// read as zero and write nothing. `bits` holds `width` bytes an entry, at least as many as any
// leaf's: narrower entries are extended with zeros.
struct Section {
  std::vector<Leaf> leaves;
  const int32_t* positions;
  int64_t count;
  char* bits;
  int width;
};

void ReadEntries(const Section& section);
void WriteEntries(const Section& section);

// Adds to four lanes what writing the section would add to the digest; `seeds` has four a leaf.
void AddChange(const Section& section, const uint32_t* seeds, uint32_t* lanes);

}  // namespace cdl
