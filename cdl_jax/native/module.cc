// XLA typed-FFI handlers for the CPU, handed to Python as capsules.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>
#include <deque>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "entries.h"
#include "parallel.h"
#include "scan.h"
#include "select.h"
#include "xla/ffi/api/ffi.h"

namespace cdl {
namespace {

namespace ffi = xla::ffi;

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using Bool = ffi::BufferR0<ffi::PRED>;

constexpr int64_t kWorthThreads = int64_t{1} << 17;  // entries; below it waking one costs more
constexpr int64_t kFiniteChunk = int64_t{1} << 18;

int64_t Threads(ffi::ThreadPool& pool, int64_t entries) {
  return entries < kWorthThreads ? 1 : std::max<int64_t>(1, pool.num_threads());
}

// A buffer of the wrong kind is a fault of the Python side: the error becomes the call's.
template <typename T>
T Get(ffi::ErrorOr<T> got) {
  if (!got.has_value()) throw std::invalid_argument(std::string(got.error().message()));
  return *got;
}

template <typename Body>
ffi::Error Guarded(Body body) {
  try {
    body();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory in a native kernel");
  } catch (const std::exception& error) {
    return ffi::Error::InvalidArgument(error.what());
  }
  return ffi::Error::Success();
}

// Operands: updates, residuals. Results: indices, sent, residuals. One selection
// for each tensor, or a single one over all of them: the number of results says which.
class TopKCall {
 public:
  TopKCall(ffi::RemainingArgs args, ffi::RemainingRets rets)
      : args_(args), rets_(rets), tensors_(args.size() / 2),
        selections_((rets.size() - tensors_) / 2) {}

  std::vector<Segment> Segments(size_t first, size_t last) {
    std::vector<Segment> segments;
    int64_t begin = 0;
    for (size_t t = first; t < last; ++t) {
      const auto update = Get(args_.get<Floats>(t));
      const auto old = Get(args_.get<Floats>(tensors_ + t));
      auto residual = Get(rets_.get<Floats>(2 * selections_ + t));
      const auto size = static_cast<int64_t>(update.element_count());
      segments.push_back(
          {update.typed_data(), old.typed_data(), residual->typed_data(), begin, size});
      begin += size;
    }
    return segments;
  }

  void Run(ffi::ThreadPool& pool) {
    int64_t entries = 0;
    for (size_t t = 0; t < tensors_; ++t) {
      entries += static_cast<int64_t>(Get(args_.get<Floats>(t)).element_count());
    }
    const int64_t threads = Threads(pool, entries);
    std::deque<Selection> selections;
    for (size_t s = 0; s < selections_; ++s) {
      const bool global = selections_ != tensors_;
      auto indices = Get(rets_.get<Ints>(s));
      auto sent = Get(rets_.get<Floats>(selections_ + s));
      selections.emplace_back(Segments(global ? 0 : s, global ? tensors_ : s + 1),
                              static_cast<int64_t>(indices->element_count()),
                              indices->typed_data(), sent->typed_data(), threads);
    }
    RunSelections(pool, threads, selections);
  }

 private:
  static void RunSelections(ffi::ThreadPool& pool, int64_t threads,
                            std::deque<Selection>& selections) {
    std::vector<std::pair<Selection*, int64_t>> parts;
    for (Selection& selection : selections) {
      for (int64_t i = 0; i < selection.parts(); ++i) parts.emplace_back(&selection, i);
    }
    ParallelFor(pool, threads, static_cast<int64_t>(parts.size()), [&](int64_t i) {
      const FlushSubnormals flush;
      parts[static_cast<size_t>(i)].first->RunPart(parts[static_cast<size_t>(i)].second);
    });
  }

  ffi::RemainingArgs args_;
  ffi::RemainingRets rets_;
  size_t tensors_;
  size_t selections_;
};

ffi::Error TopK(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  return Guarded([&] { TopKCall(args, rets).Run(pool); });
}

void CheckFinite(ffi::ThreadPool& pool, ffi::RemainingArgs args, bool* finite) {
  std::vector<std::pair<const uint32_t*, int64_t>> chunks;
  int64_t entries = 0;
  for (size_t t = 0; t < args.size(); ++t) {
    const auto array = Get(args.get<Floats>(t));
    const auto size = static_cast<int64_t>(array.element_count());
    const auto* bits = static_cast<const uint32_t*>(array.untyped_data());
    for (int64_t at = 0; at < size; at += kFiniteChunk) {
      chunks.emplace_back(bits + at, std::min(kFiniteChunk, size - at));
    }
    entries += size;
  }
  std::atomic<bool> all{true};
  ParallelFor(pool, Threads(pool, entries), static_cast<int64_t>(chunks.size()), [&](int64_t i) {
    const auto& [bits, size] = chunks[static_cast<size_t>(i)];
    if (all.load() && !AllFinite(bits, size)) all.store(false);
  });
  *finite = all.load();
}

ffi::Error Finite(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::Result<Bool> finite) {
  return Guarded([&] { CheckFinite(pool, args, finite->typed_data()); });
}

// Operands: the leaves of all sections, then the positions of each, then, to write, the bits of
// each, and what is only to be waited for. Results: bits of each section, or the leaves. `leaves` says how many a section has.
class EntriesCall {
 public:
  EntriesCall(ffi::RemainingArgs args, ffi::Span<const int64_t> leaves)
      : args_(args), counts_(leaves) {
    for (const int64_t count : counts_) leaves_ += static_cast<size_t>(count);
  }

