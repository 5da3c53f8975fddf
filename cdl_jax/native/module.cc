// XLA typed-FFI handlers for the CPU, handed to Python as capsules.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "calls.h"
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
constexpr int64_t kMostSpare = int64_t{1} << 15;     // entries whose scratch a thread keeps
constexpr int64_t kFiniteChunk = int64_t{1} << 18;

// Operands: updates, the arrays of the residuals. Results: the arrays of the indices, those of what
// is sent, which lie alike, and those of the residuals. One selection for each tensor, or a single
// one over all of them: the number of rows says which.
class TopKCall {
 public:
  TopKCall(ffi::RemainingArgs args, ffi::RemainingRets rets, Rows rows, Rows residuals)
      : args_(args), rets_(rets), rows_(rows), residuals_(residuals), tensors_(residuals.size()) {}

  std::vector<Segment> Segments(size_t first, size_t last) {
    std::vector<Segment> segments;
    int64_t begin = 0;
    for (size_t t = first; t < last; ++t) {
      const auto update = Get(args_.get<Floats>(t));
      const auto old = Get(args_.get<Floats>(tensors_ + residuals_.array(t)));
      auto residual = Get(rets_.get<Floats>(2 * rows_.arrays() + residuals_.array(t)));
      const auto size = static_cast<int64_t>(update.element_count());
      const int64_t room = static_cast<int64_t>(
          std::min(old.element_count(), residual->element_count()));
      const int64_t start = residuals_.Start(t, room);
      if (residuals_.count(t) != size) throw std::invalid_argument("a residual of another size");
      segments.push_back({update.typed_data(), old.typed_data() + start,
                          residual->typed_data() + start, begin, size});
      begin += size;
    }
    return segments;
  }

  void Run(ffi::ThreadPool& pool) {
    int64_t entries = 0;
    for (size_t t = 0; t < tensors_; ++t) {
      entries += static_cast<int64_t>(Get(args_.get<Floats>(t)).element_count());
    }
    const int64_t threads = Threads(pool, entries, kWorthThreads);
    std::deque<Selection> selections;
    for (size_t s = 0; s < rows_.size(); ++s) {
      const bool global = rows_.size() != tensors_;
      auto indices = Get(rets_.get<Ints>(rows_.array(s)));
      auto sent = Get(rets_.get<Floats>(rows_.arrays() + rows_.array(s)));
      const int64_t start = rows_.Start(s, static_cast<int64_t>(indices->element_count()));
      selections.emplace_back(Segments(global ? 0 : s, global ? tensors_ : s + 1), rows_.count(s),
                              indices->typed_data() + start, sent->typed_data() + start, threads);
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
    // The largest first, so that no thread waits long for another's last one.
    std::stable_sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) {
      return a.first->size() / a.first->parts() > b.first->size() / b.first->parts();
    });
    ParallelFor(pool, threads, static_cast<int64_t>(parts.size()), [&](int64_t i) {
      const FlushSubnormals flush;
      parts[static_cast<size_t>(i)].first->RunPart(parts[static_cast<size_t>(i)].second);
    });
  }

  ffi::RemainingArgs args_;
  ffi::RemainingRets rets_;
  Rows rows_;
  Rows residuals_;
  size_t tensors_;
};

ffi::Error TopK(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                ffi::Span<const int64_t> rows, ffi::Span<const int64_t> residuals) {
  return Guarded([&] { TopKCall(args, rets, Rows(rows), Rows(residuals)).Run(pool); });
}

// The k entries of a tensor that differ most; `scratch` has room for four tensors. Where the
// bits are the same the difference of infinities would be NaN, and come first for ever.
void MostChanged(const float* old, const float* now, int64_t size, int64_t k, int32_t* indices,
                 float* scratch) {
  float* const minus = scratch + size;
  for (int64_t i = 0; i < size; ++i) {
    const bool same = std::memcmp(old + i, now + i, sizeof(float)) == 0;
    scratch[i] = same ? 0.0f : now[i];
    minus[i] = same ? -0.0f : -old[i];
  }
  Selection selection({{scratch, minus, minus + size, 0, size}}, k, indices, minus + 2 * size,
                      /*threads=*/1);
  selection.RunPart(0);
}

// Operands: new tensors, the arrays of the old ones. Results: the arrays of their positions.
ffi::Error Changed(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                   ffi::Span<const int64_t> table, ffi::Span<const int64_t> before) {
  return Guarded([&] {
    const Rows rows(table);
    const Rows olds(before);
    const size_t tensors = rows.size();
    if (olds.size() != tensors) throw std::invalid_argument("give a row for each old tensor");
    int64_t entries = 0;
    for (size_t t = 0; t < tensors; ++t) entries += olds.count(t);
    const int64_t threads = Threads(pool, entries, kWorthThreads);
    ParallelFor(pool, threads, static_cast<int64_t>(tensors), [&](int64_t i) {
      const FlushSubnormals flush;
      const auto t = static_cast<size_t>(i);
      const auto now = Get(args.get<Floats>(t));
      const auto old = Get(args.get<Floats>(tensors + olds.array(t)));
      const float* const from =
          old.typed_data() + olds.Start(t, static_cast<int64_t>(old.element_count()));
      auto indices = Get(rets.get<Ints>(rows.array(t)));
      const int64_t start = rows.Start(t, static_cast<int64_t>(indices->element_count()));
      const auto size = static_cast<int64_t>(now.element_count());
      if (olds.count(t) != size) throw std::invalid_argument("an old tensor of another size");
      thread_local std::vector<float> spare;
      std::vector<float> own;
      std::vector<float>& scratch = size > kMostSpare ? own : spare;
      scratch.resize(std::max(scratch.size(), static_cast<size_t>(4 * size)));
      MostChanged(from, now.typed_data(), size, rows.count(t),
                  indices->typed_data() + start, scratch.data());
    });
  });
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
  ParallelFor(pool, Threads(pool, entries, kWorthThreads), static_cast<int64_t>(chunks.size()), [&](int64_t i) {
    const auto& [bits, size] = chunks[static_cast<size_t>(i)];
    if (all.load() && !AllFinite(bits, size)) all.store(false);
  });
  *finite = all.load();
}

ffi::Error Finite(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::Result<Bool> finite) {
  return Guarded([&] { CheckFinite(pool, args, finite->typed_data()); });
}

XLA_FFI_DEFINE_HANDLER(
    kTopK, TopK,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets()
        .Attr<ffi::Span<const int64_t>>("rows")
        .Attr<ffi::Span<const int64_t>>("residuals"));
XLA_FFI_DEFINE_HANDLER(
    kChanged, Changed,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets()
        .Attr<ffi::Span<const int64_t>>("rows").Attr<ffi::Span<const int64_t>>("olds"));
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
      cdl::AddHandler(module, "most_changed", cdl::kChanged) &&
      cdl::AddHandler(module, "all_finite", cdl::kFinite) &&
      cdl::AddHandler(module, "read_entries", &cdl::ReadEntriesCall) &&
      cdl::AddHandler(module, "write_entries", &cdl::WriteEntriesCall) &&
      cdl::AddHandler(module, "digest_change", &cdl::DigestChangeCall) &&
      cdl::AddHandler(module, "rewrite_entries", &cdl::RewriteEntriesCall) &&
      cdl::AddHandler(module, "full_digest", &cdl::FullDigestCall)) {
    return module;
  }
  Py_XDECREF(module);
  return nullptr;
}
