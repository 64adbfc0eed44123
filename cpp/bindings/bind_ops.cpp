#include "cpp/bindings/bindings.h"

namespace pagedcore::bindings {

void bind_ops(py::module_&) {}

}  // namespace pagedcore::bindings
