// Handlers that read, hash and write entries of many arrays.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "calls.h"
#include "digest.h"
#include "entries.h"
#include "parallel.h"

namespace cdl {
namespace {

namespace ffi = xla::ffi;

using Ints = ffi::Buffer<ffi::S32>;
using Words = ffi::Buffer<ffi::U32>;

constexpr int64_t kChunk = int64_t{1} << 11;        // scattered entries of one job
constexpr int64_t kWorthThreads = int64_t{1} << 12;  // scattered entries
constexpr int64_t kDigestChunk = int64_t{1} << 16;   // entries in a row

int Width(const ffi::AnyBuffer& buffer) {
  return static_cast<int>(ffi::ByteWidth(buffer.element_type()));
}

// Operands: the arrays that leaves lie in, then those of the positions, then those of the bits, then
// the handler's own. `sections` says how many leaves a section has, `leaves` where each of them
// lies, section by section; `positions` and `bits` where the sections' rows lie.
class EntriesCall {
 public:
  EntriesCall(ffi::RemainingArgs args, ffi::Span<const int64_t> sections,
              ffi::Span<const int64_t> leaves, ffi::Span<const int64_t> positions,
              ffi::Span<const int64_t> bits)
      : args_(args), counts_(sections), leaves_(leaves), positions_(positions), bits_(bits) {
    size_t needed = 0;
    for (const int64_t count : counts_) needed += static_cast<size_t>(count);
    if (needed != leaves_.size()) throw std::invalid_argument("give a row for each leaf");
    if (positions_.size() != this->sections() || bits_.size() != this->sections()) {
      throw std::invalid_argument("give rows of positions and of bits for each section");
    }
  }

  size_t arrays() const { return leaves_.arrays(); }
  size_t sections() const { return counts_.size(); }
  ffi::AnyBuffer array(size_t a) const { return Get(args_.get<ffi::AnyBuffer>(a)); }
  char* data(size_t a) const { return static_cast<char*>(array(a).untyped_data()); }
  ffi::AnyBuffer bits(size_t array) const {
    return Get(args_.get<ffi::AnyBuffer>(arrays() + positions_.arrays() + array));
  }
  Words seeds() const {
    return Get(args_.get<Words>(arrays() + positions_.arrays() + bits_.arrays()));
  }

  // Calls run(section, its first leaf) for all entries, in pieces and on the pool's threads.
  // `data(a)` is where the leaves' array a lies, `bits(i)` the i-th array of the sections' values.
  template <typename Data, typename Bits, typename Run>
  void ForEach(ffi::ThreadPool& pool, Data data, Bits bits, Run run) const {
    std::vector<Section> made;
    std::vector<size_t> firsts;
    std::vector<std::pair<size_t, int64_t>> pieces;
    int64_t entries = 0;
    for (size_t s = 0, first = 0; s < sections(); first += static_cast<size_t>(counts_[s++])) {
      made.push_back(Make(s, first, data, bits(bits_.array(s))));
      firsts.push_back(first);
      for (int64_t at = 0; at < made[s].count; at += kChunk) pieces.emplace_back(s, at);
      entries += made[s].count;
    }
    const auto piece = [&](size_t i) {
      const auto [s, at] = pieces[i];
      Section part = made[s];
      part.positions += at;
      part.bits += at * part.width;
      part.count = std::min(kChunk, part.count - at);
      run(part, firsts[s]);
    };
    const int64_t threads = Threads(pool, entries, kWorthThreads);
    const auto count = static_cast<int64_t>(pieces.size());
    const int64_t jobs = threads == 1 ? 1 : std::min(count, 4 * threads);
    ParallelFor(pool, threads, jobs, [&](int64_t job) {
      for (int64_t i = count * job / jobs; i < count * (job + 1) / jobs; ++i) {
        piece(static_cast<size_t>(i));
      }
    });
  }

