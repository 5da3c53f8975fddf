#include "arena.h"

#include <algorithm>
#include <cstring>

#include "digest.h"

namespace cdl {
namespace {

constexpr int64_t kAhead = 24;  // entries whose cache lines are on their way

template <typename Word>
Word Load(const char* data, int64_t at) {
  Word word;
  std::memcpy(&word, data + at * static_cast<int64_t>(sizeof(Word)), sizeof word);
  return word;
}

template <typename Word>
void Fetch(const char* data, int64_t at, int write) {
#if defined(__GNUC__)
  const char* line = data + at * static_cast<int64_t>(sizeof(Word));
  write != 0 ? __builtin_prefetch(line, 1) : __builtin_prefetch(line, 0);
#endif
}

// Calls visit(run, first, count) for pieces of runs, none longer than `most`.
template <typename Visit>
void VisitPieces(const Changes& changes, int64_t most, Visit visit) {
  int64_t first = 0;
  for (int64_t run = 0; run < changes.runs; ++run) {
    const int64_t stop = first + changes.counts[run];
    for (; first < stop; first += std::min(most, stop - first)) {
      visit(run, first, std::min(most, stop - first));
    }
  }
}

// The digest's words of some entries before and after, and their positions.
struct Words {
  uint32_t positions[kDigestBlock];
  uint32_t before[kDigestBlock];
  uint32_t after[kDigestBlock];
};

template <typename Word>
constexpr int64_t kWords = sizeof(Word) == 8 ? 2 : 1;

template <typename Word>
void Gather(const Changes& changes, const Arena& arena, int64_t run, int64_t first, int64_t count,
            Words& words) {
  const int64_t start = changes.starts[run];
  const int32_t* positions = changes.positions + first;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) Fetch<Word>(arena.data, start + positions[i + kAhead], 0);
    const uint64_t before = Load<Word>(arena.data, start + positions[i]);
    const uint64_t after = Load<Word>(changes.bits, first + i);
    for (int64_t w = 0; w < kWords<Word>; ++w) {
      const int64_t at = kWords<Word> * i + w;
      words.positions[at] = static_cast<uint32_t>(kWords<Word> * positions[i] + w);
      words.before[at] = static_cast<uint32_t>(before >> (32 * w));
      words.after[at] = static_cast<uint32_t>(after >> (32 * w));
    }
  }
}

template <typename Word>
void AddChangeOf(const Changes& changes, const Arena& arena, const uint32_t* seeds,
                 uint32_t* lanes) {
  Words words;
  uint32_t gone[kLanes] = {};
  VisitPieces(changes, kDigestBlock / kWords<Word>, [&](int64_t run, int64_t first, int64_t count) {
    Gather<Word>(changes, arena, run, first, count, words);
    const uint32_t* seed = seeds + run * kLanes;
    AddMixes(words.positions, words.after, kWords<Word> * count, seed, lanes);
    AddMixes(words.positions, words.before, kWords<Word> * count, seed, gone);
  });
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] -= gone[lane];
}

template <typename Word>
void WriteOf(const Changes& changes, const Arena& arena) {
  VisitPieces(changes, changes.count, [&](int64_t run, int64_t first, int64_t count) {
    char* leaf = arena.data + changes.starts[run] * static_cast<int64_t>(sizeof(Word));
    const int32_t* positions = changes.positions + first;
    const char* bits = changes.bits + first * static_cast<int64_t>(sizeof(Word));
    for (int64_t i = 0; i < count; ++i) {
      if (i + kAhead < count) Fetch<Word>(leaf, positions[i + kAhead], 1);
      std::memcpy(leaf + positions[i] * static_cast<int64_t>(sizeof(Word)),
                  bits + i * static_cast<int64_t>(sizeof(Word)), sizeof(Word));
    }
  });
}

}  // namespace

bool Fits(const Changes& changes, const Arena& arena) {
  int64_t first = 0;
  for (int64_t run = 0; run < changes.runs; ++run) {
    const int64_t start = changes.starts[run], count = changes.counts[run];
    if (start < 0 || start > arena.size || count < 0 || count > changes.count - first) return false;
    if (count == 0) continue;
    const int32_t* positions = changes.positions + first;
    const auto [least, most] = std::minmax_element(positions, positions + count);
    if (*least < 0 || *most >= arena.size - start) return false;
    first += count;
  }
  return first == changes.count;
}

void AddChange(const Changes& changes, const Arena& arena, const uint32_t* seeds,
               uint32_t* lanes) {
  if (arena.width == 1) return AddChangeOf<uint8_t>(changes, arena, seeds, lanes);
  if (arena.width == 2) return AddChangeOf<uint16_t>(changes, arena, seeds, lanes);
  if (arena.width == 4) return AddChangeOf<uint32_t>(changes, arena, seeds, lanes);
  AddChangeOf<uint64_t>(changes, arena, seeds, lanes);
}

void Write(const Changes& changes, const Arena& arena) {
  if (arena.width == 1) return WriteOf<uint8_t>(changes, arena);
  if (arena.width == 2) return WriteOf<uint16_t>(changes, arena);
  if (arena.width == 4) return WriteOf<uint32_t>(changes, arena);
  WriteOf<uint64_t>(changes, arena);
}

}  // namespace cdl
