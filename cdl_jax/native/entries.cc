#include "entries.h"

#include <algorithm>
#include <cstring>

#include "digest.h"

namespace cdl {
namespace {

constexpr int64_t kAhead = 24;  // entries whose cache lines are on their way

void Fetch(const char* line) {
#if defined(__GNUC__)
  __builtin_prefetch(line, 1);
#endif
}

// Calls visit(leaf, first, count) for the entries of each leaf that has some, in order.
template <typename Visit>
void VisitRuns(const Section& section, Visit visit) {
  const int32_t* last = section.positions + section.count;
  const int32_t* at = std::lower_bound(section.positions, last, 0);
  for (const Leaf& leaf : section.leaves) {
    if (at == last) return;
    const int64_t end = leaf.begin + leaf.size;
    if (*at >= end) continue;
    const int32_t* stop = std::lower_bound(
        at, last, end, [](int32_t position, int64_t bound) { return position < bound; });
    visit(leaf, at - section.positions, stop - at);
    at = stop;
  }
}

// Calls copy(entry of the leaf, bits) for each entry of a run.
template <typename Copy>
void CopyRun(const Section& section, const Leaf& leaf, int64_t first, int64_t count, Copy copy) {
  const int32_t* positions = section.positions + first;
  char* bits = section.bits + first * section.width;
  char* base = leaf.data - leaf.begin * leaf.width;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) Fetch(base + int64_t{positions[i + kAhead]} * leaf.width);
    copy(base + int64_t{positions[i]} * leaf.width, bits + i * section.width);
  }
}

// A width known to the compiler becomes a move.
template <int kWidth>
void CopyWidth(const Section& section, const Leaf& leaf, int64_t first, int64_t count,
               bool write) {
  // The first bytes of a wider word are its low ones: the kernels are built for little endian.
  CopyRun(section, leaf, first, count, [&](char* entry, char* bits) {
    std::memcpy(write ? entry : bits, write ? bits : entry, kWidth);
  });
}

void Copy(const Section& section, bool write) {
  if (!write) std::memset(section.bits, 0, static_cast<size_t>(section.count * section.width));
  VisitRuns(section, [&](const Leaf& leaf, int64_t first, int64_t count) {
    if (leaf.width == 1) return CopyWidth<1>(section, leaf, first, count, write);
    if (leaf.width == 2) return CopyWidth<2>(section, leaf, first, count, write);
    if (leaf.width == 4) return CopyWidth<4>(section, leaf, first, count, write);
    return CopyWidth<8>(section, leaf, first, count, write);
  });
}

// The digest's words of some entries before and after, and their positions.
struct Words {
  uint32_t places[kDigestBlock];
  uint32_t before[kDigestBlock];
  uint32_t after[kDigestBlock];
  int64_t count = 0;

  void Add(uint32_t place, uint32_t old_word, uint32_t new_word) {
    places[count] = place;
    before[count] = old_word;
    after[count++] = new_word;
  }
};

uint64_t Load(const char* source, int width) {
  uint64_t word = 0;
  if (width == 1) std::memcpy(&word, source, 1);
  if (width == 2) std::memcpy(&word, source, 2);
  if (width == 4) std::memcpy(&word, source, 4);
  if (width == 8) std::memcpy(&word, source, 8);
  return word;
}

void Gather(const Section& section, const Leaf& leaf, int64_t first, int64_t count,
            Words& words) {
  words.count = 0;
  CopyRun(section, leaf, first, count, [&](char* entry, char* bits) {
    const uint64_t before = Load(entry, leaf.width);
    const uint64_t after = Load(bits, section.width);
    const auto place = static_cast<uint32_t>((entry - leaf.data) / leaf.width);
    const auto low = [](uint64_t word) { return static_cast<uint32_t>(word); };
    if (section.width < 8) return words.Add(place, low(before), low(after));
    words.Add(2 * place, low(before), low(after));
    words.Add(2 * place + 1, low(before >> 32), low(after >> 32));
  });
}

}  // namespace

void ReadEntries(const Section& section) { Copy(section, /*write=*/false); }
void WriteEntries(const Section& section) { Copy(section, /*write=*/true); }

void AddChange(const Section& section, const uint32_t* seeds, uint32_t* lanes) {
  uint32_t old_lanes[kLanes] = {};
  Words words;
  VisitRuns(section, [&](const Leaf& leaf, int64_t first, int64_t count) {
    const uint32_t* seed = seeds + kLanes * (&leaf - section.leaves.data());
    for (int64_t done = 0; done < count; done += kDigestBlock / 2) {
      Gather(section, leaf, first + done, std::min(kDigestBlock / 2, count - done), words);
      AddMixes(words.places, words.after, words.count, seed, lanes);
      AddMixes(words.places, words.before, words.count, seed, old_lanes);
    }
  });
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] -= old_lanes[lane];
}

}  // namespace cdl
