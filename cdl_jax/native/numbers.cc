#include "numbers.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian machines; the NumPy form serves the others"
#endif

namespace cdl {
namespace {

template <int B>
void Pack(const uint32_t* values, uint8_t* out) {
  constexpr uint64_t kMask = (uint64_t{1} << B) - 1;
  uint64_t word = 0;
  int fill = 0;
#pragma GCC unroll 64
  for (int i = 0; i < kBlock; ++i) {
    const uint64_t low = values[i] & kMask;
    word |= low << fill;
    fill += B;
    if (fill >= 64) {
      std::memcpy(out, &word, 8);
      out += 8;
      fill -= 64;
      word = fill > 0 ? low >> (B - fill) : 0;
    }
  }
}

template <int B>
void Unpack(const uint8_t* in, uint32_t* values) {
  constexpr uint64_t kMask = (uint64_t{1} << B) - 1;
  uint64_t word = 0;
  int left = 0;
#pragma GCC unroll 64
  for (int i = 0; i < kBlock; ++i) {
    uint64_t low = word;
    if (left < B) {
      uint64_t next;
      std::memcpy(&next, in, 8);
      in += 8;
      low |= next << left;
      word = next >> (B - left);
      left += 64 - B;
    } else {
      word >>= B;
      left -= B;
    }
    values[i] = static_cast<uint32_t>(low & kMask);
  }
}

using PackBlock = void (*)(const uint32_t*, uint8_t*);
using UnpackBlock = void (*)(const uint8_t*, uint32_t*);

template <size_t... B>
constexpr std::array<PackBlock, sizeof...(B)> Packs(std::index_sequence<B...>) {
  return {Pack<static_cast<int>(B)>...};
}

template <size_t... B>
constexpr std::array<UnpackBlock, sizeof...(B)> Unpacks(std::index_sequence<B...>) {
  return {Unpack<static_cast<int>(B)>...};
}

constexpr auto kPack = Packs(std::make_index_sequence<33>());
constexpr auto kUnpack = Unpacks(std::make_index_sequence<33>());

int64_t Bytes(int64_t bits) { return (bits + 7) / 8; }

// The low bits of up to a block of numbers. A full block takes whole words.
uint8_t* PutLow(const uint32_t* values, int64_t count, int bits, uint8_t* out) {
  if (count == kBlock) {
    kPack[bits](values, out);
    return out + 8 * bits;
  }
  uint32_t padded[kBlock] = {};
  uint8_t packed[8 * 32];
  std::copy(values, values + count, padded);
  kPack[bits](padded, packed);
  std::memcpy(out, packed, static_cast<size_t>(Bytes(count * bits)));
  return out + Bytes(count * bits);
}

// Reads exactly Bytes(count * bits) bytes; false where the padding holds a one.
bool GetLow(const uint8_t* in, int64_t count, int bits, uint32_t* values) {
  if (count == kBlock) {
    kUnpack[bits](in, values);
    return true;
  }
  uint32_t unpacked[kBlock];
  uint8_t padded[8 * 32] = {};
  std::memcpy(padded, in, static_cast<size_t>(Bytes(count * bits)));
  kUnpack[bits](padded, unpacked);
  std::copy(unpacked, unpacked + count, values);
  const auto any = [](uint32_t x) { return x != 0; };
  return !std::any_of(unpacked + count, unpacked + kBlock, any);
}

class UnaryWriter {
 public:
  explicit UnaryWriter(uint8_t* out) : out_(out) {}

  void Put(uint32_t quotient) {
    uint64_t end = fill_ + quotient;
    while (end >= 64) {
      Flush();
      end -= 64;
    }
    word_ |= uint64_t{1} << end;
    fill_ = end + 1;
  }

  void Finish() { std::memcpy(out_, &word_, 8); }

 private:
  void Flush() {
    std::memcpy(out_, &word_, 8);
    out_ += 8;
    word_ = 0;
  }

  uint8_t* out_;
  uint64_t word_ = 0;
  uint64_t fill_ = 0;  // 0 to 64
};

class UnaryReader {
 public:
  UnaryReader(const uint8_t* in, int64_t size) : at_(in), end_(in + size), bits_(-64) {}

  // Quotients of a block; false where the stream ends before.
  bool Get(int64_t count, uint32_t* quotients) {
    for (int64_t i = 0; i < count; ++i) {
      while (word_ == 0) {
        if (at_ >= end_) return false;
        Load();
      }
      const int64_t one = bits_ + __builtin_ctzll(word_);
      word_ &= word_ - 1;
      quotients[i] = static_cast<uint32_t>(one - last_ - 1);
      last_ = one;
    }
    return true;
  }

  // Whether nothing but zeros follows, in the byte of the last one alone.
  bool Ends(int64_t size) const { return word_ == 0 && size == Bytes(last_ + 1); }