 private:
  template <typename Data>
  Section Make(size_t s, size_t first, Data data, ffi::AnyBuffer bits) const {
    const auto positions = Get(args_.get<Ints>(arrays() + positions_.array(s)));
    const auto room = static_cast<int64_t>(positions.element_count());
    const int64_t start = bits_.Start(s, static_cast<int64_t>(bits.element_count()));
    Section section{{}, positions.typed_data() + positions_.Start(s, room), positions_.count(s),
                    static_cast<char*>(bits.untyped_data()) + start * Width(bits), Width(bits)};
    if (bits_.count(s) != section.count) {
      throw std::invalid_argument("a section has as many bits as positions");
    }
    int64_t begin = 0;
    for (size_t t = first; t < first + static_cast<size_t>(counts_[s]); ++t) {
      const ffi::AnyBuffer buffer = array(leaves_.array(t));
      const int width = Width(buffer);
      const int64_t at = leaves_.Start(t, static_cast<int64_t>(buffer.element_count()));
      const int64_t size = leaves_.count(t);
      section.leaves.push_back({data(leaves_.array(t)) + at * width, begin, size, width});
      if (section.leaves.back().width > section.width) {
        throw std::invalid_argument("a section's bits are narrower than one of its leaves");
      }
      begin += size;
    }
    return section;
  }

  ffi::RemainingArgs args_;
  ffi::Span<const int64_t> counts_;
  Rows leaves_;
  Rows positions_;
  Rows bits_;
};

ffi::Error Read(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                ffi::Span<const int64_t> sections, ffi::Span<const int64_t> leaves,
                ffi::Span<const int64_t> positions, ffi::Span<const int64_t> bits) {
  return Guarded([&] {
    const EntriesCall call(args, sections, leaves, positions, bits);
    call.ForEach(
        pool, [&](size_t a) { return call.data(a); },
        [&](size_t i) { return *Get(rets.get<ffi::AnyBuffer>(i)); },
        [](const Section& section, size_t) { ReadEntries(section); });
  });
}

// The new arrays: where XLA did not reuse the old ones' buffers, copies of them.
std::vector<char*> NewArrays(const EntriesCall& call, ffi::RemainingRets rets) {
  std::vector<char*> arrays;
  for (size_t a = 0; a < call.arrays(); ++a) {
    const ffi::AnyBuffer old = call.array(a);
    arrays.push_back(static_cast<char*>(Get(rets.get<ffi::AnyBuffer>(a))->untyped_data()));
    if (old.untyped_data() != arrays[a]) {
      std::memcpy(arrays[a], old.untyped_data(), old.size_bytes());
    }
  }
  return arrays;
}

ffi::Error Write(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                 ffi::Span<const int64_t> sections, ffi::Span<const int64_t> leaves,
                 ffi::Span<const int64_t> positions, ffi::Span<const int64_t> bits) {
  return Guarded([&] {
    const EntriesCall call(args, sections, leaves, positions, bits);
    const std::vector<char*> data = NewArrays(call, rets);
    call.ForEach(
        pool, [&](size_t a) { return data[a]; }, [&](size_t i) { return call.bits(i); },
        [](const Section& section, size_t) { WriteEntries(section); });
  });
}

// Four sums that several threads add to.
class Lanes {
 public:
  void Add(const uint32_t* lanes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (int i = 0; i < kLanes; ++i) lanes_[i] += lanes[i];
  }
  void CopyTo(uint32_t* out) const { std::copy(lanes_, lanes_ + kLanes, out); }

