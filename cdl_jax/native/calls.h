// What the handlers of XLA's typed FFI share.
#pragma once

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

XLA_FFI_DECLARE_HANDLER_SYMBOL(ReadEntriesCall);
XLA_FFI_DECLARE_HANDLER_SYMBOL(WriteEntriesCall);
XLA_FFI_DECLARE_HANDLER_SYMBOL(DigestChangeCall);
XLA_FFI_DECLARE_HANDLER_SYMBOL(RewriteEntriesCall);
XLA_FFI_DECLARE_HANDLER_SYMBOL(FullDigestCall);

}  // namespace cdl
