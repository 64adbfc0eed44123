#pragma once

#include <cstddef>
#include <string>

#include "cpp/bindings/bindings.h"

namespace pagedcore::bindings {

// Where an attribute lies in the C++ object of a Python object.
struct FieldPlace {
  std::byte* (*object_of)(py::handle self);
  std::ptrdiff_t offset;

  template <typename Field>
  Field& of(py::handle self) const {
    return *reinterpret_cast<Field*>(object_of(self) + offset);
  }
};

template <typename Field>
py::cpp_function make_getter(py::handle type, FieldPlace place) {
  const auto get = [place](py::handle self) -> const Field& { return place.of<Field>(self); };
  return py::cpp_function(get, py::is_method(type));
}

template <typename Field>
py::cpp_function make_setter(py::handle type, FieldPlace place) {
  const auto set = [place](py::handle self, const Field& value) { place.of<Field>(self) = value; };
  return py::cpp_function(set, py::is_method(type));
}

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

// A class of plain attributes. The compiler makes a getter and a setter for each type of attribute,
// where py::class_ needs them for each pair of class and type.
template <typename T>
class Record : public py::class_<T> {
 public:
  using py::class_<T>::class_;

  template <typename Owner, typename Field>
  Record& read(const char* name, Field Owner::* field) {
    this->def_property(name, make_getter<Field>(*this, place<Field>(field)), nullptr,
                       py::return_value_policy::reference_internal);
    return *this;
  }

  template <typename Owner, typename Field>
  Record& read_write(const char* name, Field Owner::* field) {
    this->def_property(name, make_getter<Field>(*this, place<Field>(field)),
                       make_setter<Field>(*this, place<Field>(field)),
                       py::return_value_policy::reference_internal);
    return *this;
  }

  // A constructor from keyword arguments, each the name of an attribute; the rest keep their
  // defaults.
  Record& keyword_init() {
    this->def(py::init([](const py::kwargs& keywords) {
      T value;
      set_attributes(py::cast(&value, py::return_value_policy::reference), keywords);
      return value;
    }));
    return *this;
  }

 private:
  template <typename Field>
  static FieldPlace place(Field T::* field) {
    alignas(T) static std::byte somewhere[sizeof(T)];
    const auto* object = reinterpret_cast<T*>(somewhere);
    return {[](py::handle self) { return reinterpret_cast<std::byte*>(&self.cast<T&>()); },
            reinterpret_cast<const std::byte*>(&(object->*field)) - somewhere};
  }
};

}  // namespace pagedcore::bindings
