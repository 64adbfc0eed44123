#include "cpp/bindings/bindings.h"
#include "pagedcore/backend.h"

namespace pagedcore::bindings {

void bind_backend(py::module_& m) {
  py::class_<Backend, py::smart_holder>(m, "Backend")
      .def_property_readonly("description", &Backend::description)
      .def_property_readonly("is_host", &Backend::is_host)
      .def_property_readonly("allocated_bytes", &Backend::allocated_bytes);

  m.def(
      "make_cpu_backend",
      [](int num_threads, const std::string& isa) {
        return make_cpu_backend({.num_threads = num_threads, .isa = isa});
      },
      py::arg("num_threads") = 0, py::arg("isa") = "");
  m.def(
      "make_cuda_backend", [](int device) { return make_cuda_backend({.device = device}); },
      py::arg("device") = 0);
}

}  // namespace pagedcore::bindings
