#include "pagedcore/error.h"

#include "cpp/bindings/bindings.h"

namespace pagedcore::bindings {

void bind_error(py::module_& m) {
  const auto error = py::register_exception<Error>(m, "Error", PyExc_RuntimeError);
  const auto subclass = [&](PyObject* builtin) {
    return py::make_tuple(error, py::reinterpret_borrow<py::object>(builtin));
  };
  py::register_exception<InternalError>(m, "InternalError", error);
  py::register_exception<QueueFull>(m, "QueueFull", error);
  py::register_exception<DeviceError>(m, "DeviceError", error);
  py::register_exception<BackendUnavailable>(m, "BackendUnavailable", error);
  py::register_exception<InvalidArgument>(m, "InvalidArgument", subclass(PyExc_ValueError));
  py::register_exception<OutOfMemory>(m, "OutOfMemory", subclass(PyExc_MemoryError));
}

}  // namespace pagedcore::bindings
