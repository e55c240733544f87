// SPDX-License-Identifier: Apache-2.0
// Elementwise functions on vectors. NaN stays NaN.

inline Vec clamp(Vec x, float low, float high) { return smaller(splat(high), larger(splat(low), x)); }

// e^x to 2 ulp: x = n ln 2 + r, a polynomial for e^r (Cephes), and n added to the exponent.
inline Vec exponential(Vec x) {
  x = clamp(x, -87.f, 88.f);
  const Vec n = round_to_int(x * 1.44269504f);
  Vec r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return scale_by_power_of_two(p * r * r + r + 1.f, n);
}

inline Vec sigmoid(Vec x) { return 1.f / (1.f + exponential(-x)); }

// Near 0 the exponentials would cancel: the odd series there.
inline Vec hyperbolic_tangent(Vec x) {
  const Vec s = x * x;
  const Vec near = x + x * s * (-0.333332300f + s * (0.133314580f + s * (-0.0536f + s * 0.0199f)));
  const Vec far = 2.f * sigmoid(2.f * x) - 1.f;
  return s < 0.0625f ? near : far;
}

// erf of Abramowitz & Stegun 7.1.26 is good to 1.5e-7; the product with x keeps that relative to x.
inline Vec gelu(Vec x) {
  const Vec a = x * 0.70710678f, m = a < 0.f ? -a : a;
  const Vec t = 1.f / (1.f + 0.3275911f * m);
  Vec p = 1.061405429f * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = (p * t + 0.254829592f) * t;
  const Vec tail = 0.5f * p * exponential(-(m * m));
  return a < 0.f ? x * tail : x * (1.f - tail);
}

// All but none and clamp, which are common and short.
template <int V>
__attribute__((noinline)) void activate_slowly(Vec (&x)[V], const Epilogue& e) {
  switch (e.activation) {
    case Activation::kNone:
    case Activation::kClamp:
      return;
    case Activation::kGelu:
      for (Vec& v : x) v = gelu(v);
      return;
    case Activation::kGeluTanh:
      for (Vec& v : x) v = v * sigmoid(1.59576912f * (v + 0.044715f * v * v * v));
      return;
    case Activation::kSilu:
      for (Vec& v : x) v = v * sigmoid(v);
      return;
    case Activation::kHardswish:
      for (Vec& v : x) v = v * clamp(v + 3.f, 0.f, 6.f) * (1.f / 6);
      return;
    case Activation::kHardsigmoid:
      for (Vec& v : x) v = clamp(v + 3.f, 0.f, 6.f) * (1.f / 6);
      return;
    case Activation::kSigmoid:
      for (Vec& v : x) v = sigmoid(v);
      return;
    case Activation::kTanh:
      for (Vec& v : x) v = hyperbolic_tangent(v);
      return;
  }
}

template <int V>
ALWAYS_INLINE void activate(Vec (&x)[V], const Epilogue& e) {
  if (e.activation == Activation::kClamp) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) x[v] = clamp(x[v], e.low, e.high);
  } else if (e.activation != Activation::kNone) {
    // Through a copy, so that x itself may stay in registers.
    Vec copy[V];
    for (int v = 0; v < V; ++v) copy[v] = x[v];
    activate_slowly<V>(copy, e);
    for (int v = 0; v < V; ++v) x[v] = copy[v];
  }
}
