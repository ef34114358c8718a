#include "compressor/pass/trellis.h"

#include <algorithm>
#include <cmath>

namespace moepack {
namespace {

constexpr float kUnreachable = 1e30f;
constexpr size_t kStates = 256, kBranches = 4, kLow = kStates / kBranches;

// Values by the oldest code of a window and its four others: [oldest][window >> 2].
struct ValueTable {
  alignas(64) float of[kBranches][kStates];
  double energy = 0;  // mean square
  ValueTable() {
    for (uint32_t w = 0; w < kTrellisWindows; ++w) {
      const float value = TrellisValue(w);
      of[w & 3][w >> 2] = value;
      energy += static_cast<double>(value) * static_cast<double>(value) / kTrellisWindows;
    }
  }
};

const ValueTable& Values() {
  static const ValueTable table;
  return table;
}

using Lanes = float __attribute__((vector_size(32)));
constexpr size_t kLanes = 8;

// Costs of the best paths one column on. The windows into state s come from the states (s << 2 | oldest) without the two
// highest bits: arriving[oldest][s % kLow].
inline __attribute__((always_inline)) void StepLanes(const float (*arriving)[kLow], float target, float weight, float* next) {
  const ValueTable& values = Values();
  for (size_t state = 0; state < kStates; state += kLanes) {
    Lanes best;
    for (size_t o = 0; o < kBranches; ++o) {
      Lanes value, cost;
      __builtin_memcpy(&value, &values.of[o][state], sizeof(value));
      __builtin_memcpy(&cost, &arriving[o][state % kLow], sizeof(cost));
      const Lanes error = target - value;
      cost += weight * (error * error);
      best = o == 0 ? cost : cost < best ? cost : best;
    }
    __builtin_memcpy(next + state, &best, sizeof(best));
  }
}

using StepFunction = void (*)(const float (*arriving)[kLow], float target, float weight, float* next);

void StepAnywhere(const float (*arriving)[kLow], float target, float weight, float* next) {
  StepLanes(arriving, target, weight, next);
}

#if defined(__x86_64__)
// The same operations on wider registers: the same bits.
__attribute__((target("avx2"))) void StepAvx2(const float (*arriving)[kLow], float target, float weight, float* next) {
  StepLanes(arriving, target, weight, next);
}
const StepFunction kStep = __builtin_cpu_supports("avx2") ? StepAvx2 : StepAnywhere;
#else
const StepFunction kStep = StepAnywhere;
#endif

}  // namespace

void TrellisSearch::Find(std::span<const float> targets, std::span<const float> importance, uint32_t window,
                         std::optional<uint8_t> end, std::span<uint8_t> codes) {
  costs_.resize(std::max(costs_.size(), targets.size() + 1));
  costs_[0].fill(kUnreachable);
  costs_[0][window >> 2] = 0;
  alignas(64) float arriving[kBranches][kLow];
  for (size_t c = 0; c < targets.size(); ++c) {
    for (size_t s = 0; s < kLow; ++s) {
      for (size_t o = 0; o < kBranches; ++o) arriving[o][s] = costs_[c][s << 2 | o];
    }
    kStep(arriving, targets[c], importance[c], costs_[c + 1].data());
  }
  const std::array<float, kStates>& last = costs_[targets.size()];
  size_t state = end ? *end : static_cast<size_t>(std::min_element(last.begin(), last.end()) - last.begin());
  const ValueTable& values = Values();
  for (size_t c = targets.size(); c-- > 0;) {
    codes[c] = static_cast<uint8_t>(state / kLow);
    size_t best = 0;
    float least = 0;
    for (size_t o = 0; o < kBranches; ++o) {
      const float error = targets[c] - values.of[o][state];
      const float cost = costs_[c][(state % kLow) << 2 | o] + importance[c] * (error * error);
      if (o == 0 || cost < least) best = o, least = cost;
    }
    state = (state % kLow) << 2 | best;
  }
}

float TrellisSearch::FindScale(std::span<const float> weights, std::span<const float> importance, uint32_t window) {
  static constexpr float kMultiples[] = {0.92f, 1.04f, 1.16f};
  double sum = 0, all = 0;
  for (size_t c = 0; c < weights.size(); ++c) {
    sum += static_cast<double>(importance[c]) * static_cast<double>(weights[c]) * static_cast<double>(weights[c]);
    all += static_cast<double>(importance[c]);
  }
  importance_.assign(importance.begin(), importance.end());
  if (!(all > 0)) {
    importance_.assign(weights.size(), 1.0f);
    all = static_cast<double>(weights.size());
    for (const float w : weights) sum += static_cast<double>(w) * static_cast<double>(w);
  }
  const auto spread = static_cast<float>(std::sqrt(sum / all / Values().energy));
  targets_.resize(weights.size());
  codes_.resize(weights.size());
  double least = 0;
  float best = 0;
  for (const float multiple : kMultiples) {
    const float scale = RoundToElement(Element::kF16, spread * multiple);
    if (!(scale > 0)) continue;
    for (size_t c = 0; c < weights.size(); ++c) targets_[c] = weights[c] / scale;
    Find(targets_, importance_, window, std::nullopt, codes_);
    double wv = 0, vv = 0;
    uint32_t at = window;
    for (size_t c = 0; c < weights.size(); ++c) {
      at = NextTrellisWindow(at, codes_[c]);
      const double value = TrellisValue(at), weight = static_cast<double>(importance_[c]) * value;
      wv += weight * static_cast<double>(weights[c]);
      vv += weight * value;
    }
    // What least squares takes off the weights' energy.
    if (!(vv > 0) || !(wv * wv / vv > least)) continue;
    const float fitted = RoundToElement(Element::kF16, static_cast<float>(wv / vv));
    if (!(fitted > 0)) continue;
    least = wv * wv / vv;
    best = fitted;
  }
  return best;
}

void TrellisRows(const Matrix& weights, std::span<const float> importance, size_t row_begin, size_t row_end,
                 QuantizedMatrix* out) {
  const size_t cols = out->shape.cols, groups = GroupsPerRow(out->codec, cols), width = GroupWidth(out->codec, cols);
  const std::vector<float> equal(importance.empty() ? cols : 0, 1.0f);
  const std::span<const float> weight = importance.empty() ? std::span<const float>(equal) : importance;
  TrellisSearch search;
  std::vector<float> targets;
  for (size_t r = row_begin; r < row_end; ++r) {
    const float* row = weights.data() + r * cols;
    uint8_t* codes = out->codes.data() + r * cols;
    uint32_t window = 0;
    for (size_t g = 0; g < groups; ++g) {
      const size_t begin = g * width, end = std::min(cols, begin + width);
      const std::span<const float> part = weight.subspan(begin, end - begin);
      out->scales[r * groups + g] = F32ToF16(search.FindScale({row + begin, end - begin}, part, window));
      const float scale = F16ToF32(out->scales[r * groups + g]);
      targets.resize(end - begin);
      for (size_t c = begin; c < end; ++c) targets[c - begin] = scale > 0 ? row[c] / scale : 0.0f;
      search.Find(targets, part, window, std::nullopt, {codes + begin, end - begin});
      for (size_t c = begin; c < end; ++c) window = NextTrellisWindow(window, codes[c]);
    }
  }
}

}  // namespace moepack
