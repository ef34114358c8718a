// Float32 arithmetic of the executor that is not a matrix product. Every function has one fixed order of operations, so
// a row's result is the same in any batch, on any number of threads and with any instruction set of one build.
#pragma once

#include <cstddef>
#include <cstdint>

#include "format/program.h"
#include "runtime-min/lanes.h"

namespace moepack::runtime {

// ExpLanes of one number.
inline float Exp(float x) {
  Lanes v = x - Lanes{};
  ExpLanes(&v);
  return v[0];
}

// y[i] = f(x[i]); y may be x.
void Activate(Activation function, const float* x, size_t n, float* y);
// y[i] = f(gate[i]) * (up[i] + offset) with the record's limits; y may be gate or up.
void ActivateGated(const ActivationRecord& record, const float* gate, const float* up, size_t n, float* y);

// y[i] = the nearest to x[i] of 255 values, whole steps of max |x| / 127 either way; x as it is where a step would be no
// number. y may be x.
void RoundTo8Bits(const float* x, size_t n, float* y);

// x[0, n) -> e^x / sum e^x.
void Softmax(float* x, size_t n);

// One row of `width` columns through a norm node. weight and bias have node.group entries or are null.
void NormRow(const NormNode& node, const float* weight, const float* bias, const float* x, size_t width, float* y);

// cos_sin[2 i] = cos, [2 i + 1] = sin of position * inv_freq[i], times the node's magnitude; both are those of long
// sequences when `longer`.
void RotaryAngles(const RotaryNode& node, bool longer, uint32_t position, float* cos_sin);
// One row of heads * head_dim columns, rotated by the angles of its position.
void RotateRow(const RotaryNode& node, const float* cos_sin, const float* x, float* y);

// One elementwise node over n columns of one row. `b` is the second operand of kAdd and kMul, with one column when
// b_broadcast; otherwise null.
void ElementwiseRow(const ElementwiseNode& node, const float* a, const float* b, bool b_broadcast, size_t n, float* y);

}  // namespace moepack::runtime
