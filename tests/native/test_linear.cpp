// Linear at the edges of memory: every tensor ends where a page that cannot be read begins, and
// each row of a batch has the bits that it has alone.
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "pagedcore/backend.h"
#include "pagedcore/error.h"
#include "tests/native/check.h"

namespace {

using pagedcore::DType;

// `bytes` that end at a page without access.
class GuardedBytes {
 public:
  explicit GuardedBytes(std::int64_t bytes) {
    const std::int64_t page = sysconf(_SC_PAGESIZE);
    mapped_ = (bytes + page - 1) / page * page + page;
    base_ = static_cast<char*>(
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK(base_ != MAP_FAILED);
    CHECK(mprotect(base_ + mapped_ - page, page, PROT_NONE) == 0);
    data_ = base_ + mapped_ - page - bytes;
  }
  ~GuardedBytes() { munmap(base_, mapped_); }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  char* data() const { return data_; }

 private:
  std::int64_t mapped_ = 0;
  char* base_ = nullptr;
  char* data_ = nullptr;
};

// Numbers that float32, float16 and bfloat16 all hold exactly.
float round_coarsely(float x) { return std::ldexp(std::nearbyint(std::ldexp(x, 6)), -6); }

void write(DType dtype, float value, char* data, std::int64_t i) {
  if (dtype == DType::kFloat32) {
    std::memcpy(data + 4 * i, &value, 4);
  } else if (dtype == DType::kBFloat16) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const auto half = static_cast<std::uint16_t>(bits >> 16);
    std::memcpy(data + 2 * i, &half, 2);
  } else {
    const auto half = static_cast<_Float16>(value);
    std::memcpy(data + 2 * i, &half, 2);
  }
}

struct Matrix {
  Matrix(DType type, std::int64_t num_rows, std::int64_t num_columns, std::mt19937& random)
      : dtype(type),
        rows(num_rows),
        columns(num_columns),
        bytes(num_rows * num_columns * pagedcore::dtype_bits(type) / 8) {
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    for (std::int64_t i = 0; i < rows * columns; ++i) {
      values.push_back(round_coarsely(uniform(random)));
      write(dtype, values.back(), bytes.data(), i);
    }
  }
  DType dtype;
  std::int64_t rows;
  std::int64_t columns;
  std::vector<float> values;
  GuardedBytes bytes;
};

void check_shape(pagedcore::Backend& backend, DType weights, DType operand, std::int64_t rows,
                 std::int64_t in, std::int64_t out) {
  std::mt19937 random(static_cast<unsigned>(rows * 1000003 + in * 1009 + out));
  const Matrix w(weights, out, in, random);
  const Matrix x(operand, rows, in, random);
  const GuardedBytes y(rows * out * 4);
  pagedcore::LinearParams params;
  params.num_rows = rows;
  params.in_features = in;
  params.x = x.bytes.data();
  params.x_dtype = operand;
  params.x_stride = in;
  params.weights[0].data = w.bytes.data();
  params.weights[0].dtype = weights;
  params.weights[0].out_features = out;
  params.y = y.data();
  params.y_stride = out;
  backend.linear(params);

  const auto* batch = reinterpret_cast<const float*>(y.data());
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t j = 0; j < out; ++j) {
      double expected = 0.0;
      double size = 0.0;
      for (std::int64_t k = 0; k < in; ++k) {
        const double term = static_cast<double>(w.values[j * in + k]) * x.values[r * in + k];
        expected += term;
        size += std::fabs(term);
      }
      float actual;
      std::memcpy(&actual, batch + r * out + j, 4);
      // The sum of `in` float32 terms errs by at most in * 2^-24 of the sum of their sizes.
      if (!(std::fabs(actual - expected) <= 1e-6 + size * in * 0x1p-24)) {
        std::fprintf(stderr, "%s weights %s x %s rows %d in %d out %d: y[%d][%d] = %g, not %g\n",
                     backend.description().c_str(), std::string(dtype_name(weights)).c_str(),
                     std::string(dtype_name(operand)).c_str(), int(rows), int(in), int(out), int(r),
                     int(j), actual, expected);
        CHECK(false);
      }
    }
  }

  const GuardedBytes alone(out * 4);
  const std::int64_t row_bytes = in * pagedcore::dtype_bits(operand) / 8;
  for (std::int64_t r = 0; r < rows; ++r) {
    params.num_rows = 1;
    params.x = x.bytes.data() + r * row_bytes;
    params.y = alone.data();
    backend.linear(params);
    CHECK(std::memcmp(alone.data(), batch + r * out, out * 4) == 0);
  }
}

}  // namespace

int main() {
  int num_isas = 0;
  for (const char* isa : {"avx2", "avx512", "avx512_bf16", "neon"}) {
    for (const int threads : {1, 2}) {
      std::unique_ptr<pagedcore::Backend> backend;
      try {
        backend = pagedcore::make_cpu_backend({.num_threads = threads, .isa = isa});
      } catch (const pagedcore::InvalidArgument&) {
        continue;
      }
      ++num_isas;
      for (const DType weights : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
        for (const DType operand : {DType::kFloat32, weights}) {
          for (const int rows : {1, 2, 3, 5, 8, 9, 13, 31}) {
            for (const auto& [in, out] :
                 {std::pair{1, 1}, {7, 17}, {33, 16}, {64, 70}, {111, 50}}) {
              check_shape(*backend, weights, operand, rows, in, out);
            }
          }
          check_shape(*backend, weights, operand, 14, 1187, 33);  // sums pass through memory
        }
      }
    }
  }
  CHECK(num_isas > 0);
}
