// The numbers of the wire format, and changes of a flat array, for Python without JAX.
#include <cstdint>
#include <memory>
#include <vector>

#include "changes.h"
#include "floats.h"
#include "numbers.h"
#include "python.h"

namespace cdl {
namespace {

PyObject* Encoded(const uint32_t* values, int64_t count) {
  const Plan plan = MakePlan(values, count);
  const auto size = static_cast<Py_ssize_t>(plan.Size());
  PyObject* out = PyBytes_FromStringAndSize(nullptr, size + kSpare);
  if (out == nullptr) return nullptr;
  WriteNumbers(values, count, plan, reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(out)));
  _PyBytes_Resize(&out, size);
  return out;
}

// `count` numbers at a place of a buffer, each passed on by `finish`, which says what is wrong.
template <typename Finish>
PyObject* Decoded(const View& view, Py_ssize_t place, int64_t count, Finish finish) {
  // Every number takes a bit or more, so the data bounds what is allocated.
  if (place < 0 || place > view.size() || count < 1 || count > 8 * (view.size() - place)) {
    return Wrong("cut short: more numbers are announced than bytes hold");
  }
  PyObject* out = PyByteArray_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(4 * count));
  if (out == nullptr) return nullptr;
  auto* values = reinterpret_cast<uint32_t*>(PyByteArray_AS_STRING(out));
  const uint8_t* at = view.data() + place;
  const char* wrong = ReadNumbers(at, view.data() + view.size(), count, values);
  if (wrong == nullptr) wrong = finish(values);
  if (wrong == nullptr) {
    return Py_BuildValue("Nn", out, static_cast<Py_ssize_t>(at - view.data()));
  }
  Py_DECREF(out);
  return Wrong(wrong);
}

PyObject* Encode(PyObject*, PyObject* object) {
  const View view(object);
  if (!view.ok()) return nullptr;
  if (view.size() < 4 || view.size() % 4 != 0) return Wrong("give one or more uint32 numbers");
  return Guarded([&] { return Encoded(Numbers<uint32_t>(view), view.size() / 4); });
}

PyObject* Decode(PyObject*, PyObject* args) {
  PyObject* object;
  Py_ssize_t place, count;
  if (!PyArg_ParseTuple(args, "Onn", &object, &place, &count)) return nullptr;
  const View view(object);
  if (!view.ok()) return nullptr;
  const auto nothing = [](uint32_t*) -> const char* { return nullptr; };
  return Guarded([&] { return Decoded(view, place, count, nothing); });
}

// The number of positions in sections of these counts, each 1 or more; -1 for others.
int64_t Total(const View& counts) {
  int64_t total = 0;
  for (int64_t s = 0; s < counts.size() / 4; ++s) {
    const int32_t count = Numbers<int32_t>(counts)[s];
    if (count < 1) return -1;
    total += count;
  }
  return total;
}

PyObject* EncodeGaps(PyObject*, PyObject* args) {
  PyObject *first, *second;
  if (!PyArg_ParseTuple(args, "OO", &first, &second)) return nullptr;
  const View positions(first), counts(second);
  if (!positions.ok() || !counts.ok()) return nullptr;
  if (positions.size() < 4 || Total(counts) != positions.size() / 4) {
    return Wrong("the counts do not add up to the positions");
  }
  return Guarded([&] {
    const std::unique_ptr<uint32_t[]> gaps(new uint32_t[positions.size() / 4]);
    const auto* from = Numbers<uint32_t>(positions);
    uint32_t* to = gaps.get();
    for (int64_t s = 0; s < counts.size() / 4; ++s) {
      const int32_t count = Numbers<int32_t>(counts)[s];
      to[0] = from[0];
      for (int32_t i = 1; i < count; ++i) to[i] = from[i] - from[i - 1] - 1;
      from += count;
      to += count;
    }
    return Encoded(gaps.get(), positions.size() / 4);
  });
}

PyObject* DecodeGaps(PyObject*, PyObject* args) {
  PyObject *first, *second;
  Py_ssize_t place;
  if (!PyArg_ParseTuple(args, "OnO", &first, &place, &second)) return nullptr;
  const View view(first), counts(second);
  if (!view.ok() || !counts.ok()) return nullptr;
  const auto add_up = [&](uint32_t* values) -> const char* {
    for (int64_t s = 0; s < counts.size() / 4; ++s) {
      const int32_t count = Numbers<int32_t>(counts)[s];
      int64_t position = -1;
      for (int32_t i = 0; i < count; ++i) {
        position += int64_t{values[i]} + 1;
        values[i] = static_cast<uint32_t>(position);
      }
      if (position > INT32_MAX) return "a position is past 2^31 - 1";
      values += count;
    }
    return nullptr;
  };
  return Guarded([&] { return Decoded(view, place, Total(counts), add_up); });
}

