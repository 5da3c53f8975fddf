#include "select.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <utility>

#include "scan.h"

namespace cdl {
namespace {

constexpr int64_t kBlock = 2048;               // entries per call of the scan
constexpr int64_t kSmallestPart = int64_t{1} << 18;
constexpr int64_t kGroup = 8;                  // neighbours sampled together: one cache line
constexpr int64_t kSmallestSampled = 512;
constexpr int kDigit = 11;                     // bits settled by one histogram
constexpr int64_t kFew = 64;                   // values that are quicker sorted out by themselves
constexpr int64_t kLeast = int64_t{1} << 13;      // entries that are worth an allocation
constexpr int64_t kMostSpare = int64_t{1} << 16;  // entries of a thread's room
constexpr uint32_t kNaN = 0x7f800001u;         // the least magnitude that is none

thread_local Room spare;

// Adding -0.0 changes no bits, so a second scan can read acc back from the residual.
const float* NegativeZeros() {
  static const std::vector<float> zeros(kBlock, -0.0f);
  return zeros.data();
}

uint32_t Mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// Where a value stands in the order of magnitudes: NaNs come first, and as equals.
uint32_t Rank(uint32_t bits) { return std::min(bits & kMagnitude, kNaN); }

int BitWidth(uint32_t x) {
  int width = 0;
  for (; x != 0; x >>= 1) ++width;
  return width;
}

template <typename Visit>
void VisitMagnitudes(const Part* first, const Part* last, Visit visit) {
  for (; first != last; ++first) {
    const uint32_t* values = first->room.values.get();
    for (int64_t i = 0; i < first->count; ++i) visit(Rank(values[i]));
  }
}

// The magnitudes low..high, of which there are `inside`, with `above` larger ones.
struct Range {
  uint32_t low;
  uint32_t high;
  int64_t above;
  int64_t inside;
};

// The range that holds the k-th largest magnitude and at most `few`, or ties alone: each
// histogram settles kDigit more bits, so there are at most four.
Range Narrow(const Part* first, const Part* last, int64_t k, int64_t few) {
  Range range{0, kNaN, 0, 0};
  for (const Part* part = first; part != last; ++part) range.inside += part->count;
  while (range.low < range.high && range.inside > few) {
    const uint32_t low = range.low;
    const uint32_t span = range.high - low;
    const int shift = std::max(0, BitWidth(span) - kDigit);
    std::array<uint32_t, 1 << kDigit> bins{};
    uint32_t bin = 0;
    VisitMagnitudes(first, last, [&](uint32_t x) {
      if (x - low > span) return;
      const uint32_t at = (x - low) >> shift;
      bin = std::max(bin, at);
      ++bins[at];
    });
    for (; range.above + bins[bin] < k; --bin) range.above += bins[bin];
    range.inside = bins[bin];
    range.low += bin << shift;
    range.high = std::min(range.high, range.low + ((1u << shift) - 1));
  }
  return range;
}

// The cut that takes exactly the k largest of at least k values.
Cut FindCut(const Part* first, const Part* last, int64_t k) {
  const Range range = Narrow(first, last, k, kFew);
  k -= range.above;
  if (range.low == range.high) return {range.low, k};
  std::array<uint32_t, kFew> few;
  uint32_t* end = few.data();
  VisitMagnitudes(first, last, [&](uint32_t x) {
    if (x - range.low <= range.high - range.low) *end++ = x;
  });
  uint32_t* const kth = few.data() + (k - 1);
  std::nth_element(few.data(), kth, end, std::greater<>());
  return {*kth, k - std::count_if(few.data(), kth, [&](uint32_t x) { return x > *kth; })};
}

}  // namespace

void Part::Reserve(int64_t entries) {
  room = std::exchange(spare, {});
  if (room.entries >= entries) return;
  entries = std::max(entries, kLeast);
  const auto size = static_cast<size_t>(entries);
  room = {entries, std::unique_ptr<uint32_t[]>(new uint32_t[size]),
          std::unique_ptr<uint32_t[]>(new uint32_t[size])};
}

void Part::Release() {
  if (room.entries <= kMostSpare) spare = std::move(room);
  room = {};
}

bool Cut::Takes(uint32_t bits) {
  const uint32_t x = Rank(bits);
  return x > magnitude || (x == magnitude && ties-- > 0);
}

Selection::Selection(std::vector<Segment> segments, int64_t k, int32_t* indices, float* sent,
                     int64_t threads)
    : segments_(std::move(segments)), k_(k), indices_(indices), sent_(sent) {
  for (const Segment& segment : segments_) size_ += segment.size;
  const int64_t parts = std::clamp<int64_t>(size_ / kSmallestPart, 1, threads);
  parts_.resize(static_cast<size_t>(parts));
  for (int64_t i = 0; i < parts; ++i) {
    parts_[i].begin = size_ * i / parts;
    parts_[i].end = size_ * (i + 1) / parts;
  }
  pending_ = parts;
}

template <typename Visit>
void Selection::VisitBlocks(int64_t begin, int64_t end, int64_t block, Visit visit) const {
  auto segment = std::upper_bound(
      segments_.begin(), segments_.end(), begin,
      [](int64_t at, const Segment& s) { return at < s.begin + s.size; });
  while (begin < end) {
    const int64_t offset = begin - segment->begin;
    const int64_t n = std::min({block, end - begin, segment->size - offset});
    if (n > 0) visit(*segment, offset, n);
    begin += n;
    if (offset + n == segment->size) ++segment;
  }
}

// Hands what the cut takes to `keep`, in order, and puts the rest back into the residual.
template <typename Keep>
void Selection::Separate(const Part& part, Cut& cut, Keep keep) {
  const Segment* segment = segments_.data();
  for (int64_t i = 0; i < part.count; ++i) {
    const uint32_t position = part.room.positions[i];
    const uint32_t bits = part.room.values[i];
    if (cut.Takes(bits)) {
      keep(position, bits);
      continue;
    }
    while (position >= segment->begin + segment->size) ++segment;
    std::memcpy(segment->residual + (position - segment->begin), &bits, sizeof bits);
  }
}

// A limit that lets a little more than k entries pass, from a stratified sample. Neighbours
// are alike, so the margin is twice what independent draws would need. The sample's size
// balances its own cost against the candidates that a coarser limit lets through. A limit
// too high or too low costs time, never correctness.
int32_t Selection::EstimateLimit() const {
  if (k_ == 0) return kTakeNone;
  if (size_ < kSmallestSampled || k_ > size_ / kGroup) return kTakeAll;
  const double worth = std::max(std::sqrt(size_), std::cbrt(static_cast<double>(k_) * size_));
  const int64_t groups = std::min(size_ / kGroup, static_cast<int64_t>(5 * worth)) / kGroup;
  const int64_t stride = size_ / groups;
  Part sample;
  sample.Reserve(groups * kGroup);
  std::array<float, kGroup> unused;
  const Scan scan = ActiveScan();
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t begin = i * stride + Mix(static_cast<uint32_t>(i)) % (stride - kGroup + 1);
    VisitBlocks(begin, begin + kGroup, kGroup, [&](const Segment& s, int64_t at, int64_t n) {
      sample.count += scan(s.update + at, s.old + at, unused.data(), n, kTakeAll, 0,
                           sample.room.positions.get() + sample.count,
                           sample.room.values.get() + sample.count);
    });
  }
  const double expected = static_cast<double>(sample.count) * k_ / size_;
  const auto rank = static_cast<int64_t>(expected + 8 * std::sqrt(expected) + 8);
  int32_t limit = kTakeAll;
  if (rank < sample.count) {
    limit = static_cast<int32_t>(Narrow(&sample, &sample + 1, rank, rank / 2 + 4).low) - 1;
  }
  sample.Release();
  return limit;
}

