#include "compressor/pass/quantize.h"

#include <algorithm>
#include <cmath>

#include "compressor/pass/trellis.h"

namespace moepack {
namespace {

// Range multipliers of the search. The fewer the levels, the more clipping of the extremes can pay.
struct Line {
  float first, last;
  int steps;
};
Line MultiplierLine(int bits) {
  if (bits >= 8) return {0.96f, 1.01f, 4};
  if (bits >= 6) return {0.86f, 1.03f, 10};
  if (bits >= 5) return {0.78f, 1.04f, 14};
  if (bits >= 4) return {0.66f, 1.06f, 20};
  return {0.40f, 1.10f, 28};
}
float LinePoint(const Line& line, int i) {
  return line.first + (line.last - line.first) * static_cast<float>(i) / static_cast<float>(line.steps - 1);
}

constexpr float kMaxF16 = 65504.0f;
float ToF16Grid(float value) { return F16ToF32(F32ToF16(std::clamp(value, -kMaxF16, kMaxF16))); }

}  // namespace

GroupGrid GridSearch::Find(std::span<const float> weights, std::span<const float> importance) {
  const auto n = static_cast<Eigen::Index>(weights.size());
  weights_ = Eigen::Map<const Eigen::ArrayXf>(weights.data(), n);
  importance_ = Eigen::Map<const Eigen::ArrayXf>(importance.data(), n);
  // A common factor keeps sums of products far from the ends of the float range.
  const float top = n > 0 ? importance_.maxCoeff() : 0;
  if (top > 0) {
    importance_ /= top;
  } else {
    importance_.setOnes(n);
  }
  weights_ = (importance_ > 0).select(weights_, 0.0f);
  weighted_ = weights_ * importance_;
  return has_min_ ? FindWithMin() : FindSymmetric();
}

double GridSearch::ErrorOf(const GroupGrid& grid) {
  if (has_min_) {
    const float top = static_cast<float>((1 << bits_) - 1);
    const float inverse = grid.scale != 0 ? 1.0f / grid.scale : 0.0f;
    codes_ = ((weights_ - grid.min) * inverse).rint().max(0.0f).min(top) * grid.scale + grid.min;
  } else {
    const float half = static_cast<float>(1 << (bits_ - 1));
    const float inverse = grid.scale != 0 ? 1.0f / grid.scale : 0.0f;
    codes_ = (weights_ * inverse).rint().max(-half).min(half - 1) * grid.scale;
  }
  return ((codes_ - weights_).square() * importance_).sum();
}

GroupGrid GridSearch::FindSymmetric() {
  Eigen::Index where = 0;
  const float top = weights_.size() > 0 ? weights_.abs().maxCoeff(&where) : 0;
  if (!(top > 0)) return {};
  const float extreme = weights_[where];
  const float half = static_cast<float>(1 << (bits_ - 1));
  const Line line = MultiplierLine(bits_);
  float best_scale = ToF16Grid(-extreme / half);
  float best_gain = -1;
  // For codes c the best scale is A/B with A = sum h w c, B = sum h c^2, and it lowers the error by A^2/B.
  for (const float levels : {-half, half - 1}) {
    for (int i = 0; i < line.steps; ++i) {
      const float inverse = levels / (extreme * LinePoint(line, i));
      codes_ = (weights_ * inverse).rint().max(-half).min(half - 1);
      const float a = (weighted_ * codes_).sum();
      const float b = (importance_ * codes_ * codes_).sum();
      if (b > 0 && a * a / b > best_gain) {
        best_gain = a * a / b;
        best_scale = a / b;
      }
    }
  }
  GroupGrid best{ToF16Grid(best_scale), 0};
  double best_error = ErrorOf(best);
  for (int round = 0; round < 3 && best.scale != 0; ++round) {
    codes_ = (weights_ / best.scale).rint().max(-half).min(half - 1);
    const float b = (importance_ * codes_ * codes_).sum();
    if (!(b > 0)) break;
    const GroupGrid refit{ToF16Grid((weighted_ * codes_).sum() / b), 0};
    const double error = ErrorOf(refit);
    if (!(error < best_error)) break;
    best = refit;
    best_error = error;
  }
  return best;
}

// Least-squares scale and min for the codes that (scale, min) gives; false when the codes are all alike.
bool GridSearch::RefitWithMin(float scale, float min, GroupGrid* out) {
  const float top = static_cast<float>((1 << bits_) - 1);
  codes_ = ((weights_ - min) / scale).rint().max(0.0f).min(top);
  const double h = importance_.sum(), hw = weighted_.sum();
  const double hc = (importance_ * codes_).sum(), hcc = (importance_ * codes_ * codes_).sum();
  const double hwc = (weighted_ * codes_).sum();
  const double determinant = h * hcc - hc * hc;
  if (!(determinant > 1e-6 * h * hcc)) return false;
  out->scale = ToF16Grid(static_cast<float>((h * hwc - hc * hw) / determinant));
  out->min = ToF16Grid(static_cast<float>((hcc * hw - hc * hwc) / determinant));
  return out->scale != 0;
}

GroupGrid GridSearch::FindWithMin() {
  if (weights_.size() == 0) return {};
  // Weights without importance do not widen the range.
  const float low = (importance_ > 0).select(weights_, kMaxF16).minCoeff();
  const float high = (importance_ > 0).select(weights_, -kMaxF16).maxCoeff();
  const float levels = static_cast<float>((1 << bits_) - 1);
  GroupGrid best{ToF16Grid((high - low) / levels), ToF16Grid(low)};
  if (best.scale == 0) return {0, ToF16Grid(low)};
  double best_error = ErrorOf(best);
  const Line line = MultiplierLine(bits_);
  static constexpr int kSides = 6;
  for (int i = 0; i < kSides * kSides; ++i) {
    const float cut = (1.0f - line.first) / kSides;
    const int from_below = i / kSides, from_above = i % kSides;  // steps by which each end moves in
    const float from = low + (high - low) * 0.5f * cut * static_cast<float>(from_below);
    const float to = high - (high - low) * 0.5f * cut * static_cast<float>(from_above);
    GroupGrid candidate;
    if (!(to > from) || !RefitWithMin((to - from) / levels, from, &candidate)) continue;
    const double error = ErrorOf(candidate);
    if (error < best_error) {
      best = candidate;
      best_error = error;
    }
  }
  return best;
}

uint8_t NearestCode(const Codec& codec, const GroupGrid& grid, float w) {
  const float top = static_cast<float>((1 << codec.bits) - 1);
  const float offset = codec.has_min ? 0.0f : static_cast<float>(1 << (codec.bits - 1));
  if (grid.scale == 0) return static_cast<uint8_t>(offset);
  const float inverse = 1.0f / grid.scale;
  const float code = std::rint((codec.has_min ? w - grid.min : w) * inverse) + offset;
  return static_cast<uint8_t>(std::clamp(code, 0.0f, top));
}

float RoundToElement(Element element, float w) {
  switch (element) {
    case Element::kBf16:
      return Bf16ToF32(F32ToBf16(w));
    case Element::kF16:
      return ToF16Grid(w);
    case Element::kF32:
    case Element::kGroupInt:
    case Element::kTrellis:
      break;
  }
  return w;
}

QuantizedMatrix MakeQuantized(const Codec& codec, const MatrixShape& shape) {
  QuantizedMatrix out;
  out.codec = codec;
  out.shape = shape;
  const size_t count = shape.rows * shape.cols;
  if (codec.coded()) {
    out.codes.resize(count);
    out.scales.resize(shape.rows * GroupsPerRow(codec, shape.cols));
    if (codec.has_min) out.mins.resize(out.scales.size());
  } else {
    out.values.resize(count);
  }
  if (codec.sparsity != Sparsity::kNone) out.mask.assign(count, 1);
  return out;
}

namespace {

void QuantizeRowToGrid(std::span<const float> row, std::span<const float> importance, size_t r, GridSearch* search,
                       QuantizedMatrix* out) {
  const size_t cols = row.size();
  const size_t groups = GroupsPerRow(out->codec, cols);
  const size_t width = GroupWidth(out->codec, cols);
  for (size_t g = 0; g < groups; ++g) {
    const size_t begin = g * width, size = std::min(width, cols - begin);
    const GroupGrid grid = search->Find(row.subspan(begin, size), importance.subspan(begin, size));
    out->scales[r * groups + g] = F32ToF16(grid.scale);
    if (out->codec.has_min) out->mins[r * groups + g] = F32ToF16(grid.min);
    for (size_t c = begin; c < begin + size; ++c) {
      const bool kept = out->mask.empty() || out->mask[r * cols + c] != 0;
      out->codes[r * cols + c] = kept ? NearestCode(out->codec, grid, row[c]) : uint8_t{0};
    }
  }
}

}  // namespace

void QuantizeRowsNearest(const Matrix& weights, std::span<const float> importance, size_t row_begin, size_t row_end,
                         QuantizedMatrix* out) {
  const size_t cols = out->shape.cols;
  const bool masked = !out->mask.empty();
  if (out->codec.element == Element::kTrellis) return TrellisRows(weights, importance, row_begin, row_end, out);
  if (!out->codec.coded()) {
    for (size_t i = row_begin * cols; i < row_end * cols; ++i) {
      out->values[i] = masked && out->mask[i] == 0 ? 0.0f : RoundToElement(out->codec.element, weights.data()[i]);
    }
    return;
  }
  GridSearch search(out->codec.bits, out->codec.has_min);
  std::vector<float> row_importance(cols, 1.0f);
  for (size_t r = row_begin; r < row_end; ++r) {
    for (size_t c = 0; c < cols; ++c) {
      const bool kept = !masked || out->mask[r * cols + c] != 0;
      row_importance[c] = !kept ? 0.0f : importance.empty() ? 1.0f : importance[c];
    }
    QuantizeRowToGrid({weights.data() + r * cols, cols}, row_importance, r, &search, out);
  }
}

}  // namespace moepack
