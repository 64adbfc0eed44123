#include "cpp/bindings/bindings.h"

namespace pagedcore::bindings {

void bind_memory(py::module_&) {}

}  // namespace pagedcore::bindings
