#include "changes.h"

#include "arena.h"
#include "digest.h"

namespace cdl {
namespace {

// (arena, width, starts, counts, positions, bits), checked against each other.
class ChangesCall {
 public:
  ChangesCall(PyObject* const* args, int flags)
      : arena_(args[0], flags), starts_(args[2]), counts_(args[3]), positions_(args[4]),
        bits_(args[5]), width_(static_cast<int>(PyLong_AsLong(args[1]))) {}

  // False with a Python error set where the arguments do not fit.
  bool Fits() {
    if (PyErr_Occurred() != nullptr) return false;
    const bool known = width_ == 1 || width_ == 2 || width_ == 4 || width_ == 8;
    if (known && starts_.size() == 2 * counts_.size() &&
        bits_.size() == positions_.size() / 4 * width_ && cdl::Fits(changes(), arena())) {
      return true;
    }
    Wrong("the changes do not fit the array");
    return false;
  }

  Changes changes() const {
    return {reinterpret_cast<const int64_t*>(starts_.data()), Numbers<int32_t>(counts_),
            counts_.size() / 4, Numbers<int32_t>(positions_),
            reinterpret_cast<const char*>(bits_.data()), positions_.size() / 4};
  }

  Arena arena() const {
    auto* data = const_cast<uint8_t*>(arena_.data());
    return {reinterpret_cast<char*>(data), arena_.size() / width_, width_};
  }

 private:
  View arena_, starts_, counts_, positions_, bits_;
  int width_;
};

}  // namespace

PyObject* ChangeEntries(PyObject*, PyObject* const* args, Py_ssize_t size) {
  if (size != 7) return Wrong("give arena, width, starts, counts, positions, bits, seeds");
  ChangesCall call(args, PyBUF_SIMPLE);
  const View seeds(args[6]);
  if (!seeds.ok() || !call.Fits()) return nullptr;
  if (seeds.size() != 4 * kLanes * call.changes().runs) return Wrong("give 4 seeds for each run");
  uint32_t lanes[kLanes] = {};
  AddChange(call.changes(), call.arena(), Numbers<uint32_t>(seeds), lanes);
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(lanes), sizeof lanes);
}

PyObject* WriteChanges(PyObject*, PyObject* const* args, Py_ssize_t size) {
  if (size != 6) return Wrong("give arena, width, starts, counts, positions, bits");
  ChangesCall call(args, PyBUF_WRITABLE);
  if (!call.Fits()) return nullptr;
  Write(call.changes(), call.arena());
  Py_RETURN_NONE;
}

}  // namespace cdl
