#include <cstdint>
#include <optional>

#include "cpp/bindings/bindings.h"
#include "cpp/bindings/record.h"
#include "pagedcore/backend.h"
#include "pagedcore/cpu_limits.h"

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
      "make_cuda_backend",
      [](int device, std::optional<std::uintptr_t> stream) {
        CudaBackendOptions options;
        options.device = device;
        if (stream) options.stream = reinterpret_cast<void*>(*stream);
        return make_cuda_backend(options);
      },
      py::arg("device") = 0, py::arg("stream") = py::none());

  Record<CpuLimits>(m, "CpuLimits")
      .read("dram_gb_s", &CpuLimits::dram_gb_s)
      .read("l2_gb_s", &CpuLimits::l2_gb_s)
      .read("f32_gflop_s", &CpuLimits::f32_gflop_s)
      .read("bf16_gflop_s", &CpuLimits::bf16_gflop_s);
  m.def(
      "measure_cpu_limits",
      [](int num_threads, const std::string& isa) {
        return measure_cpu_limits({.num_threads = num_threads, .isa = isa});
      },
      py::arg("num_threads") = 0, py::arg("isa") = "", py::call_guard<py::gil_scoped_release>());
}

}  // namespace pagedcore::bindings
