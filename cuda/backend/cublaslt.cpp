#include "cuda/backend/cublaslt.h"

#include <dlfcn.h>

#include <cstdlib>
#include <utility>
#include <vector>

#include "cuda/backend/cublaslt_api.h"
#include "cuda/common/launch.h"
#include "pagedcore/error.h"

namespace pagedcore::cuda {
namespace {

void check(int status, const char* call) {
  if (status != 0) {
    throw DeviceError(detail::concat("cuBLASLt call ", call, " failed with status ", status));
  }
}

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return CUDA_R_16F;
    case DType::kBFloat16:
      return CUDA_R_16BF;
    case DType::kFloat32:
      return CUDA_R_32F;
    default:
      break;
  }
  PAGEDCORE_REQUIRE(false, "linear on CUDA takes float32, float16 or bfloat16, got ",
                    dtype_name(dtype));
}

std::string folder_of_this_library() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&folder_of_this_library), &info) == 0) return ".";
  const std::string path = info.dli_fname;
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

void* open_library(std::string& path) {
  const std::string name = "libcublasLt.so." + std::to_string(CUDART_VERSION / 1000);
  if (void* loaded = dlopen(name.c_str(), RTLD_NOW | RTLD_NOLOAD)) {
    path = name;
    return loaded;
  }
  std::vector<std::string> places;
  if (const char* chosen = std::getenv("PAGEDCORE_CUBLASLT"); chosen != nullptr && *chosen != 0) {
    places.push_back(chosen);
  }
  const std::string here = folder_of_this_library();
  // libpagedcore lies in site-packages/pagedcore/lib, or beside the extension module.
  for (const char* up : {"/../..", "/.."}) {
    places.push_back(here + up + "/nvidia/cu13/lib/" + name);
    places.push_back(here + up + "/nvidia/cublas/lib/" + name);
  }
  if (const char* home = std::getenv("CUDA_HOME")) {
    places.push_back(std::string(home) + "/lib64/" + name);
  }
  places.push_back(name);
  for (const std::string& place : places) {
    if (void* library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL)) {
      path = place;
      return library;
    }
  }
  throw BackendUnavailable(detail::concat(
      name,
      " was not found; install it with: pip install 'nvidia-cublas>=13,<14', or name the file "
      "in PAGEDCORE_CUBLASLT"));
}

template <typename Function>
Function load(void* library, const char* name) {
  void* symbol = dlsym(library, name);
  if (symbol == nullptr) throw BackendUnavailable(detail::concat("cuBLASLt has no ", name));
  return reinterpret_cast<Function>(symbol);
}

}  // namespace

struct CublasLt::Api {
  lt::Create create;
  lt::Destroy destroy;
  lt::Matmul matmul;
  lt::DescCreate desc_create;
  lt::DescSetAttribute desc_set;
  lt::DescDestroy desc_destroy;
  lt::LayoutCreate layout_create;
  lt::LayoutDestroy layout_destroy;
  lt::PreferenceCreate preference_create;
  lt::PreferenceSetAttribute preference_set;
  lt::PreferenceDestroy preference_destroy;
  lt::GetHeuristic get_heuristic;
};

// The descriptors of one shape and the algorithm of its row class.
struct CublasLt::Algorithm {
  explicit Algorithm(const Api& api) : api(api) {}
  ~Algorithm() {
    if (desc != nullptr) api.desc_destroy(desc);
    for (lt::Layout layout : {a, b, d}) {
      if (layout != nullptr) api.layout_destroy(layout);
    }
  }
  const Api& api;
  lt::Desc desc = nullptr;
  lt::Layout a = nullptr, b = nullptr, d = nullptr;
  lt::HeuristicResult result{};
};

CublasLt::CublasLt() : api_(std::make_unique<Api>()) {
  std::string path;
  void* library = open_library(path);
  const std::size_t version = load<lt::GetVersion>(library, "cublasLtGetVersion")();
  *api_ = {load<lt::Create>(library, "cublasLtCreate"),
           load<lt::Destroy>(library, "cublasLtDestroy"),
           load<lt::Matmul>(library, "cublasLtMatmul"),
           load<lt::DescCreate>(library, "cublasLtMatmulDescCreate"),
           load<lt::DescSetAttribute>(library, "cublasLtMatmulDescSetAttribute"),
           load<lt::DescDestroy>(library, "cublasLtMatmulDescDestroy"),
           load<lt::LayoutCreate>(library, "cublasLtMatrixLayoutCreate"),
           load<lt::LayoutDestroy>(library, "cublasLtMatrixLayoutDestroy"),
           load<lt::PreferenceCreate>(library, "cublasLtMatmulPreferenceCreate"),
           load<lt::PreferenceSetAttribute>(library, "cublasLtMatmulPreferenceSetAttribute"),
           load<lt::PreferenceDestroy>(library, "cublasLtMatmulPreferenceDestroy"),
           load<lt::GetHeuristic>(library, "cublasLtMatmulAlgoGetHeuristic")};
  check(api_->create(&handle_), "cublasLtCreate");
  description_ = detail::concat("cuBLASLt ", version / 10000, ".", version / 100 % 100, ".",
                                version % 100, " (", path, ")");
}

