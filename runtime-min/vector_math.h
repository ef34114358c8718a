// Float32 arithmetic of the executor that is not a matrix product. Every function has one fixed order of operations, so
// a row's result is the same in any batch, on any number of threads and with any instruction set of one build.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "format/program.h"

namespace moepack::runtime {

// e^x with a relative error below 3e-7 for x in [-87, 88]; arguments outside are clamped to that range. Cody-Waite
// reduction and a polynomial, so that loops over it vectorize (libm's expf does not).
inline float Exp(float x) {
  constexpr float kLog2e = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * kLog2e + kRound;
  const float n = shifted - kRound;
  float r = x - n * kLn2High;
  r = r - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound);
  return p * std::bit_cast<float>((exponent + 127) << 23);
}

inline float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }

// y[i] = f(x[i]); y may be x.
void Activate(Activation function, const float* x, size_t n, float* y);
// y[i] = f(gate[i]) * up[i]; y may be gate or up.
void ActivateGated(Activation function, const float* gate, const float* up, size_t n, float* y);

// x[0, n) -> e^x / sum e^x.
void Softmax(float* x, size_t n);

// One row of `width` columns through a norm node. weight and bias have node.group entries or are null.
void NormRow(const NormNode& node, const float* weight, const float* bias, const float* x, size_t width, float* y);

// cos_sin[2 i] = cos, [2 i + 1] = sin of position * inv_freq[i], times the node's magnitude.
void RotaryAngles(const RotaryNode& node, uint32_t position, float* cos_sin);
// One row of heads * head_dim columns, rotated by the angles of its position.
void RotateRow(const RotaryNode& node, const float* cos_sin, const float* x, float* y);

// One elementwise node over n columns of one row. `b` is the second operand of kAdd and kMul, with one column when
// b_broadcast; otherwise null.
void ElementwiseRow(const ElementwiseNode& node, const float* a, const float* b, bool b_broadcast, size_t n, float* y);

}  // namespace moepack::runtime
