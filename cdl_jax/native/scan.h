// The one pass over memory: add, write back, compact what may be selected.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#define CDL_X86 1
#include <immintrin.h>
#define CDL_ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define CDL_X86 0
#define CDL_ALWAYS_INLINE inline
#endif

namespace cdl {

inline constexpr uint32_t kMagnitude = 0x7fffffffu;  // float bits without the sign
inline constexpr int32_t kTakeAll = -1;              // limits: |acc| as bits must exceed them
inline constexpr int32_t kTakeNone = 0x7fffffff;

// For each of n entries: acc = update + old. An entry whose magnitude bits exceed `limit`
// is appended (position + i, bits of acc) and leaves +0.0 in `out`; any other leaves acc.
// `out` may be `old`. Returns the number appended; both lists need room for n.
using Scan = int64_t (*)(const float* update, const float* old, float* out, int64_t n,
                         int32_t limit, uint32_t position, uint32_t* positions,
                         uint32_t* values);

Scan ActiveScan();

// Chooses "scalar", "avx2" or "avx512"; false where this machine lacks it. For tests.
bool UsePath(const char* name);

// Whether the kernels may use AVX2: the machine has it, and "scalar" was not chosen.
bool HasAvx2();

// True when no entry is infinite or NaN.
bool AllFinite(const uint32_t* bits, int64_t n);

// XLA's CPU backend computes with subnormals flushed to zero; other threads may not.
class FlushSubnormals {
 public:
#if CDL_X86
  FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
  ~FlushSubnormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FlushSubnormals() {}
#endif
};

}  // namespace cdl