 private:
  void Load() {
    const auto size = static_cast<size_t>(std::min<int64_t>(8, end_ - at_));
    std::memcpy(&word_, at_, size);
    at_ += size;
    bits_ += 64;
  }

  const uint8_t* at_;
  const uint8_t* end_;
  uint64_t word_ = 0;
  int64_t bits_;
  int64_t last_ = -1;
};

// What the search for a parameter needs to know of some numbers beforehand.
struct Range {
  const uint32_t* values;
  int64_t count;
  uint32_t any = 0;  // their bits, in one
  uint64_t sum = 0;

  Range(const uint32_t* values, int64_t count) : values(values), count(count) {
    for (int64_t i = 0; i < count; ++i) any |= values[i];
    sum = Sum([](uint32_t x) { return x; });
  }

  // Adds up f of each number, 32 bits wide where a block's sum fits: vectors are then full.
  template <typename F>
  uint64_t Sum(F f) const {
    uint64_t total = 0;
    if (any >> 26 != 0) {
      for (int64_t i = 0; i < count; ++i) total += f(values[i]);
      return total;
    }
    for (int64_t i = 0; i < count; i += kBlock) {
      const int64_t stop = std::min<int64_t>(count, i + kBlock);
      uint32_t part = 0;
      for (int64_t j = i; j < stop; ++j) part += f(values[j]);
      total += part;
    }
    return total;
  }

  uint64_t Quotients(int b) const {
    return Sum([b](uint32_t x) { return x >> b; });
  }

  // Whether the numbers are shorter by a parameter above b.
  bool WantsMoreThan(int b) const {
    const uint64_t saved = Sum([b](uint32_t x) { return (x >> b >> 1) + ((x >> b) & 1); });
    return saved > static_cast<uint64_t>(count);
  }

