// Exact selection of the k largest magnitudes, ties to the lowest position.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace cdl {

// One tensor inside a selection; `begin` is its first flat position there.
struct Segment {
  const float* update;
  const float* old;
  float* residual;  // written; may be `old`
  int64_t begin;
  int64_t size;
};

// Room for entries. A thread keeps what it releases, if that is little, for its next one: a large
// model has hundreds of selections, and an allocator that must look for room takes longer than
// most of them.
struct Room {
  int64_t entries = 0;
  std::unique_ptr<uint32_t[]> positions;
  std::unique_ptr<uint32_t[]> values;
};

// A range of flat positions scanned by one thread, and the entries of it still in the race,
// in ascending order. The residual holds +0.0 in the place of each of them.
struct Part {
  int64_t begin = 0;
  int64_t end = 0;
  int32_t limit = 0;
  int64_t count = 0;
  Room room;

  void Reserve(int64_t entries);
  void Release();
};

// Takes what exceeds `magnitude`, and the first `ties` entries that equal it.
struct Cut {
  uint32_t magnitude;
  int64_t ties;
  bool Takes(uint32_t bits);
};

// Work is linear in the size whatever the input. Extra memory: for each part, 8 bytes for
// each of min(part, 4k + 4096) entries, so never more than 8 bytes an entry in all, or 64 KiB;
// besides them a sample, 40 * max(sqrt(n), cbrt(k n)) bytes. A thread keeps 512 KiB at most.
class Selection {
 public:
  Selection(std::vector<Segment> segments, int64_t k, int32_t* indices, float* sent,
            int64_t threads);

  int64_t size() const { return size_; }
  int64_t parts() const { return static_cast<int64_t>(parts_.size()); }

  // Scans a part; whoever scans the last one also writes indices, sent and residual.
  void RunPart(int64_t part);

 private:
  int32_t EstimateLimit() const;
  void Fill(Part& part, bool add);
  void Prune(Part& part);
  void Restart();
  void Finish();
  template <typename Visit>
  void VisitBlocks(int64_t begin, int64_t end, int64_t block, Visit visit) const;
  template <typename Keep>
  void Separate(const Part& part, Cut& cut, Keep keep);

  std::vector<Segment> segments_;
  int64_t size_ = 0;
  int64_t k_;
  int32_t* indices_;
  float* sent_;
  std::vector<Part> parts_;
  int32_t limit_ = 0;
  std::once_flag estimated_;
  std::atomic<int64_t> pending_;
};

}  // namespace cdl
