#include "cpp/bindings/bindings.h"

namespace pagedcore::bindings {

void bind_sampling(py::module_&) {}

}  // namespace pagedcore::bindings
