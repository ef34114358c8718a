#include "runtime-min/vector_math.h"

#include <algorithm>
#include <cmath>

namespace moepack::runtime {
namespace {

constexpr float kSqrtHalf = 0.70710678118654752f;
constexpr float kGeluScale = 0.79788456080286536f, kGeluCubic = 0.044715f;  // sqrt(2 / pi); Hendrycks and Gimpel 2016

float Gelu(float x) { return 0.5f * x * (1.0f + std::erf(x * kSqrtHalf)); }
float GeluTanh(float x) { return 0.5f * x * (1.0f + std::tanh(kGeluScale * (x + kGeluCubic * x * x * x))); }

void SigmoidLanes(Lanes* v) {
  *v = -*v;
  ExpLanes(v);
  *v = 1.0f / (1.0f + *v);
}
void SiluLanes(Lanes* v) {
  Lanes sigmoid = *v;
  SigmoidLanes(&sigmoid);
  *v *= sigmoid;
}
void ReluLanes(Lanes* v) { *v = *v > 0.0f ? *v : Lanes{}; }
template <float (*kFunction)(float)>
void EachLane(Lanes* v) {
  for (size_t i = 0; i < kLanes; ++i) (*v)[i] = kFunction((*v)[i]);
}

// Sum of f(x[i]), as eight interleaved sums.
template <typename F>
float LaneSum(const float* x, size_t n, const F& f) {
  Lanes sum = {}, v = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    v = LanesAt(x + i).lanes;
    f(&v);
    sum += v;
  }
  for (size_t lane = 0; i < n; ++i, ++lane) {
    Lanes last = x[i] - Lanes{};
    f(&last);
    sum[lane] += last[0];
  }
  return SumLanes(sum);
}

void NormGroup(const NormNode& node, const float* weight, const float* bias, const float* x, size_t n, float* y) {
  const float count = static_cast<float>(n);
  float mean = 0;
  if (node.kind == NormKind::kLayer) mean = LaneSum(x, n, [](Lanes*) {}) / count;
  const float variance = LaneSum(x, n, [mean](Lanes* v) { *v = (*v - mean) * (*v - mean); }) / count;
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

// An activation with limits, a sigmoid scale or an offset, through the stack because y may be an operand.
void ActivateClamped(const ActivationRecord& record, const float* gate, const float* up, size_t n, float* y) {
  constexpr size_t kPiece = 64;
  float gates[kPiece], ups[kPiece];
  const float limit = record.limit > 0 ? record.limit : INFINITY;
  const float scale = record.sigmoid_scale > 0 ? record.sigmoid_scale : 1.0f;
  for (size_t begin = 0; begin < n; begin += kPiece) {
    const size_t count = std::min(kPiece, n - begin);
    for (size_t i = 0; i < count; ++i) {
      gates[i] = std::min(gate[begin + i], limit);
      ups[i] = std::min(std::max(up[begin + i], -limit), limit) + record.up_offset;
    }
    if (record.function == Activation::kSilu) {
      MapLanes(gates, count, gates, [scale](Lanes* v) {
        Lanes sigmoid = *v * scale;
        SigmoidLanes(&sigmoid);
        *v *= sigmoid;
      });
    } else {
      Activate(record.function, gates, count, gates);
    }
    MapLanes2(gates, ups, count, y + begin, [](Lanes* a, const Lanes& u) { *a *= u; });
  }
}

}  // namespace

void Activate(Activation function, const float* x, size_t n, float* y) {
  switch (function) {
    case Activation::kSilu:
      return MapLanes(x, n, y, SiluLanes);
    case Activation::kGelu:
      return MapLanes(x, n, y, EachLane<Gelu>);
    case Activation::kGeluTanh:
      return MapLanes(x, n, y, EachLane<GeluTanh>);
    case Activation::kRelu:
      return MapLanes(x, n, y, ReluLanes);
    case Activation::kIdentity:
      return MapLanes(x, n, y, [](Lanes*) {});
  }
}

void ActivateGated(const ActivationRecord& record, const float* gate, const float* up, size_t n, float* y) {
  if (!record.plain()) return ActivateClamped(record, gate, up, n, y);
  const Activation function = record.function;
  if (function == Activation::kSilu) {
    return MapLanes2(gate, up, n, y, [](Lanes* g, const Lanes& u) {
      SiluLanes(g);
      *g *= u;
    });
  }
  constexpr size_t kPiece = 64;  // through the stack, because y may be an operand
  float piece[kPiece];
  for (size_t begin = 0; begin < n; begin += kPiece) {
    const size_t count = std::min(kPiece, n - begin);
    Activate(function, gate + begin, count, piece);
    MapLanes2(piece, up + begin, count, y + begin, [](Lanes* a, const Lanes& u) { *a *= u; });
  }
}

void RoundTo8Bits(const float* x, size_t n, float* y) {
  constexpr float kMost = 127, kTiny = 0x1p-100f;  // below it the reciprocal of the step would overflow
  float largest = 0;
  for (size_t i = 0; i < n; ++i) largest = std::fabs(x[i]) > largest || std::isnan(x[i]) ? std::fabs(x[i]) : largest;
  const bool coarse = largest >= kTiny && std::isfinite(largest);
  const float inverse = kMost / largest, step = largest / kMost;
  for (size_t i = 0; i < n; ++i) y[i] = coarse ? std::nearbyint(x[i] * inverse) * step : x[i];
}

void Softmax(float* x, size_t n) {
  const float largest = *std::max_element(x, x + n);
  MapLanes(x, n, x, [largest](Lanes* v) {
    *v -= largest;
    ExpLanes(v);
  });
  const float sum = LaneSum(x, n, [](Lanes*) {});
  MapLanes(x, n, x, [sum](Lanes* v) { *v /= sum; });
}

void NormRow(const NormNode& node, const float* weight, const float* bias, const float* x, size_t width, float* y) {
  for (size_t begin = 0; begin < width; begin += node.group) NormGroup(node, weight, bias, x + begin, node.group, y + begin);
}

void RotaryAngles(const RotaryNode& node, bool longer, uint32_t position, float* cos_sin) {
  const std::vector<float>& inv_freq = longer ? node.long_inv_freq : node.inv_freq;
  const float magnitude = longer ? node.long_magnitude : node.magnitude;
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    // The angle is rounded to float32 as the models were trained with; only cosine and sine are exact.
    const double angle = static_cast<float>(position) * inv_freq[i];
    cos_sin[2 * i] = static_cast<float>(std::cos(angle)) * magnitude;
    cos_sin[2 * i + 1] = static_cast<float>(std::sin(angle)) * magnitude;
  }
}

