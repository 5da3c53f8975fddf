// Jobs shared between the calling thread and XLA's pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace cdl {

// The caller works too and waits only for jobs already begun, so a pool whose threads are
// all busy, or all waiting like this one, delays nothing and cannot deadlock. A task that
// starts too late finds no job and touches nothing but the shared counters.
template <typename Run>
class Jobs {
 public:
  Jobs(int64_t count, Run* run) : count_(count), run_(run) {}

  void Work() {
    for (int64_t job; (job = next_.fetch_add(1)) < count_;) {
      std::exception_ptr error;
      try {
        (*run_)(job);
      } catch (...) {
        error = std::current_exception();
      }
      const std::lock_guard<std::mutex> lock(mutex_);
      if (error) error_ = error;
      if (++done_ == count_) finished_.notify_one();
    }
  }

  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    finished_.wait(lock, [&] { return done_ == count_; });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const int64_t count_;
  Run* const run_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable finished_;
  int64_t done_ = 0;
  std::exception_ptr error_;
};

// Calls run(0) ... run(count - 1), each once, on up to `threads` threads.
template <typename Run>
void ParallelFor(xla::ffi::ThreadPool& pool, int64_t threads, int64_t count, Run run) {
  auto jobs = std::make_shared<Jobs<Run>>(count, &run);
  for (int64_t i = 1; i < std::min(threads, count); ++i) {
    pool.Schedule([jobs] { jobs->Work(); });
  }
  jobs->Work();
  jobs->Wait();
}

}  // namespace cdl
