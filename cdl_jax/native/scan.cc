#include "scan.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <initializer_list>

namespace cdl {
namespace {

float AsFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint32_t AsBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

uint32_t Flush(uint32_t bits) {
  return (bits & 0x7f800000u) != 0 ? bits : bits & 0x80000000u;
}

// Flushes by integer arithmetic: right on machines without a control register we know.
int64_t ScanScalar(const float* update, const float* old, float* out, int64_t n,
                   int32_t limit, uint32_t position, uint32_t* positions,
                   uint32_t* values) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float a = AsFloat(Flush(AsBits(update[i])));
    const float b = AsFloat(Flush(AsBits(old[i])));
    const uint32_t acc = Flush(AsBits(a + b));
    const bool hit = static_cast<int32_t>(acc & kMagnitude) > limit;
    positions[count] = position + static_cast<uint32_t>(i);
    values[count] = acc;
    count += hit;
    out[i] = AsFloat(hit ? 0 : acc);
  }
  return count;
}

// NaN and infinity are the largest magnitudes; compilers make a vector loop of a maximum.
CDL_ALWAYS_INLINE bool Finite(const uint32_t* bits, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    largest = std::max(largest, static_cast<int32_t>(bits[i] & kMagnitude));
  }
  return largest < 0x7f800000;
}

#if CDL_X86

__attribute__((target("avx2"))) bool FiniteAvx2(const uint32_t* bits, int64_t n) {
  return Finite(bits, n);
}

__attribute__((target("avx2"))) int64_t ScanAvx2(
    const float* update, const float* old, float* out, int64_t n, int32_t limit,
    uint32_t position, uint32_t* positions, uint32_t* values) {
  const __m256i magnitude = _mm256_set1_epi32(kMagnitude);
  const __m256i bound = _mm256_set1_epi32(limit);
  int64_t count = 0;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 acc = _mm256_add_ps(_mm256_loadu_ps(update + i), _mm256_loadu_ps(old + i));
    const __m256 hit = _mm256_castsi256_ps(
        _mm256_cmpgt_epi32(_mm256_and_si256(_mm256_castps_si256(acc), magnitude), bound));
    _mm256_storeu_ps(out + i, _mm256_andnot_ps(hit, acc));
    unsigned mask = static_cast<unsigned>(_mm256_movemask_ps(hit));
    if (mask == 0) continue;
    alignas(32) uint32_t bits[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(bits), _mm256_castps_si256(acc));
    for (; mask != 0; mask &= mask - 1) {
      const int lane = __builtin_ctz(mask);
      positions[count] = position + static_cast<uint32_t>(i + lane);
      values[count++] = bits[lane];
    }
  }
  return count + ScanScalar(update + i, old + i, out + i, n - i, limit,
                            position + static_cast<uint32_t>(i), positions + count,
                            values + count);
}

// Compresses in registers: compressing stores to memory are microcoded on some machines.
__attribute__((target("avx512f"))) int64_t ScanAvx512(
    const float* update, const float* old, float* out, int64_t n, int32_t limit,
    uint32_t position, uint32_t* positions, uint32_t* values) {
  const __m512i magnitude = _mm512_set1_epi32(kMagnitude);
  const __m512i bound = _mm512_set1_epi32(limit);
  const __m512i lanes =
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 live = static_cast<__mmask16>(n - i < 16 ? (1u << (n - i)) - 1 : 0xffffu);
    const __m512 acc = _mm512_add_ps(_mm512_maskz_loadu_ps(live, update + i),
                                     _mm512_maskz_loadu_ps(live, old + i));
    const __m512i bits = _mm512_castps_si512(acc);
    const __mmask16 hit =
        _mm512_mask_cmpgt_epi32_mask(live, _mm512_and_si512(bits, magnitude), bound);
    _mm512_mask_storeu_ps(out + i, live,
                          _mm512_maskz_mov_ps(static_cast<__mmask16>(~hit), acc));
    if (hit == 0) continue;
    const int found = __builtin_popcount(hit);
    const __mmask16 front = static_cast<__mmask16>((1u << found) - 1);
    const __m512i index = _mm512_add_epi32(
        lanes, _mm512_set1_epi32(static_cast<int>(position + static_cast<uint32_t>(i))));
    _mm512_mask_storeu_epi32(positions + count, front, _mm512_maskz_compress_epi32(hit, index));
    _mm512_mask_storeu_epi32(values + count, front, _mm512_maskz_compress_epi32(hit, bits));
    count += found;
  }
  return count;
}

#endif

Scan PathNamed(const char* name) {
  if (std::strcmp(name, "scalar") == 0) return ScanScalar;
#if CDL_X86
  __builtin_cpu_init();
  if (std::strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2")) return ScanAvx2;
  if (std::strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512f")) return ScanAvx512;
#endif
  return nullptr;
}

Scan FastestPath() {
  for (const char* name : {"avx512", "avx2"}) {
    if (Scan path = PathNamed(name)) return path;
  }
  return ScanScalar;
}

std::atomic<Scan> active{FastestPath()};

}  // namespace

Scan ActiveScan() { return active.load(std::memory_order_relaxed); }

bool UsePath(const char* name) {
  const Scan path = PathNamed(name);
  if (path != nullptr) active.store(path);
  return path != nullptr;
}

bool HasAvx2() { return ActiveScan() != ScanScalar; }

bool AllFinite(const uint32_t* bits, int64_t n) {
#if CDL_X86
  if (HasAvx2()) return FiniteAvx2(bits, n);
#endif
  return Finite(bits, n);
}

}  // namespace cdl
