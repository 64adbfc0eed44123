#include "cpp/bindings/bindings.h"

namespace pagedcore::bindings {

void bind_scheduler(py::module_&) {}

}  // namespace pagedcore::bindings
