// Streams of non-negative 32-bit integers: the numbers of cdl_jax/wire/FORMAT.md.
#pragma once

#include <cstdint>
#include <vector>

namespace cdl {

constexpr int kBlock = 64;    // numbers that share a parameter in the form of blocks
constexpr int kBlocks = 32;   // form byte; below it, one Rice parameter for all numbers
constexpr int kFixed = 32;    // form byte less the width of each number, 1 to 32
constexpr int kSpare = 8;     // bytes that a writer may touch past its end

// How a stream is written: its form, the parameter of each block, the bytes it takes.
struct Plan {
  int form = 0;
  std::vector<uint8_t> parameters;  // one a block, for kBlocks
  std::vector<uint8_t> side;        // the parameters as a stream of their own
  int64_t low = 0;                  // bytes
  int64_t unary = 0;                // bytes
  int64_t Size() const;
};

// The smallest form; of equals the first of: fixed, one parameter, blocks.
Plan MakePlan(const uint32_t* values, int64_t count, bool allow_blocks = true);

// Writes plan.Size() bytes, and up to kSpare more.
void WriteNumbers(const uint32_t* values, int64_t count, const Plan& plan, uint8_t* out);

// Reads `count` numbers and moves `at` past them. Reads nothing at or past `end`.
// Returns null, or what is wrong with the bytes.
const char* ReadNumbers(const uint8_t*& at, const uint8_t* end, int64_t count, uint32_t* values);

}  // namespace cdl
