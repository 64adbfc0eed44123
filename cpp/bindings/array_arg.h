#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpp/bindings/bindings.h"
#include "pagedcore/dtype.h"

namespace pagedcore::bindings {

// A dense array that Python lends for a call, without a copy: anything with the buffer protocol
// (numpy) or DLPack (torch, jax, cupy). Holds a reference to it. An array on a device is used as it
// is: what its producer has put on other streams is not waited for.
class ArrayArg {
 public:
  enum class Memory { kHost, kCuda };

  // `name` is for messages. `dtype` names the elements where the array cannot: numpy has no
  // bfloat16, so it comes as uint16 with dtype "bfloat16"; empty: the array's own.
  // Throws InvalidArgument for another memory, gaps between elements, a dtype that no op knows, or
  // an array that is read-only although `writable` is asked for.
  ArrayArg(const py::object& object, std::string name, const std::string& dtype = "",
           bool writable = false, Memory memory = Memory::kHost);

  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  DType dtype() const { return dtype_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  std::int64_t size() const;

  // Throws InvalidArgument unless the shape is `expected`, where -1 is any length.
  const ArrayArg& require_shape(const std::vector<std::int64_t>& expected) const;
  const ArrayArg& require_dtype(DType expected) const;

 private:
  void take_buffer(const py::object& object, const std::string& dtype, bool writable);
  void take_dlpack(const py::object& object, Memory memory);

  std::string name_;
  py::object owner_;
  void* data_ = nullptr;
  DType dtype_ = DType::kFloat32;
  std::vector<std::int64_t> shape_;
};

}  // namespace pagedcore::bindings
