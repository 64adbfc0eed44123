#include "pagedcore/error.h"

namespace pagedcore::detail {

void throw_invalid_argument(const std::string& message) { throw InvalidArgument(message); }

void throw_internal_error(const char* file, int line, const char* condition,
                          const std::string& values) {
  throw InternalError(
      concat(file, ":", line, ": check failed: ", condition, values.empty() ? "" : ": ", values));
}

}  // namespace pagedcore::detail