void Selection::Fill(Part& part, bool add) {
  const Scan scan = ActiveScan();
  int64_t position = part.begin;
  VisitBlocks(part.begin, part.end, kBlock, [&](const Segment& s, int64_t at, int64_t n) {
    if (part.count + n > part.room.entries) Prune(part);
    const float* update = add ? s.update + at : NegativeZeros();
    const float* old = add ? s.old + at : s.residual + at;
    part.count += scan(update, old, s.residual + at, n, part.limit,
                       static_cast<uint32_t>(position), part.room.positions.get() + part.count,
                       part.room.values.get() + part.count);
    position += n;
  });
}

// Keeps the k best so far. A later entry must then exceed the k-th: equal ones lose the tie.
void Selection::Prune(Part& part) {
  Cut cut = FindCut(&part, &part + 1, k_);
  part.limit = static_cast<int32_t>(cut.magnitude);
  int64_t kept = 0;
  Separate(part, cut, [&](uint32_t position, uint32_t bits) {
    part.room.positions[kept] = position;
    part.room.values[kept++] = bits;
  });
  part.count = kept;
}

// The limit was too high: put the candidates back and scan again without one.
void Selection::Restart() {
  for (Part& part : parts_) {
    Cut nothing{kMagnitude, 0};
    Separate(part, nothing, [](uint32_t, uint32_t) {});
    part.count = 0;
    part.limit = kTakeAll;
    Fill(part, /*add=*/false);
  }
}

void Selection::Finish() {
  int64_t found = 0;
  for (const Part& part : parts_) found += part.count;
  if (found < k_) Restart();
  if (k_ == 0) return;
  Cut cut = FindCut(parts_.data(), parts_.data() + parts_.size(), k_);
  int64_t written = 0;
  for (const Part& part : parts_) {
    Separate(part, cut, [&](uint32_t position, uint32_t bits) {
      indices_[written] = static_cast<int32_t>(position);
      std::memcpy(sent_ + written++, &bits, sizeof bits);
    });
  }
}

void Selection::RunPart(int64_t index) {
  std::call_once(estimated_, [&] { limit_ = EstimateLimit(); });
  Part& part = parts_[static_cast<size_t>(index)];
  part.limit = limit_;
  part.Reserve(std::min(part.end - part.begin, 4 * k_ + 2 * kBlock));
  Fill(part, /*add=*/true);
  if (pending_.fetch_sub(1) != 1) return;
  Finish();
  // Hundreds of selections wait for each other's end; the next ones use this memory again.
  for (Part& done : parts_) done.Release();
}

}  // namespace cdl
