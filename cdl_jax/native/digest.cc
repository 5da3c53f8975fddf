#include "digest.h"

#include <algorithm>
#include <cstring>

#include "scan.h"

namespace cdl {
namespace {

CDL_ALWAYS_INLINE uint32_t Mix(uint32_t position, uint32_t word, uint32_t seed) {
  uint32_t h = (position ^ seed) * 0x9e3779b1u;
  h = (h ^ (h >> 15)) ^ word;
  h *= 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  return h ^ (h >> 16);
}

CDL_ALWAYS_INLINE void AddAll(const uint32_t* positions, const uint32_t* words, int64_t n,
                              const uint32_t* seed, uint32_t* lanes) {
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += Mix(positions[i], words[i], seed[lane]);
    lanes[lane] += sum;
  }
}

#if CDL_X86
__attribute__((target("avx2"))) void AddAllAvx2(const uint32_t* positions, const uint32_t* words,
                                                int64_t n, const uint32_t* seed,
                                                uint32_t* lanes) {
  AddAll(positions, words, n, seed, lanes);
}
#endif

template <typename Word>
void Widen(const char* data, int64_t n, uint32_t* words) {
  for (int64_t i = 0; i < n; ++i) {
    Word word;
    std::memcpy(&word, data + i * static_cast<int64_t>(sizeof word), sizeof word);
    words[i] = word;
  }
}

}  // namespace

void AddMixes(const uint32_t* positions, const uint32_t* words, int64_t n, const uint32_t* seed,
              uint32_t* lanes) {
#if CDL_X86
  if (HasAvx2()) return AddAllAvx2(positions, words, n, seed, lanes);
#endif
  AddAll(positions, words, n, seed, lanes);
}

void AddEntries(const char* data, int width, int64_t begin, int64_t count, const uint32_t* seed,
                uint32_t* lanes) {
  if (width == 8) return AddEntries(data, 4, 2 * begin, 2 * count, seed, lanes);
  uint32_t positions[kDigestBlock];
  uint32_t words[kDigestBlock];
  for (int64_t done = 0; done < count; done += kDigestBlock) {
    const int64_t n = std::min(kDigestBlock, count - done);
    const char* source = data + (begin + done) * width;
    if (width == 1) Widen<uint8_t>(source, n, words);
    if (width == 2) Widen<uint16_t>(source, n, words);
    if (width == 4) Widen<uint32_t>(source, n, words);
    for (int64_t i = 0; i < n; ++i) positions[i] = static_cast<uint32_t>(begin + done + i);
    AddMixes(positions, words, n, seed, lanes);
  }
}

}  // namespace cdl
