#include "runtime-min/vector_math.h"

#include <algorithm>
#include <cmath>

namespace moepack::runtime {
namespace {

constexpr float kSqrtHalf = 0.70710678118654752f;
constexpr float kGeluScale = 0.79788456080286536f, kGeluCubic = 0.044715f;  // sqrt(2 / pi); Hendrycks and Gimpel 2016

float Gelu(float x) { return 0.5f * x * (1.0f + std::erf(x * kSqrtHalf)); }
float GeluTanh(float x) { return 0.5f * x * (1.0f + std::tanh(kGeluScale * (x + kGeluCubic * x * x * x))); }

// Sums of f(x[i]) in eight interleaved partial sums, added pairwise: vectorizes without reassociation by the compiler.
template <typename F>
float LaneSum(const float* x, size_t n, F f) {
  float lanes[8] = {};
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (size_t j = 0; j < 8; ++j) lanes[j] += f(x[i + j]);
  }
  for (size_t j = 0; i < n; ++i, ++j) lanes[j] += f(x[i]);
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

template <typename F>
void Map(const float* x, size_t n, float* y, F f) {
  for (size_t i = 0; i < n; ++i) y[i] = f(x[i]);
}

void NormGroup(const NormNode& node, const float* weight, const float* bias, const float* x, size_t n, float* y) {
  const float count = static_cast<float>(n);
  float mean = 0;
  if (node.kind == NormKind::kLayer) mean = LaneSum(x, n, [](float v) { return v; }) / count;
  const float variance = LaneSum(x, n, [mean](float v) { return (v - mean) * (v - mean); }) / count;
  const float scale = 1.0f / std::sqrt(variance + node.eps);
  const float offset = node.one_plus_weight ? 1.0f : 0.0f;
  if (weight == nullptr) {
    for (size_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * scale;
  } else {
    for (size_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * scale * (weight[i] + offset);
  }
  if (bias == nullptr) return;
  for (size_t i = 0; i < n; ++i) y[i] += bias[i];
}

}  // namespace

void Activate(Activation function, const float* x, size_t n, float* y) {
  switch (function) {
    case Activation::kSilu:
      return Map(x, n, y, [](float v) { return v * Sigmoid(v); });
    case Activation::kGelu:
      return Map(x, n, y, Gelu);
    case Activation::kGeluTanh:
      return Map(x, n, y, GeluTanh);
    case Activation::kRelu:
      return Map(x, n, y, [](float v) { return v > 0 ? v : 0.0f; });
    case Activation::kIdentity:
      return Map(x, n, y, [](float v) { return v; });
  }
}

// In pieces through the stack: y may be an operand, and the compiler vectorizes only what cannot overlap.
void ActivateGated(Activation function, const float* gate, const float* up, size_t n, float* y) {
  constexpr size_t kPiece = 64;
  float piece[kPiece];
  for (size_t begin = 0; begin < n; begin += kPiece) {
    const size_t count = std::min(kPiece, n - begin);
    Activate(function, gate + begin, count, piece);
    for (size_t i = 0; i < count; ++i) piece[i] *= up[begin + i];
    std::copy(piece, piece + count, y + begin);
  }
}

void Softmax(float* x, size_t n) {
  float largest = x[0];
  for (size_t i = 1; i < n; ++i) largest = std::max(largest, x[i]);
  for (size_t i = 0; i < n; ++i) x[i] = Exp(x[i] - largest);
  const float sum = LaneSum(x, n, [](float v) { return v; });
  for (size_t i = 0; i < n; ++i) x[i] /= sum;
}

void NormRow(const NormNode& node, const float* weight, const float* bias, const float* x, size_t width, float* y) {
  for (size_t begin = 0; begin < width; begin += node.group) NormGroup(node, weight, bias, x + begin, node.group, y + begin);
}

void RotaryAngles(const RotaryNode& node, uint32_t position, float* cos_sin) {
  for (size_t i = 0; i < node.inv_freq.size(); ++i) {
    // The angle is rounded to float32 as the models were trained with; only cosine and sine are exact.
    const double angle = static_cast<float>(position) * node.inv_freq[i];
    cos_sin[2 * i] = static_cast<float>(std::cos(angle)) * node.magnitude;
    cos_sin[2 * i + 1] = static_cast<float>(std::sin(angle)) * node.magnitude;
  }
}

void RotateRow(const RotaryNode& node, const float* cos_sin, const float* x, float* y) {
  const size_t half = node.rotary_dim / 2;
  for (uint32_t h = 0; h < node.heads; ++h, x += node.head_dim, y += node.head_dim) {
    for (size_t i = 0; i < half; ++i) {
      const size_t first = node.interleaved ? 2 * i : i, second = node.interleaved ? 2 * i + 1 : i + half;
      const float a = x[first], b = x[second], c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
      y[first] = a * c - b * s;
      y[second] = b * c + a * s;
    }
    for (size_t i = node.rotary_dim; i < node.head_dim; ++i) y[i] = x[i];
  }
}

void ElementwiseRow(const ElementwiseNode& node, const float* a, const float* b, bool b_broadcast, size_t n, float* y) {
  const float alpha = node.alpha;
  switch (node.op) {
    case ElementOp::kAdd:
      if (b_broadcast) return Map(a, n, y, [v = b[0]](float x) { return x + v; });
      for (size_t i = 0; i < n; ++i) y[i] = a[i] + b[i];
      return;
    case ElementOp::kMul:
      if (b_broadcast) return Map(a, n, y, [v = b[0]](float x) { return x * v; });
      for (size_t i = 0; i < n; ++i) y[i] = a[i] * b[i];
      return;
    case ElementOp::kScale:
      return Map(a, n, y, [alpha](float x) { return x * alpha; });
    case ElementOp::kSigmoid:
      return Map(a, n, y, Sigmoid);
    case ElementOp::kSilu:
      return Activate(Activation::kSilu, a, n, y);
    case ElementOp::kGelu:
      return Activate(Activation::kGelu, a, n, y);
    case ElementOp::kGeluTanh:
      return Activate(Activation::kGeluTanh, a, n, y);
    case ElementOp::kRelu:
      return Activate(Activation::kRelu, a, n, y);
    case ElementOp::kClamp:
      return Map(a, n, y, [alpha](float x) { return std::min(std::max(x, -alpha), alpha); });
  }
}

}  // namespace moepack::runtime
