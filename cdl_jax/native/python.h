// What functions for Python share: buffers as arrays, and errors.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <new>

namespace cdl {

class View {
 public:
  explicit View(PyObject* object, int flags = PyBUF_SIMPLE)
      : ok_(PyObject_GetBuffer(object, &view_, flags) == 0) {}
  View(const View&) = delete;
  View& operator=(const View&) = delete;
  ~View() {
    if (ok_) PyBuffer_Release(&view_);
  }
  bool ok() const { return ok_; }
  const uint8_t* data() const { return static_cast<const uint8_t*>(view_.buf); }
  int64_t size() const { return view_.len; }

 private:
  Py_buffer view_;
  bool ok_;
};

// The uint32 or int32 numbers of a buffer.
template <typename T>
const T* Numbers(const View& view) {
  return reinterpret_cast<const T*>(view.data());
}

inline PyObject* Wrong(const char* what) {
  PyErr_SetString(PyExc_ValueError, what);
  return nullptr;
}

template <typename Body>
PyObject* Guarded(Body body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

}  // namespace cdl
