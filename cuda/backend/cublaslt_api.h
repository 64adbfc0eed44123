#pragma once

#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>

// The few declarations of cuBLASLt's stable ABI that are used, so that building needs no header of
// it; abi_check/ checks them against the header wherever there is one.
namespace pagedcore::cuda::lt {

using Handle = void*;
using Desc = void*;
using Layout = void*;
using Preference = void*;

struct Algo {
  std::uint64_t data[8];
};
struct HeuristicResult {
  Algo algo;
  std::size_t workspace_size;
  int state;
  float waves_count;
  int reserved[4];
};
static_assert(sizeof(HeuristicResult) == 96);

constexpr int kInvalidValue = 7;
constexpr int kNotSupported = 15;
constexpr int kCompute32F = 68;
constexpr int kDescTransA = 3;
constexpr int kDescTransB = 4;
constexpr int kOpN = 0;
constexpr int kOpT = 1;
constexpr int kPreferenceMaxWorkspaceBytes = 1;

using Create = int (*)(Handle*);
using Destroy = int (*)(Handle);
using GetVersion = std::size_t (*)();
using Matmul = int (*)(Handle, Desc, const void* alpha, const void* a, Layout, const void* b,
                       Layout, const void* beta, const void* c, Layout, void* d, Layout,
                       const Algo*, void* workspace, std::size_t, cudaStream_t);
using DescCreate = int (*)(Desc*, int compute_type, cudaDataType_t scale_type);
using DescSetAttribute = int (*)(Desc, int, const void*, std::size_t);
using DescDestroy = int (*)(Desc);
using LayoutCreate = int (*)(Layout*, cudaDataType_t, std::uint64_t rows, std::uint64_t cols,
                             std::int64_t ld);
using LayoutDestroy = int (*)(Layout);
using PreferenceCreate = int (*)(Preference*);
using PreferenceSetAttribute = int (*)(Preference, int, const void*, std::size_t);
using PreferenceDestroy = int (*)(Preference);
using GetHeuristic = int (*)(Handle, Desc, Layout a, Layout b, Layout c, Layout d, Preference,
                             int requested, HeuristicResult*, int* found);

}  // namespace pagedcore::cuda::lt