void RotateRow(const RotaryNode& node, const float* cos_sin, const float* x, float* y) {
  const size_t half = node.rotary_dim / 2;
  for (uint32_t h = 0; h < node.heads; ++h, x += node.head_dim, y += node.head_dim) {
    for (size_t i = 0; i < half; ++i) {
      const size_t first = node.offset + (node.interleaved ? 2 * i : i);
      const size_t second = node.interleaved ? first + 1 : first + half;
      const float a = x[first], b = x[second], c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
      y[first] = a * c - b * s;
      y[second] = b * c + a * s;
    }
    for (size_t i = 0; i < node.offset; ++i) y[i] = x[i];
    for (size_t i = node.offset + node.rotary_dim; i < node.head_dim; ++i) y[i] = x[i];
  }
}

void ElementwiseRow(const ElementwiseNode& node, const float* a, const float* b, bool b_broadcast, size_t n, float* y) {
  const float alpha = node.alpha;
  switch (node.op) {
    case ElementOp::kAdd:
      if (b_broadcast) return MapLanes(a, n, y, [s = b[0]](Lanes* v) { *v += s; });
      return MapLanes2(a, b, n, y, [](Lanes* v, const Lanes& w) { *v += w; });
    case ElementOp::kMul:
      if (b_broadcast) return MapLanes(a, n, y, [s = b[0]](Lanes* v) { *v *= s; });
      return MapLanes2(a, b, n, y, [](Lanes* v, const Lanes& w) { *v *= w; });
    case ElementOp::kScale:
      return MapLanes(a, n, y, [alpha](Lanes* v) { *v *= alpha; });
    case ElementOp::kSigmoid:
      return MapLanes(a, n, y, SigmoidLanes);
    case ElementOp::kSilu:
      return Activate(Activation::kSilu, a, n, y);
    case ElementOp::kGelu:
      return Activate(Activation::kGelu, a, n, y);
    case ElementOp::kGeluTanh:
      return Activate(Activation::kGeluTanh, a, n, y);
    case ElementOp::kRelu:
      return Activate(Activation::kRelu, a, n, y);
    case ElementOp::kClamp:
      for (size_t i = 0; i < n; ++i) y[i] = std::min(std::max(a[i], -alpha), alpha);
      return;
  }
}

}  // namespace moepack::runtime
