#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace pagedcore::bindings {

namespace py = pybind11;

// One function a public header; each lives in a file of its own name and only translates types.
void bind_error(py::module_& m);
void bind_memory(py::module_& m);
void bind_scheduler(py::module_& m);
void bind_backend(py::module_& m);
void bind_ops(py::module_& m);
void bind_linear(py::module_& ops);
void bind_model(py::module_& m);
void bind_sampling(py::module_& m);
void bind_stats(py::module_& m);
void bind_engine(py::module_& m);

}  // namespace pagedcore::bindings
