#include "entries.h"

#include <cstring>

namespace cdl {
namespace {

constexpr int64_t kAhead = 24;  // entries whose cache lines are on their way

void Fetch(const Leaf& leaf, int64_t position) {
  const int64_t local = position - leaf.begin;
  if (local < 0 || local >= leaf.size) return;
#if defined(__GNUC__)
  __builtin_prefetch(leaf.data + local * leaf.width, 1);
#endif
}

// Calls visit(entry, leaf's entry) in order; entry is -1 past the last leaf's end.
template <typename Visit>
void VisitEntries(const Section& section, Visit visit) {
  const Leaf* leaf = section.leaves.data();
  const Leaf* last = leaf + section.leaves.size();
  for (int64_t i = 0; i < section.count; ++i) {
    const int64_t position = section.positions[i];
    while (leaf != last && position >= leaf->begin + leaf->size) ++leaf;
    if (leaf == last || position < leaf->begin) {
      visit(i, nullptr, 0);
      continue;
    }
    if (i + kAhead < section.count) Fetch(*leaf, section.positions[i + kAhead]);
    visit(i, leaf->data + (position - leaf->begin) * leaf->width, leaf->width);
  }
}

// Whole sections of one width copy words, which the compiler turns into moves.
template <typename Word>
void CopyWords(const Section& section, bool write) {
  auto* bits = reinterpret_cast<Word*>(section.bits);
  VisitEntries(section, [&](int64_t i, char* entry, int) {
    if (write) {
      if (entry != nullptr) std::memcpy(entry, bits + i, sizeof(Word));
    } else {
      bits[i] = 0;
      if (entry != nullptr) std::memcpy(bits + i, entry, sizeof(Word));
    }
  });
}

// The first bytes of a wider word are its low ones: the kernels are built for little endian.
void CopyMixed(const Section& section, bool write) {
  VisitEntries(section, [&](int64_t i, char* entry, int width) {
    char* bits = section.bits + i * section.width;
    if (!write) std::memset(bits, 0, static_cast<size_t>(section.width));
    if (entry == nullptr) return;
    std::memcpy(write ? entry : bits, write ? bits : entry, static_cast<size_t>(width));
  });
}

void Copy(const Section& section, bool write) {
  bool same = true;
  for (const Leaf& leaf : section.leaves) same = same && leaf.width == section.width;
  if (!same) return CopyMixed(section, write);
  if (section.width == 1) return CopyWords<uint8_t>(section, write);
  if (section.width == 2) return CopyWords<uint16_t>(section, write);
  if (section.width == 4) return CopyWords<uint32_t>(section, write);
  return CopyWords<uint64_t>(section, write);
}

}  // namespace

void ReadEntries(const Section& section) { Copy(section, /*write=*/false); }
void WriteEntries(const Section& section) { Copy(section, /*write=*/true); }

}  // namespace cdl