 private:
  std::mutex mutex_;
  uint32_t lanes_[kLanes] = {};
};

ffi::Error Change(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::Result<Words> out,
                  ffi::Span<const int64_t> sections, ffi::Span<const int64_t> leaves,
                  ffi::Span<const int64_t> positions, ffi::Span<const int64_t> bits) {
  return Guarded([&] {
    const EntriesCall call(args, sections, leaves, positions, bits);
    const uint32_t* seeds = call.seeds().typed_data();
    Lanes sum;
    call.ForEach(
        pool, [&](size_t a) { return call.data(a); },
        [&](size_t i) { return call.bits(i); },
        [&](const Section& section, size_t first) {
          uint32_t lanes[kLanes] = {};
          AddChange(section, seeds + kLanes * first, lanes);
          sum.Add(lanes);
        });
    sum.CopyTo(out->typed_data());
  });
}

// Write and Change at once: each entry's cache line is fetched once. The last result is the sums.
ffi::Error Rewrite(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                   ffi::Span<const int64_t> sections, ffi::Span<const int64_t> leaves,
                   ffi::Span<const int64_t> positions, ffi::Span<const int64_t> bits) {
  return Guarded([&] {
    const EntriesCall call(args, sections, leaves, positions, bits);
    const std::vector<char*> data = NewArrays(call, rets);
    const uint32_t* seeds = call.seeds().typed_data();
    Lanes sum;
    call.ForEach(
        pool, [&](size_t a) { return data[a]; }, [&](size_t i) { return call.bits(i); },
        [&](const Section& section, size_t first) {
          uint32_t lanes[kLanes] = {};
          AddChange(section, seeds + kLanes * first, lanes);
          WriteEntries(section);
          sum.Add(lanes);
        });
    sum.CopyTo(Get(rets.get<Words>(call.arrays()))->typed_data());
  });
}

// Operands: the seeds of all tensors, then the tensors.
ffi::Error Full(ffi::ThreadPool pool, Words seeds, ffi::RemainingArgs args,
                ffi::Result<Words> out) {
  return Guarded([&] {
    std::vector<std::pair<size_t, int64_t>> chunks;
    int64_t entries = 0;
    for (size_t t = 0; t < args.size(); ++t) {
      const auto size = static_cast<int64_t>(Get(args.get<ffi::AnyBuffer>(t)).element_count());
      for (int64_t at = 0; at < size; at += kDigestChunk) chunks.emplace_back(t, at);
      entries += size;
    }
    Lanes sum;
    const int64_t threads = Threads(pool, entries, kDigestChunk);
    ParallelFor(pool, threads, static_cast<int64_t>(chunks.size()), [&](int64_t i) {
      const auto [t, at] = chunks[static_cast<size_t>(i)];
      const auto tensor = Get(args.get<ffi::AnyBuffer>(t));
      const auto size = static_cast<int64_t>(tensor.element_count());
      uint32_t lanes[kLanes] = {};
      AddEntries(static_cast<const char*>(tensor.untyped_data()), Width(tensor), at,
                 std::min(kDigestChunk, size - at), seeds.typed_data() + kLanes * t, lanes);
      sum.Add(lanes);
    });
    sum.CopyTo(out->typed_data());
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(ReadEntriesCall, Read,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("sections")
                                  .Attr<ffi::Span<const int64_t>>("leaves")
                                  .Attr<ffi::Span<const int64_t>>("positions")
                                  .Attr<ffi::Span<const int64_t>>("bits"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(WriteEntriesCall, Write,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("sections")
                                  .Attr<ffi::Span<const int64_t>>("leaves")
                                  .Attr<ffi::Span<const int64_t>>("positions")
                                  .Attr<ffi::Span<const int64_t>>("bits"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(DigestChangeCall, Change,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<Words>()
                                  .Attr<ffi::Span<const int64_t>>("sections")
                                  .Attr<ffi::Span<const int64_t>>("leaves")
                                  .Attr<ffi::Span<const int64_t>>("positions")
                                  .Attr<ffi::Span<const int64_t>>("bits"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(RewriteEntriesCall, Rewrite,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("sections")
                                  .Attr<ffi::Span<const int64_t>>("leaves")
                                  .Attr<ffi::Span<const int64_t>>("positions")
                                  .Attr<ffi::Span<const int64_t>>("bits"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    FullDigestCall, Full,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Words>().RemainingArgs().Ret<Words>());

}  // namespace cdl
