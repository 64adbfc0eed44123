#include "cpp/bindings/bindings.h"

namespace pagedcore::bindings {

void bind_engine(py::module_&) {}

}  // namespace pagedcore::bindings
