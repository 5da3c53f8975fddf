// `arena.h` for Python.
#pragma once

#include "python.h"

namespace cdl {

PyObject* ChangeEntries(PyObject*, PyObject* const* args, Py_ssize_t size);
PyObject* WriteChanges(PyObject*, PyObject* const* args, Py_ssize_t size);

}  // namespace cdl
