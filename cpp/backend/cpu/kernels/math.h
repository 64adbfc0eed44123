#pragma once

#include PAGEDCORE_SIMD_HEADER

#include "pagedcore/ops.h"

// Functions of float32 vectors, each within 2 units in the last place unless it says otherwise
// (tests/backend/test_activation.py measures them). NaN gives NaN. The polynomials of exp, exp2 and
// tanh are those of Cephes (Moshier), erf's rational function is Eigen's.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// 2^x; 0 below the smallest normal number. exp2(-inf) is 0, exp2(0) is 1. REQUIRES: x <= 127.
inline Vec exp2(Vec x) {
  const Vec bounded = max(splat(-126.0f), x);
  const Vec n = round(bounded);
  const Vec r = bounded - n;
  Vec p = splat(1.535336188319500e-4f);
  p = fma(p, r, splat(1.339887440266574e-3f));
  p = fma(p, r, splat(9.618437357674640e-3f));
  p = fma(p, r, splat(5.550332471162809e-2f));
  p = fma(p, r, splat(2.402264791363012e-1f));
  p = fma(p, r, splat(6.931472028550421e-1f));
  p = fma(p, r, splat(1.0f));
  return select_less(x, splat(-126.0f), zero(), p * exp2_integral(n));
}

// e^x; 0 where that is below the smallest normal number, infinite from 2^127.5 on.
inline Vec exp(Vec x) {
  const Vec lowest = splat(-87.336544f);
  const Vec highest = splat(88.37626f);
  const Vec bounded = min(highest, max(lowest, x));
  const Vec n = round(bounded * splat(1.44269504f));
  // ln 2 in two parts, so that n times the first is exact.
  Vec r = fma(n, splat(-0.693359375f), bounded);
  r = fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + splat(1.0f);
  const Vec y = select_less(highest, x, splat(__builtin_inff()), p * exp2_integral(n));
  return select_less(x, lowest, zero(), y);
}

inline Vec tanh(Vec x) {
  const Vec z = x * x;
  Vec p = splat(-5.70498872745e-3f);
  p = fma(p, z, splat(2.06390887954e-2f));
  p = fma(p, z, splat(-5.37397155531e-2f));
  p = fma(p, z, splat(1.33314422036e-1f));
  p = fma(p, z, splat(-3.33332819422e-1f));
  const Vec small = fma(p * z, x, x);
  const Vec size = max(zero() - x, x);
  const Vec large = splat(1.0f) - splat(2.0f) / (exp(size + size) + splat(1.0f));
  const Vec signed_large = select_less(x, zero(), zero() - large, large);
  return select_less(size, splat(0.625f), small, signed_large);
}

// Within 4 units in the last place.
inline Vec erf(Vec x) {
  const Vec bounded = max(splat(-4.0f), min(splat(4.0f), x));
  const Vec z = bounded * bounded;
  Vec a = splat(-2.72614225801306e-10f);
  a = fma(a, z, splat(2.77068142495902e-08f));
  a = fma(a, z, splat(-2.10102402082508e-06f));
  a = fma(a, z, splat(-5.69250639462346e-05f));
  a = fma(a, z, splat(-7.34990630326855e-04f));
  a = fma(a, z, splat(-2.95459980854025e-03f));
  a = fma(a, z, splat(-1.60960333262415e-02f));
  Vec b = splat(-1.45660718464996e-05f);
  b = fma(b, z, splat(-2.13374055278905e-04f));
  b = fma(b, z, splat(-1.68282697438203e-03f));
  b = fma(b, z, splat(-7.37332916720468e-03f));
  b = fma(b, z, splat(-1.42647390514189e-02f));
  return bounded * a / b;
}

inline Vec activate(Activation activation, Vec x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (splat(1.0f) + exp(zero() - x));
    case Activation::kGelu: {
      const Vec half = splat(0.5f) * x;
      return fma(half, erf(x * splat(0.70710678f)), half);
    }
    case Activation::kGeluTanh: {
      const Vec half = splat(0.5f) * x;
      const Vec inner = fma(splat(0.044715f) * x * x, x, x) * splat(0.79788456f);
      return fma(half, tanh(inner), half);
    }
    case Activation::kRelu:
      return max(zero(), x);
    default:
      return x;
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
