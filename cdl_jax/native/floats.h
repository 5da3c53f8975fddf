// Floating-point values in three streams of numbers: form 1 of cdl_jax/wire/values.py.
#pragma once

#include <cstdint>
#include <vector>

#include "numbers.h"

namespace cdl {

// Bits of a kind of float, beside the sign.
struct FloatKind {
  int mantissa;
  int exponent;
};

// What the streams hold: steps between the blocks' largest exponents, how far each exponent is
// below its block's, signs with mantissas less their `spare` low bits.
struct Split {
  int spare = 0;
  std::vector<uint32_t> steps;   // one a block
  std::vector<uint32_t> below;   // one a value
  std::vector<uint32_t> signed_mantissas;
};

Split SplitFloats(const uint32_t* bits, int64_t count, FloatKind kind);

// Inverse; writes `count` bits. Null, or what is wrong with the numbers.
const char* JoinFloats(const Split& split, int64_t count, FloatKind kind, uint32_t* bits);

}  // namespace cdl
