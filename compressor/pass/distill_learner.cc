#include "compressor/pass/distill_learner.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "compressor/pass/quantize.h"

namespace moepack {
namespace {

constexpr float kMeanDecay = 0.9f, kSquareDecay = 0.98f, kTiny = 1e-20f;
constexpr double kWarmUpShare = 0.05;

bool Kept(const QuantizedMatrix& encoded, size_t i) { return encoded.mask.empty() || encoded.mask[i] != 0; }

}  // namespace

StepSize StepSizeAt(uint64_t step, uint64_t steps, double rate, double code_rate) {
  const double at = static_cast<double>(step), warm = std::max(1.0, kWarmUpShare * static_cast<double>(steps));
  const double left = (at - warm) / std::max(1.0, static_cast<double>(steps) - warm);
  const double shape = at < warm ? at / warm : 0.5 * (1 + std::cos(std::numbers::pi * left));
  StepSize size{.weights = rate * shape, .scales = rate * shape, .codes = code_rate * shape};
  size.mean_scale = static_cast<float>(1 / (1 - std::pow(static_cast<double>(kMeanDecay), at)));
  size.square_scale = static_cast<float>(1 / (1 - std::pow(static_cast<double>(kSquareDecay), at)));
  return size;
}

float Adam::Move(size_t i, float gradient, const StepSize& size) {
  mean_[i] += (1 - kMeanDecay) * (gradient - mean_[i]);
  square_[i] += (1 - kSquareDecay) * (gradient * gradient - square_[i]);
  return mean_[i] * size.mean_scale / (std::sqrt(square_[i] * size.square_scale) + kTiny);
}

Learner::Learner(const QuantizedMatrix& encoded, Learns learns) {
  const size_t count = encoded.shape.rows * encoded.shape.cols;
  if (!encoded.codec.coded()) {
    latent_.resize(count);
    Dequantize(encoded, latent_);
    double energy = 0;
    size_t kept = 0;
    for (size_t i = 0; i < count; ++i) {
      kept += Kept(encoded, i);
      energy += static_cast<double>(latent_[i]) * static_cast<double>(latent_[i]);
    }
    unit_ = static_cast<float>(std::sqrt(energy / static_cast<double>(std::max<size_t>(kept, 1))));
    adam_.Resize(count);
    return;
  }
  if (learns == Learns::kAll && encoded.codec.element == Element::kGroupInt) {
    latent_.assign(encoded.codes.begin(), encoded.codes.end());
    adam_.Resize(count);
  }
  for (uint16_t bits : encoded.scales) scales_.push_back(F16ToF32(bits));
  for (uint16_t bits : encoded.mins) mins_.push_back(F16ToF32(bits));
  for (float scale : scales_) base_.push_back(std::abs(scale));
  scale_adam_.Resize(scales_.size());
  min_adam_.Resize(mins_.size());
}

uint64_t Learner::Bytes(const Codec& codec, const MatrixShape& shape, Learns learns) {
  static constexpr uint64_t kValues = 3, kScaleValues = 7;  // latent and two moments; with a minimum and its moments
  const bool integer = codec.coded();
  const uint64_t scales = integer ? shape.rows * GroupsPerRow(codec, shape.cols) : 0;
  const uint64_t weights = !integer || learns == Learns::kAll ? shape.rows * shape.cols : 0;
  return (weights * kValues + scales * kScaleValues) * sizeof(float);
}

std::vector<std::span<float>> Learner::State() {
  std::vector<std::span<float>> out = {latent_, scales_, mins_};
  for (Adam* adam : {&adam_, &scale_adam_, &min_adam_}) {
    for (const std::span<float> moments : adam->state()) out.push_back(moments);
  }
  return out;
}

void Learner::Apply(QuantizedMatrix* encoded) const {
  if (!encoded->codec.coded()) {
    for (size_t i = 0; i < latent_.size(); ++i)
      encoded->values[i] = Kept(*encoded, i) ? RoundToElement(encoded->codec.element, latent_[i]) : 0.0f;
    return;
  }
  for (size_t i = 0; i < latent_.size(); ++i) {
    if (Kept(*encoded, i)) encoded->codes[i] = static_cast<uint8_t>(std::rint(latent_[i]));
  }
  for (size_t g = 0; g < scales_.size(); ++g) encoded->scales[g] = F32ToF16(scales_[g]);
  for (size_t g = 0; g < mins_.size(); ++g) encoded->mins[g] = F32ToF16(mins_[g]);
}

void Learner::Step(const Matrix& gradient, const QuantizedMatrix& encoded, const StepSize& size) {
  if (!encoded.codec.coded()) return StepFloat(gradient, encoded, size);
  const size_t groups = GroupsPerRow(encoded.codec, encoded.shape.cols);
  for (size_t r = 0; r < encoded.shape.rows; ++r) {
    for (size_t g = 0; g < groups; ++g) StepGroup(r, g, gradient, encoded, size);
  }
}

void Learner::StepFloat(const Matrix& gradient, const QuantizedMatrix& encoded, const StepSize& size) {
  const float step = unit_ * static_cast<float>(size.weights);
  for (size_t i = 0; i < latent_.size(); ++i) {
    if (Kept(encoded, i)) latent_[i] -= step * adam_.Move(i, gradient.data()[i], size);
  }
}

// w = scale * (round(latent) - offset) + min: rounding passes gradients through to the latent code.
void Learner::StepGroup(size_t row, size_t group, const Matrix& gradient, const QuantizedMatrix& encoded,
                        const StepSize& size) {
  const Codec& codec = encoded.codec;
  const size_t cols = encoded.shape.cols, width = GroupWidth(codec, cols);
  const size_t begin = row * cols + group * width, end = row * cols + std::min(cols, (group + 1) * width);
  const size_t g = row * GroupsPerRow(codec, cols) + group;
  const float offset = codec.has_min ? 0.0f : static_cast<float>(1 << (codec.bits - 1));
  const float top = static_cast<float>((1 << codec.bits) - 1), scale = scales_[g];
  float d_scale = 0, d_min = 0;
  const bool trellis = codec.element == Element::kTrellis;
  uint32_t window = 0;
  for (size_t i = std::max(row * cols, begin - std::min<size_t>(begin, TrellisSpan(codec.bits) - 1)); trellis && i < begin;
       ++i)
    window = NextTrellisWindow(codec.bits, window, encoded.codes[i]);
  for (size_t i = begin; i < end; ++i) {
    if (!Kept(encoded, i)) continue;
    const float d = gradient.data()[i];
    if (trellis) window = NextTrellisWindow(codec.bits, window, encoded.codes[i]);
    d_scale +=
        d * (trellis ? static_cast<float>(TrellisValue(codec.bits, window)) : static_cast<float>(encoded.codes[i]) - offset);
    d_min += d;
    if (latent_.empty()) continue;
    const float move = static_cast<float>(size.codes) * adam_.Move(i, d * scale, size);
    latent_[i] = std::clamp(latent_[i] - move, 0.0f, top);
  }
  const float step = base_[g] * static_cast<float>(size.scales);
  scales_[g] -= step * scale_adam_.Move(g, d_scale, size);
  if (codec.has_min) mins_[g] -= step * min_adam_.Move(g, d_min, size);
}

}  // namespace moepack
