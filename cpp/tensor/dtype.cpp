#include "pagedcore/dtype.h"

#include <array>

#include "pagedcore/error.h"

namespace pagedcore {
namespace {

struct DTypeInfo {
  DType dtype;
  int bits;
  std::string_view name;
};

constexpr std::array<DTypeInfo, 8> kDTypes = {{
    {DType::kFloat32, 32, "float32"},
    {DType::kFloat16, 16, "float16"},
    {DType::kBFloat16, 16, "bfloat16"},
    {DType::kFp8E4M3, 8, "fp8_e4m3"},
    {DType::kInt8, 8, "int8"},
    {DType::kInt4, 4, "int4"},
    {DType::kInt32, 32, "int32"},
    {DType::kInt64, 64, "int64"},
}};

}  // namespace

int dtype_bits(DType dtype) { return kDTypes[static_cast<std::size_t>(dtype)].bits; }

std::string_view dtype_name(DType dtype) { return kDTypes[static_cast<std::size_t>(dtype)].name; }

DType dtype_from_name(std::string_view name) {
  for (const DTypeInfo& info : kDTypes) {
    if (info.name == name) return info.dtype;
  }
  std::string known;
  for (const DTypeInfo& info : kDTypes)
    known += (known.empty() ? "" : ", ") + std::string(info.name);
  PAGEDCORE_REQUIRE(false, "dtype must be one of ", known, ", got '", name, "'");
}

}  // namespace pagedcore