// The streams of a split, one after the other behind `t`.
PyObject* EncodeFloats(PyObject*, PyObject* args) {
  PyObject* object;
  FloatKind kind;
  if (!PyArg_ParseTuple(args, "Oii", &object, &kind.mantissa, &kind.exponent)) return nullptr;
  const View view(object);
  if (!view.ok()) return nullptr;
  if (view.size() < 4 || view.size() % 4 != 0) return Wrong("give one or more uint32 numbers");
  return Guarded([&]() -> PyObject* {
    const Split split = SplitFloats(Numbers<uint32_t>(view), view.size() / 4, kind);
    const std::vector<uint32_t>* streams[] = {&split.steps, &split.below, &split.signed_mantissas};
    std::vector<uint8_t> bytes = {static_cast<uint8_t>(split.spare)};
    for (const auto* stream : streams) {
      const auto count = static_cast<int64_t>(stream->size());
      const Plan plan = MakePlan(stream->data(), count);
      const auto before = bytes.size(), size = static_cast<size_t>(plan.Size());
      bytes.resize(before + size + kSpare);
      WriteNumbers(stream->data(), count, plan, bytes.data() + before);
      bytes.resize(before + size);
    }
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(bytes.data()),
                                     static_cast<Py_ssize_t>(bytes.size()));
  });
}

// Reads the three streams behind `t`; what is wrong, or null.
const char* ReadSplit(const uint8_t*& at, const uint8_t* end, int64_t count, FloatKind kind,
                      Split& split) {
  if (at >= end || *at > kind.mantissa) return "more bits of a mantissa are spared than it has";
  split.spare = *at++;
  split.steps.resize(static_cast<size_t>((count + kBlock - 1) / kBlock));
  for (auto* stream : {&split.below, &split.signed_mantissas}) {
    stream->resize(static_cast<size_t>(count));
  }
  for (auto* stream : {&split.steps, &split.below, &split.signed_mantissas}) {
    const auto size = static_cast<int64_t>(stream->size());
    if (const char* wrong = ReadNumbers(at, end, size, stream->data())) return wrong;
  }
  return nullptr;
}

PyObject* DecodeFloats(PyObject*, PyObject* args) {
  PyObject* object;
  Py_ssize_t place, count;
  FloatKind kind;
  if (!PyArg_ParseTuple(args, "Onnii", &object, &place, &count, &kind.mantissa, &kind.exponent)) {
    return nullptr;
  }
  const View view(object);
  if (!view.ok()) return nullptr;
  if (place < 0 || place > view.size() || count < 1 || count > 8 * (view.size() - place)) {
    return Wrong("cut short: more values are announced than bytes hold");
  }
  return Guarded([&]() -> PyObject* {
    Split split;
    const uint8_t* at = view.data() + place;
    const char* wrong = ReadSplit(at, view.data() + view.size(), count, kind, split);
    if (wrong != nullptr) return Wrong(wrong);
    PyObject* out = PyByteArray_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(4 * count));
    if (out == nullptr) return nullptr;
    wrong = JoinFloats(split, count, kind, reinterpret_cast<uint32_t*>(PyByteArray_AS_STRING(out)));
    if (wrong == nullptr) return Py_BuildValue("Nn", out, at - view.data());
    Py_DECREF(out);
    return Wrong(wrong);
  });
}

template <typename Function>
PyCFunction Fast(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"encode", Encode, METH_O, "Numbers, a buffer of uint32, in their one form; bytes."},
    {"decode", Decode, METH_VARARGS,
     "decode(data, at, count): the numbers, a bytearray of uint32, and the place behind them."},
    {"encode_gaps", EncodeGaps, METH_VARARGS,
     "encode_gaps(positions, counts): the gaps of int32 positions, in sections; bytes."},
    {"decode_gaps", DecodeGaps, METH_VARARGS,
     "decode_gaps(data, at, counts): the positions, a bytearray of int32, and the place behind."},
    {"encode_floats", EncodeFloats, METH_VARARGS,
     "encode_floats(bits, mantissa, exponent): values in three streams; bytes."},
    {"decode_floats", DecodeFloats, METH_VARARGS,
     "decode_floats(data, at, count, mantissa, exponent): a bytearray of uint32, the place behind."},
    {"change", Fast(ChangeEntries), METH_FASTCALL,
     "change(arena, width, starts, counts, positions, bits, seeds): 4 uint32, what writing the\n"
     "bits adds to the digest. Runs of int32 positions, counted from int64 starts."},
    {"write", Fast(WriteChanges), METH_FASTCALL,
     "write(arena, width, starts, counts, positions, bits): writes them."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_codec", nullptr, -1, methods,
                          nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace cdl

PyMODINIT_FUNC PyInit__codec() { return PyModule_Create(&cdl::definition); }
