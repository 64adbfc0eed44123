#include "cpp/bindings/array_arg.h"

#include <memory>
#include <sstream>
#include <string_view>

#include "cpp/bindings/dlpack.h"
#include "pagedcore/error.h"

namespace pagedcore::bindings {
namespace {

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::ostringstream text;
  const char* separator = "[";
  for (const std::int64_t length : shape) {
    text << separator;
    if (length < 0) {
      text << "any";
    } else {
      text << length;
    }
    separator = ", ";
  }
  text << (shape.empty() ? "[]" : "]");
  return text.str();
}

// "<f4", "f", ... of the buffer protocol as a kind and a size; uint16 stands for bfloat16 where
// the caller says so.
DType buffer_dtype(const std::string& name, const py::buffer_info& info, const std::string& dtype) {
  const char kind = info.format.empty() ? '?' : info.format.back();
  if (dtype == "bfloat16" && kind == 'H') return DType::kBFloat16;
  const std::string_view integers = "bhilq";
  std::string found = "of format '" + info.format + "'";
  if (kind == 'f') found = "float32";
  if (kind == 'e') found = "float16";
  if (integers.find(kind) != std::string_view::npos) {
    found = "int" + std::to_string(info.itemsize * 8);
  }
  if (kind == 'H') found = "uint16";
  PAGEDCORE_REQUIRE(dtype.empty() || dtype == found, name, " must be ", dtype, ", got ", found);
  PAGEDCORE_REQUIRE(kind != 'H', name, " is uint16: pass dtype='bfloat16' if it holds bfloat16");
  PAGEDCORE_REQUIRE(found == "float32" || found == "float16" || found == "int8" ||
                        found == "int32" || found == "int64",
                    name, " must be float32, float16, bfloat16, int8, int32 or int64, got ", found);
  return dtype_from_name(found);
}

DType dlpack_dtype(const std::string& name, dlpack::DataType type) {
  const int bits = type.bits;
  if (type.lanes == 1 && type.code == dlpack::kBfloat && bits == 16) return DType::kBFloat16;
  if (type.lanes == 1 && type.code == dlpack::kFloat && bits == 16) return DType::kFloat16;
  if (type.lanes == 1 && type.code == dlpack::kFloat && bits == 32) return DType::kFloat32;
  if (type.lanes == 1 && type.code == dlpack::kInt && bits == 8) return DType::kInt8;
  if (type.lanes == 1 && type.code == dlpack::kInt && bits == 32) return DType::kInt32;
  if (type.lanes == 1 && type.code == dlpack::kInt && bits == 64) return DType::kInt64;
  PAGEDCORE_REQUIRE(false, name,
                    " must be float32, float16, bfloat16, int8, int32 or int64, got DLPack type ",
                    int{type.code}, " of ", bits, " bits");
}

// Whether strides in elements are those of a dense row-major array.
template <typename Stride>
bool is_dense(const std::vector<std::int64_t>& shape, const Stride& stride) {
  std::int64_t expected = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    if (shape[i] == 0) return true;
    if (shape[i] != 1 && stride(i) != expected) return false;
    expected *= shape[i];
  }
  return true;
}

}  // namespace

ArrayArg::ArrayArg(const py::object& object, std::string name, const std::string& dtype,
                   bool writable, Memory memory)
    : name_(std::move(name)), owner_(object) {
  if (PyObject_CheckBuffer(object.ptr()) != 0) {
    PAGEDCORE_REQUIRE(memory == Memory::kHost, name_,
                      " must be on a CUDA device, as the backend's memory is, got host memory");
    take_buffer(object, dtype, writable);
    return;
  }
  PAGEDCORE_REQUIRE(py::hasattr(object, "__dlpack__"), name_,
                    " must be a numpy array or offer DLPack, as torch tensors do, got ",
                    py::str(py::type::of(object)).cast<std::string>());
  take_dlpack(object, memory);
  PAGEDCORE_REQUIRE(dtype.empty() || dtype_ == dtype_from_name(dtype), name_, " must be ", dtype,
                    ", got ", dtype_name(dtype_));
}

void ArrayArg::take_buffer(const py::object& object, const std::string& dtype, bool writable) {
  const py::buffer_info info = py::reinterpret_borrow<py::buffer>(object).request();
  PAGEDCORE_REQUIRE(!writable || !info.readonly, name_, " must be writable");
  dtype_ = buffer_dtype(name_, info, dtype);
  shape_.assign(info.shape.begin(), info.shape.end());
  const auto stride = [&](std::size_t i) { return info.strides[i] / info.itemsize; };
  PAGEDCORE_REQUIRE(is_dense(shape_, stride), name_,
                    " must be dense and row-major (numpy.ascontiguousarray makes a copy that is)");
  data_ = info.ptr;
}

void ArrayArg::take_dlpack(const py::object& object, Memory memory) {
  const auto device = object.attr("__dlpack_device__")().cast<py::tuple>();
  const int type = py::int_(device[0]).cast<int>();
  const bool is_host = type == dlpack::kCpu || type == dlpack::kCudaHost;
  const bool fits = memory == Memory::kHost ? is_host : type == dlpack::kCuda;
  PAGEDCORE_REQUIRE(
      fits, name_,
      memory == Memory::kHost ? " must be in host memory" : " must be on a CUDA device",
      ", as the backend's memory is, got DLPack device ", type);
  constexpr int kWaitForNothing = -1;
  const py::object lent = is_host ? object.attr("__dlpack__")()
                                  : object.attr("__dlpack__")(py::arg("stream") = kWaitForNothing);
  const auto capsule = lent.cast<py::capsule>();
  auto* managed = capsule.get_pointer<dlpack::ManagedTensor>();
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  const std::unique_ptr<dlpack::ManagedTensor, void (*)(dlpack::ManagedTensor*)> release(
      managed, [](dlpack::ManagedTensor* tensor) {
        if (tensor->deleter != nullptr) tensor->deleter(tensor);
      });
  const dlpack::Tensor& tensor = managed->tensor;
  dtype_ = dlpack_dtype(name_, tensor.dtype);
  shape_.assign(tensor.shape, tensor.shape + tensor.ndim);
  const auto stride = [&](std::size_t i) { return tensor.strides[i]; };
  PAGEDCORE_REQUIRE(tensor.strides == nullptr || is_dense(shape_, stride), name_,
                    " must be dense and row-major (tensor.contiguous() is)");
  data_ = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
}

std::int64_t ArrayArg::size() const {
  std::int64_t size = 1;
  for (const std::int64_t length : shape_) size *= length;
  return size;
}

const ArrayArg& ArrayArg::require_shape(const std::vector<std::int64_t>& expected) const {
  bool fits = shape_.size() == expected.size();
  for (std::size_t i = 0; fits && i < expected.size(); ++i) {
    fits = expected[i] < 0 || expected[i] == shape_[i];
  }
  PAGEDCORE_REQUIRE(fits, name_, " must have shape ", shape_text(expected), ", got ",
                    shape_text(shape_));
  return *this;
}

const ArrayArg& ArrayArg::require_dtype(DType expected) const {
  PAGEDCORE_REQUIRE(dtype_ == expected, name_, " must be ", dtype_name(expected), ", got ",
                    dtype_name(dtype_));
  return *this;
}

}  // namespace pagedcore::bindings
