#include "floats.h"

#include <algorithm>

namespace cdl {
namespace {

uint32_t Ones(int bits) { return (uint32_t{1} << bits) - 1; }

int SpareBits(const uint32_t* bits, int64_t count, int mantissa) {
  uint32_t used = 0;
  for (int64_t i = 0; i < count; ++i) used |= bits[i];
  used &= Ones(mantissa);
  return used == 0 ? mantissa : __builtin_ctz(used);
}

uint32_t ZigZag(int64_t step) { return static_cast<uint32_t>(step < 0 ? -2 * step - 1 : 2 * step); }

int64_t UnZigZag(uint32_t number) {
  const int64_t half = number >> 1;
  return (number & 1) != 0 ? -half - 1 : half;
}

}  // namespace

Split SplitFloats(const uint32_t* bits, int64_t count, FloatKind kind) {
  Split split;
  split.spare = SpareBits(bits, count, kind.mantissa);
  split.below.resize(static_cast<size_t>(count));
  split.signed_mantissas.resize(static_cast<size_t>(count));
  uint32_t* below = split.below.data();
  uint32_t* signed_mantissas = split.signed_mantissas.data();
  const int kept = kind.mantissa - split.spare;
  int64_t last = 0;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t stop = std::min<int64_t>(count, first + kBlock);
    uint32_t largest = 0;
    for (int64_t i = first; i < stop; ++i) {
      below[i] = (bits[i] >> kind.mantissa) & Ones(kind.exponent);
      largest = std::max(largest, below[i]);
    }
    for (int64_t i = first; i < stop; ++i) {
      below[i] = largest - below[i];
      const uint32_t sign = bits[i] >> (kind.mantissa + kind.exponent);
      signed_mantissas[i] = (sign << kept) | ((bits[i] & Ones(kind.mantissa)) >> split.spare);
    }
    split.steps.push_back(ZigZag(int64_t{largest} - last));
    last = largest;
  }
  return split;
}

const char* JoinFloats(const Split& split, int64_t count, FloatKind kind, uint32_t* bits) {
  const int kept = kind.mantissa - split.spare;
  const uint32_t* below = split.below.data();
  const uint32_t* signed_mantissas = split.signed_mantissas.data();
  uint32_t excess = 0;
  int64_t largest = 0;
  bool inside = true;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t stop = std::min<int64_t>(count, first + kBlock);
    largest += UnZigZag(split.steps[static_cast<size_t>(first / kBlock)]);
    inside = inside && largest >= 0 && (largest >> kind.exponent) == 0;
    const auto top = static_cast<uint32_t>(largest);
    for (int64_t i = first; i < stop; ++i) {
      inside = inside && below[i] <= top;
      excess |= signed_mantissas[i] >> (kept + 1);
      bits[i] = ((top - below[i]) << kind.mantissa) | ((signed_mantissas[i] & Ones(kept)) << split.spare);
      bits[i] |= (signed_mantissas[i] >> kept) << (kind.mantissa + kind.exponent);
    }
  }
  return inside && excess == 0 ? nullptr : "an exponent or a mantissa is outside its range";
}

}  // namespace cdl
