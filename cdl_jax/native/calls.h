// What the handlers of XLA's typed FFI share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace cdl {

// A buffer of the wrong kind is a fault of the Python side: the error becomes the call's.
template <typename T>
T Get(xla::ffi::ErrorOr<T> got) {
  if (!got.has_value()) throw std::invalid_argument(std::string(got.error().message()));
  return *got;
}

template <typename Body>
xla::ffi::Error Guarded(Body body) {
  using xla::ffi::Error;
  try {
    body();
  } catch (const std::bad_alloc&) {
    return Error(xla::ffi::ErrorCode::kResourceExhausted, "out of memory in a native kernel");
  } catch (const std::exception& error) {
    return Error::InvalidArgument(error.what());
  }
  return Error::Success();
}

// The pool's threads where there is work for more than one.
inline int64_t Threads(xla::ffi::ThreadPool& pool, int64_t entries, int64_t worth) {
  return entries < worth ? 1 : std::max<int64_t>(1, pool.num_threads());
}

// Where rows lie in a few arrays: (array, start, stop) of each, checked against the arrays.
class Rows {
 public:
  explicit Rows(xla::ffi::Span<const int64_t> table) : table_(table) {
    if (table.size() % 3 != 0) throw std::invalid_argument("a row is (array, start, stop)");
    for (size_t i = 0; i < size(); ++i) {
      if (At(i, 0) < 0 || At(i, 1) < 0 || At(i, 2) < At(i, 1)) {
        throw std::invalid_argument("a row begins before its array, or ends before it begins");
      }
      arrays_ = std::max(arrays_, array(i) + 1);
    }
  }

  size_t size() const { return table_.size() / 3; }
  size_t arrays() const { return arrays_; }
  size_t array(size_t i) const { return static_cast<size_t>(At(i, 0)); }
  int64_t count(size_t i) const { return At(i, 2) - At(i, 1); }

  // Where row i begins in its array of so many entries.
  int64_t Start(size_t i, int64_t entries) const {
    if (At(i, 2) > entries) throw std::invalid_argument("a row ends past its array");
    return At(i, 1);
  }

 private:
  int64_t At(size_t i, size_t column) const { return table_[3 * i + column]; }

  xla::ffi::Span<const int64_t> table_;
  size_t arrays_ = 0;
};

XLA_FFI_DECLARE_HANDLER_SYMBOL(ReadEntriesCall);
XLA_FFI_DECLARE_HANDLER_SYMBOL(WriteEntriesCall);
XLA_FFI_DECLARE_HANDLER_SYMBOL(DigestChangeCall);
XLA_FFI_DECLARE_HANDLER_SYMBOL(RewriteEntriesCall);
XLA_FFI_DECLARE_HANDLER_SYMBOL(FullDigestCall);

}  // namespace cdl
