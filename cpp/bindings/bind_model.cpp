#include "cpp/bindings/bindings.h"

namespace pagedcore::bindings {

void bind_model(py::module_&) {}

}  // namespace pagedcore::bindings
