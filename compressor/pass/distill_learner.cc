#include "compressor/pass/distill_learner.h"

#include <algorithm>
#include <cmath>

#include "compressor/pass/quantize.h"

namespace moepack {
namespace {

constexpr float kMeanDecay = 0.9f, kSquareDecay = 0.98f, kTiny = 1e-20f;

}  // namespace

void StepSize::CorrectFor(uint64_t step) {
  mean_scale = static_cast<float>(1 / (1 - std::pow(static_cast<double>(kMeanDecay), static_cast<double>(step))));
  square_scale = static_cast<float>(1 / (1 - std::pow(static_cast<double>(kSquareDecay), static_cast<double>(step))));
}

float Adam::Move(size_t i, float gradient, const StepSize& size) {
  mean_[i] += (1 - kMeanDecay) * (gradient - mean_[i]);
  square_[i] += (1 - kSquareDecay) * (gradient * gradient - square_[i]);
  return mean_[i] * size.mean_scale / (std::sqrt(square_[i] * size.square_scale) + kTiny);
}

Learner::Learner(const TensorRef& tensor, QuantizedMatrix encoded, Matrix* weights)
    : tensor_(tensor), encoded_(std::move(encoded)), weights_(weights) {
  const size_t count = encoded_.shape.rows * encoded_.shape.cols;
  weights_->resize(static_cast<Eigen::Index>(encoded_.shape.rows), static_cast<Eigen::Index>(encoded_.shape.cols));
  Dequantize(encoded_, {weights_->data(), count});
  adam_.Resize(count);
  if (encoded_.codec.element != Element::kGroupInt) {
    size_t kept_count = 0;
    for (size_t i = 0; i < count; ++i) kept_count += kept(i);
    unit_ = static_cast<float>(weights_->cast<double>().norm() /
                               std::sqrt(static_cast<double>(std::max<size_t>(kept_count, 1))));
    return;
  }
  latent_.assign(encoded_.codes.begin(), encoded_.codes.end());
  for (uint16_t bits : encoded_.scales) scales_.push_back(F16ToF32(bits));
  for (uint16_t bits : encoded_.mins) mins_.push_back(F16ToF32(bits));
  for (float scale : scales_) base_.push_back(std::abs(scale));
  scale_adam_.Resize(scales_.size());
  min_adam_.Resize(mins_.size());
}

uint64_t Learner::Bytes(const MatrixShape& shape) {
  static constexpr uint64_t kValues = 6;  // weights, encoded, gradient, two moments, latent codes
  return shape.rows * shape.cols * kValues * sizeof(float);
}

void Learner::Step(const Matrix& gradient, const StepSize& size) {
  if (encoded_.codec.element != Element::kGroupInt) return StepFloat(gradient, size);
  const size_t groups = GroupsPerRow(encoded_.codec, encoded_.shape.cols);
  for (size_t r = 0; r < encoded_.shape.rows; ++r) {
    for (size_t g = 0; g < groups; ++g) StepGroup(r, g, gradient, size);
  }
}

void Learner::StepFloat(const Matrix& gradient, const StepSize& size) {
  const float step = unit_ * static_cast<float>(size.weights);
  for (size_t i = 0; i < encoded_.values.size(); ++i) {
    if (kept(i)) weights_->data()[i] -= step * adam_.Move(i, gradient.data()[i], size);
  }
}

// w = scale * (round(latent) - offset) + min: rounding passes gradients through to the latent code.
void Learner::StepGroup(size_t row, size_t group, const Matrix& gradient, const StepSize& size) {
  const Codec& codec = encoded_.codec;
  const size_t cols = encoded_.shape.cols, width = GroupWidth(codec, cols);
  const size_t begin = row * cols + group * width, end = row * cols + std::min(cols, (group + 1) * width);
  const size_t g = row * GroupsPerRow(codec, cols) + group;
  const float offset = codec.has_min ? 0.0f : static_cast<float>(1 << (codec.bits - 1));
  const float top = static_cast<float>((1 << codec.bits) - 1);
  float d_scale = 0, d_min = 0;
  for (size_t i = begin; i < end; ++i) {
    if (!kept(i)) continue;
    const float d = gradient.data()[i];
    d_scale += d * (static_cast<float>(encoded_.codes[i]) - offset);
    d_min += d;
    const float move = static_cast<float>(size.codes) * adam_.Move(i, d * scales_[g], size);
    latent_[i] = std::clamp(latent_[i] - move, 0.0f, top);
    encoded_.codes[i] = static_cast<uint8_t>(std::rint(latent_[i]));
  }
  const float step = base_[g] * static_cast<float>(size.scales);
  scales_[g] -= step * scale_adam_.Move(g, d_scale, size);
  if (codec.has_min) mins_[g] -= step * min_adam_.Move(g, d_min, size);
  for (size_t i = begin; i < end; ++i) {
    if (kept(i)) weights_->data()[i] = GridValue(codec, {scales_[g], codec.has_min ? mins_[g] : 0.0f}, encoded_.codes[i]);
  }
}

const QuantizedMatrix& Learner::Encode() {
  if (encoded_.codec.element == Element::kGroupInt) {
    for (size_t g = 0; g < scales_.size(); ++g) encoded_.scales[g] = F32ToF16(scales_[g]);
    for (size_t g = 0; g < mins_.size(); ++g) encoded_.mins[g] = F32ToF16(mins_[g]);
  } else {
    for (size_t i = 0; i < encoded_.values.size(); ++i) {
      encoded_.values[i] = kept(i) ? RoundToElement(encoded_.codec.element, weights_->data()[i]) : 0.0f;
    }
  }
  Dequantize(encoded_, {weights_->data(), static_cast<size_t>(weights_->size())});
  return encoded_;
}

}  // namespace moepack
