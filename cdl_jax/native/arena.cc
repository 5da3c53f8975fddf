#include "arena.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define CDL_VECTOR_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CDL_VECTOR_CLONES
#endif

namespace cdl {
namespace {

constexpr int64_t kAhead = 24;   // entries whose cache lines are on their way
constexpr int64_t kChunk = 512;  // words at a time: their arrays stay in the first cache

// Words of a block: before and after, and the start of each one's mix for a lane.
struct Block {
  uint32_t positions[kChunk];
  uint32_t before[kChunk];
  uint32_t after[kChunk];
};

inline uint32_t Mix(uint32_t start, uint32_t word) {
  uint32_t h = (start ^ word) * 0x85EBCA6Bu;
  h = (h ^ (h >> 13)) * 0xC2B2AE35u;
  return h ^ (h >> 16);
}

CDL_VECTOR_CLONES uint32_t LaneSum(const Block& block, int64_t count, uint32_t seed) {
  uint32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t start = (block.positions[i] ^ seed) * 0x9E3779B1u;
    start ^= start >> 15;
    sum += Mix(start, block.after[i]) - Mix(start, block.before[i]);
  }
  return sum;
}

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

// Calls visit(first, count, start) for pieces of runs, none longer than `most`.
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

template <typename Word>
void Gather(const Changes& changes, const Arena& arena, int64_t run, int64_t first, int64_t count,
            Block& block) {
  constexpr int64_t kWords = std::max<int64_t>(1, sizeof(Word) / 4);
  const int64_t start = changes.starts[run];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t entry = first + i;
    if (i + kAhead < count) {
      Fetch<Word>(arena.data, start + changes.positions[entry + kAhead], 0);
    }
    const auto position = static_cast<uint32_t>(changes.positions[entry]);
    const uint64_t before = Load<Word>(arena.data, start + changes.positions[entry]);
    const uint64_t after = Load<Word>(changes.bits, entry);
    for (int64_t w = 0; w < kWords; ++w) {
      block.positions[kWords * i + w] =
          static_cast<uint32_t>(kWords) * position + static_cast<uint32_t>(w);
      block.before[kWords * i + w] = static_cast<uint32_t>(before >> (32 * w));
      block.after[kWords * i + w] = static_cast<uint32_t>(after >> (32 * w));
    }
  }
}

template <typename Word>
void AddChangeOf(const Changes& changes, const Arena& arena, const uint32_t* seeds,
                 uint32_t* lanes) {
  constexpr int64_t kWords = std::max<int64_t>(1, sizeof(Word) / 4);
  Block block;
  VisitPieces(changes, kChunk / kWords, [&](int64_t run, int64_t first, int64_t count) {
    Gather<Word>(changes, arena, run, first, count, block);
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += LaneSum(block, kWords * count, seeds[run * kLanes + lane]);
    }
  });
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