  size_t leaves() const { return leaves_; }
  size_t sections() const { return counts_.size(); }
  ffi::AnyBuffer leaf(size_t t) const { return Get(args_.get<ffi::AnyBuffer>(t)); }
  ffi::AnyBuffer bits(size_t s) const {
    return Get(args_.get<ffi::AnyBuffer>(leaves_ + counts_.size() + s));
  }

  // `data(t)` is where leaf t lies, `bits` where the section's values do.
  template <typename Data>
  Section Make(size_t s, Data data, ffi::AnyBuffer bits) const {
    const auto positions = Get(args_.get<Ints>(leaves_ + s));
    Section section{{}, positions.typed_data(), static_cast<int64_t>(positions.element_count()),
                    static_cast<char*>(bits.untyped_data()), Width(bits)};
    size_t first = 0;
    for (size_t before = 0; before < s; ++before) first += static_cast<size_t>(counts_[before]);
    int64_t begin = 0;
    for (size_t t = first; t < first + static_cast<size_t>(counts_[s]); ++t) {
      const auto size = static_cast<int64_t>(leaf(t).element_count());
      section.leaves.push_back({data(t), begin, size, Width(leaf(t))});
      if (section.leaves.back().width > section.width) {
        throw std::invalid_argument("a section's bits are narrower than one of its leaves");
      }
      begin += size;
    }
    return section;
  }

 private:
  static int Width(const ffi::AnyBuffer& buffer) {
    return static_cast<int>(ffi::ByteWidth(buffer.element_type()));
  }

  ffi::RemainingArgs args_;
  ffi::Span<const int64_t> counts_;
  size_t leaves_ = 0;
};

ffi::Error Read(ffi::RemainingArgs args, ffi::RemainingRets rets,
                ffi::Span<const int64_t> leaves) {
  return Guarded([&] {
    const EntriesCall call(args, leaves);
    const auto data = [&](size_t t) { return static_cast<char*>(call.leaf(t).untyped_data()); };
    for (size_t s = 0; s < call.sections(); ++s) {
      ReadEntries(call.Make(s, data, *Get(rets.get<ffi::AnyBuffer>(s))));
    }
  });
}

ffi::Error Write(ffi::RemainingArgs args, ffi::RemainingRets rets,
                 ffi::Span<const int64_t> leaves) {
  return Guarded([&] {
    const EntriesCall call(args, leaves);
    const auto data = [&](size_t t) {
      return static_cast<char*>(Get(rets.get<ffi::AnyBuffer>(t))->untyped_data());
    };
    for (size_t t = 0; t < call.leaves(); ++t) {
      const ffi::AnyBuffer old = call.leaf(t);
      if (old.untyped_data() != data(t)) std::memcpy(data(t), old.untyped_data(), old.size_bytes());
    }
    for (size_t s = 0; s < call.sections(); ++s) WriteEntries(call.Make(s, data, call.bits(s)));
  });
}

XLA_FFI_DEFINE_HANDLER(
    kRead, Read,
    ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<ffi::Span<const int64_t>>("leaves"));
XLA_FFI_DEFINE_HANDLER(
    kWrite, Write,
    ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<ffi::Span<const int64_t>>("leaves"));
XLA_FFI_DEFINE_HANDLER(
    kTopK, TopK,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER(
    kFinite, Finite, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<Bool>());

PyObject* PyUsePath(PyObject*, PyObject* name) {
  const char* text = PyUnicode_AsUTF8(name);
  return text == nullptr ? nullptr : PyBool_FromLong(UsePath(text));
}

PyMethodDef methods[] = {
    {"use_path", PyUsePath, METH_O,
     "Run the kernels by 'scalar', 'avx2' or 'avx512'; False where this machine cannot."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", nullptr, -1, methods,
                          nullptr, nullptr, nullptr, nullptr};

bool AddHandler(PyObject* module, const char* name, XLA_FFI_Handler* handler) {
  PyObject* capsule = PyCapsule_New(reinterpret_cast<void*>(handler), nullptr, nullptr);
  if (capsule != nullptr && PyModule_AddObject(module, name, capsule) == 0) return true;
  Py_XDECREF(capsule);
  return false;
}

}  // namespace
}  // namespace cdl

PyMODINIT_FUNC PyInit__kernels() {
  PyObject* module = PyModule_Create(&cdl::definition);
  if (module != nullptr && cdl::AddHandler(module, "error_feedback_top_k", cdl::kTopK) &&
      cdl::AddHandler(module, "all_finite", cdl::kFinite) &&
      cdl::AddHandler(module, "read_entries", cdl::kRead) &&
      cdl::AddHandler(module, "write_entries", cdl::kWrite)) {
    return module;
  }
  Py_XDECREF(module);
  return nullptr;
}