CublasLt::~CublasLt() {
  algorithms_.clear();
  if (handle_ != nullptr) api_->destroy(handle_);
}

std::int64_t CublasLt::row_class(std::int64_t num_rows) {
  std::int64_t rows = 16;
  while (rows < num_rows && rows < 1024) rows *= 2;
  return rows >= num_rows ? rows : ceil_div(num_rows, 1024) * 1024;
}

std::unique_ptr<CublasLt::Algorithm> CublasLt::choose(const GemmArgs& g, std::int64_t rows) {
  auto algorithm = std::make_unique<Algorithm>(*api_);
  Algorithm& m = *algorithm;
  const int trans_a = g.transposed ? lt::kOpN : lt::kOpT, trans_b = lt::kOpN;
  check(api_->desc_create(&m.desc, lt::kCompute32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  check(api_->desc_set(m.desc, lt::kDescTransA, &trans_a, sizeof(trans_a)), "set transa");
  check(api_->desc_set(m.desc, lt::kDescTransB, &trans_b, sizeof(trans_b)), "set transb");
  // Column-major: y^T[out, rows] = W[out, in] x^T[in, rows].
  const auto lay_out = [&](std::int64_t num_rows) {
    for (lt::Layout* layout : {&m.a, &m.b, &m.d}) {
      if (*layout != nullptr) api_->layout_destroy(std::exchange(*layout, nullptr));
    }
    const std::int64_t a_rows = g.transposed ? g.out_features : g.in_features;
    const std::int64_t a_cols = g.transposed ? g.in_features : g.out_features;
    const cudaDataType_t in = data_type(g.dtype), out = data_type(g.y_dtype);
    check(api_->layout_create(&m.a, in, a_rows, a_cols, a_rows), "create layout a");
    check(api_->layout_create(&m.b, in, g.in_features, num_rows, g.x_stride), "create layout b");
    check(api_->layout_create(&m.d, out, g.out_features, num_rows, g.y_stride), "create layout d");
  };
  lt::Preference preference = nullptr;
  check(api_->preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  const std::size_t bytes = kWorkspaceBytes;
  int found = 0;
  int status =
      api_->preference_set(preference, lt::kPreferenceMaxWorkspaceBytes, &bytes, sizeof(bytes));
  lay_out(rows);
  if (status == 0) {
    status =
        api_->get_heuristic(handle_, m.desc, m.a, m.b, m.d, m.d, preference, 1, &m.result, &found);
  }
  api_->preference_destroy(preference);
  check(status, "cublasLtMatmulAlgoGetHeuristic");
  PAGEDCORE_CHECK(found == 1, "no cuBLASLt algorithm for ", g.num_rows, " x ", g.in_features, " x ",
                  g.out_features);
  lay_out(g.num_rows);
  return algorithm;
}

void CublasLt::matmul(const GemmArgs& g, void* workspace, cudaStream_t stream) {
  const Key key{g.num_rows, g.in_features, g.out_features, g.x_stride,  g.y_stride,
                g.dtype,    g.y_dtype,     g.transposed,   g.accumulate};
  std::unique_ptr<Algorithm>& slot = algorithms_[key];
  const bool is_new = slot == nullptr;
  if (is_new) slot = choose(g, row_class(g.num_rows));
  const float alpha = 1.0f, beta = g.accumulate ? 1.0f : 0.0f;
  const auto multiply = [&] {
    return api_->matmul(handle_, slot->desc, &alpha, g.weight, slot->a, g.x, slot->b, &beta, g.y,
                        slot->d, g.y, slot->d, &slot->result.algo, workspace, kWorkspaceBytes,
                        stream);
  };
  int status = multiply();
  // Not every algorithm of a class can do each of its sizes.
  if (is_new && (status == lt::kNotSupported || status == lt::kInvalidValue)) {
    slot = choose(g, g.num_rows);
    status = multiply();
  }
  check(status, "cublasLtMatmul");
}

}  // namespace pagedcore::cuda