  // The least b that makes the numbers shortest; their length is convex in b.
  int BestParameter() const {
    const uint64_t mean = sum / static_cast<uint64_t>(count);
    int b = std::clamp(63 - __builtin_clzll(mean | 1) - 1, 0, 31);
    if (WantsMoreThan(b)) {
      do ++b;
      while (b < 31 && WantsMoreThan(b));
      return b;
    }
    while (b > 0 && !WantsMoreThan(b - 1)) --b;
    return b;
  }
};

int64_t Varint(int64_t number, uint8_t* out) {
  int64_t size = 0;
  for (; number > 127; number >>= 7) out[size++] = static_cast<uint8_t>(number | 128);
  out[size++] = static_cast<uint8_t>(number);
  return size;
}

int64_t VarintSize(int64_t number) {
  uint8_t scratch[10];
  return Varint(number, scratch);
}

uint32_t ZigZag(int delta) {
  return static_cast<uint32_t>(delta < 0 ? -2 * delta - 1 : 2 * delta);
}

Plan BlocksPlan(const uint32_t* values, int64_t count) {
  Plan plan;
  plan.form = kBlocks;
  plan.parameters.reserve(static_cast<size_t>(count / kBlock + 1));
  std::vector<uint32_t> deltas;
  int64_t unary = count;
  int last = 0;
  for (int64_t i = 0; i < count; i += kBlock) {
    const int64_t n = std::min<int64_t>(kBlock, count - i);
    const Range block(values + i, n);
    const int b = block.BestParameter();
    plan.parameters.push_back(static_cast<uint8_t>(b));
    deltas.push_back(ZigZag(b - last));
    last = b;
    plan.low += Bytes(n * b);
    unary += static_cast<int64_t>(block.Quotients(b));
  }
  plan.unary = Bytes(unary);
  const auto blocks = static_cast<int64_t>(deltas.size());
  const Plan inner = MakePlan(deltas.data(), blocks, /*allow_blocks=*/false);
  plan.side.resize(static_cast<size_t>(inner.Size() + kSpare));
  WriteNumbers(deltas.data(), blocks, inner, plan.side.data());
  plan.side.resize(static_cast<size_t>(inner.Size()));
  return plan;
}

void WriteFixed(const uint32_t* values, int64_t count, int width, uint8_t* out) {
  for (int64_t i = 0; i < count; i += kBlock) {
    out = PutLow(values + i, std::min<int64_t>(kBlock, count - i), width, out);
  }
}

// A LEB128 number of at most 9 digits; -1 where there is none.
int64_t ReadVarint(const uint8_t*& at, const uint8_t* end) {
  int64_t number = 0;
  for (int shift = 0; shift < 63 && at < end; shift += 7) {
    const uint8_t byte = *at++;
    number |= static_cast<int64_t>(byte & 127) << shift;
    if (byte < 128) return number;
  }
  return -1;
}

const char* ReadParameters(const uint8_t*& at, const uint8_t* end, int64_t blocks,
                           std::vector<uint8_t>& parameters) {
  if (at < end && *at == kBlocks) return "the parameters of blocks are blocks themselves";
  std::vector<uint32_t> deltas(static_cast<size_t>(blocks));
  if (const char* wrong = ReadNumbers(at, end, blocks, deltas.data())) return wrong;
  int64_t b = 0;
  for (const uint32_t delta : deltas) {
    const int64_t half = static_cast<int64_t>(delta >> 1);
    b += (delta & 1) != 0 ? -half - 1 : half;
    if (b < 0 || b > 31) return "a Rice parameter is outside 0 to 31";
    parameters.push_back(static_cast<uint8_t>(b));
  }
  return nullptr;
}

const char* ReadFixed(const uint8_t*& at, const uint8_t* end, int64_t count, int width,
                      uint32_t* values) {
  const int64_t size = Bytes(count * width);
  if (size > end - at) return "cut short in numbers of fixed width";
  bool clean = true;
  for (int64_t i = 0; i < count; i += kBlock) {
    clean = GetLow(at + i / 8 * width, std::min<int64_t>(kBlock, count - i), width, values + i);
  }
  at += size;
  return clean ? nullptr : "numbers are padded with ones";
}

}  // namespace

int64_t Plan::Size() const {
  if (form > kFixed) return 1 + low;
  return 1 + static_cast<int64_t>(side.size()) + VarintSize(unary) + low + unary;
}

Plan MakePlan(const uint32_t* values, int64_t count, bool allow_blocks) {
  const Range range(values, count);
  const int width = 32 - __builtin_clz(range.any | 1);
  Plan fixed;
  fixed.form = kFixed + width;
  fixed.low = Bytes(count * width);
  Plan rice;
  rice.form = range.BestParameter();
  rice.low = Bytes(count * rice.form);
  rice.unary = Bytes(count + static_cast<int64_t>(range.Quotients(rice.form)));
  Plan& best = fixed.Size() <= rice.Size() ? fixed : rice;
  if (!allow_blocks || count <= kBlock) return best;
  Plan blocks = BlocksPlan(values, count);
  return best.Size() <= blocks.Size() ? best : blocks;
}

void WriteNumbers(const uint32_t* values, int64_t count, const Plan& plan, uint8_t* out) {
  *out++ = static_cast<uint8_t>(plan.form);
  if (plan.form > kFixed) return WriteFixed(values, count, plan.form - kFixed, out);
  out = std::copy(plan.side.begin(), plan.side.end(), out);
  out += Varint(plan.unary, out);
  UnaryWriter unary(out + plan.low);
  uint8_t* low = out;
  // Order matters: the unary stream lies behind the low bits, whose writer stays in its bounds.
  for (int64_t i = 0; i < count; i += kBlock) {
    const int64_t n = std::min<int64_t>(kBlock, count - i);
    const int b = plan.form == kBlocks ? plan.parameters[static_cast<size_t>(i / kBlock)]
                                       : plan.form;
    low = PutLow(values + i, n, b, low);
    for (int64_t j = i; j < i + n; ++j) unary.Put(values[j] >> b);
  }
  unary.Finish();
}

const char* ReadNumbers(const uint8_t*& at, const uint8_t* end, int64_t count,
                        uint32_t* values) {
  if (at >= end) return "cut short in the form of numbers";
  const int form = *at++;
  if (form > kFixed + 32) return "numbers are of an unknown form";
  if (form > kFixed) return ReadFixed(at, end, count, form - kFixed, values);
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  std::vector<uint8_t> parameters;
  if (form == kBlocks) {
    if (const char* wrong = ReadParameters(at, end, blocks, parameters)) return wrong;
  } else {
    parameters.assign(static_cast<size_t>(blocks), static_cast<uint8_t>(form));
  }
  const int64_t unary_size = ReadVarint(at, end);
  int64_t low_size = 0;
  for (int64_t j = 0; j < blocks; ++j) {
    low_size += Bytes(std::min<int64_t>(kBlock, count - j * kBlock) *
                      parameters[static_cast<size_t>(j)]);
  }
  if (unary_size < 0 || low_size > end - at || unary_size > end - at - low_size) {
    return "cut short in numbers";
  }
  UnaryReader unary(at + low_size, unary_size);
  uint32_t quotients[kBlock];
  uint64_t all = 0;
  for (int64_t j = 0; j < blocks; ++j) {
    const int64_t n = std::min<int64_t>(kBlock, count - j * kBlock);
    const int b = parameters[static_cast<size_t>(j)];
    uint32_t* out = values + j * kBlock;
    if (!unary.Get(n, quotients)) return "the quotients end before the numbers do";
    if (!GetLow(at, n, b, out)) return "the low bits are padded with ones";
    for (int64_t i = 0; i < n; ++i) {
      const uint64_t high = uint64_t{quotients[i]} << b;
      all |= high;
      out[i] |= static_cast<uint32_t>(high);
    }
    at += Bytes(n * b);
  }
  if (!unary.Ends(unary_size)) return "the quotients go on past the numbers";
  if (all >> 32 != 0) return "a number is past 32 bits";
  at += unary_size;
  return nullptr;
}

}  // namespace cdl
