#include "cpp/bindings/bindings.h"

PYBIND11_MODULE(_core, m) {
  using namespace pagedcore::bindings;
  m.doc() = "libpagedcore for Python. The public names are those of the package pagedcore.";
  m.attr("__version__") = PAGEDCORE_VERSION;
  bind_error(m);
  bind_memory(m);
  bind_scheduler(m);
  bind_backend(m);
  bind_model(m);
  bind_ops(m);  // after the enums of its arguments
  bind_sampling(m);
  bind_stats(m);
  bind_engine(m);
}
