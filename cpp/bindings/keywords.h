#pragma once

#include <string>

#include "cpp/bindings/bindings.h"

namespace pagedcore::bindings {

// Sets attributes from keyword arguments. Raises TypeError naming a keyword that is no attribute.
inline void set_attributes(const py::handle& object, const py::kwargs& keywords) {
  for (const auto& [name, value] : keywords) {
    if (!py::hasattr(object, name)) {
      throw py::type_error(std::string(py::str(py::type::handle_of(object).attr("__name__"))) +
                           " has no field '" + std::string(py::str(name)) + "'");
    }
    py::setattr(object, name, value);
  }
}

// A constructor from keyword arguments, each the name of an attribute; the rest keep their
// defaults.
template <typename T, typename... Options>
void def_keyword_init(py::class_<T, Options...>& type) {
  type.def(py::init([](const py::kwargs& keywords) {
    T value;
    set_attributes(py::cast(&value, py::return_value_policy::reference), keywords);
    return value;
  }));
}

}  // namespace pagedcore::bindings
