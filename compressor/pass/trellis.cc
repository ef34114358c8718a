#include "compressor/pass/trellis.h"

#include <algorithm>
#include <cmath>

namespace moepack {

// What a window leaves to the next one is a state. Windows are (state, branch): the branches of a state are the windows that
// lead to it.
struct TrellisTables {
  alignas(64) float values[kTrellisWindows];  // [branches, states]
  uint16_t from[kTrellisWindows];             // [branches, states] the state that a window was entered from
  uint16_t state_of[kTrellisWindows];         // of a window
  uint8_t code[kTrellisWindows];              // [branches, states] the newest code of a window
  size_t states, branches;
  double energy = 0;  // mean square of the values
  explicit TrellisTables(int bits) : states(kTrellisWindows >> bits), branches(size_t{1} << bits) {
    // A state by the window that goes on from it with code 0; states are numbered as those rise.
    const auto next = [bits](uint32_t w) { return NextTrellisWindow(bits, w, 0); };
    std::vector<uint32_t> carried;
    for (uint32_t w = 0; w < kTrellisWindows; ++w) carried.push_back(next(w));
    std::sort(carried.begin(), carried.end());
    carried.erase(std::unique(carried.begin(), carried.end()), carried.end());
    const auto number = [&carried](uint32_t left) {
      return static_cast<uint16_t>(std::lower_bound(carried.begin(), carried.end(), left) - carried.begin());
    };
    const uint32_t newest = NextTrellisWindow(bits, 0, (1u << bits) - 1);
    std::vector<size_t> found(states, 0);
    for (uint32_t w = 0; w < kTrellisWindows; ++w) {
      const uint16_t state = state_of[w] = number(next(w));
      const size_t at = found[state]++ * states + state;
      values[at] = TrellisValue(bits, w);
      energy += static_cast<double>(values[at]) * static_cast<double>(values[at]) / kTrellisWindows;
      from[at] = number(w & ~newest);
      for (uint32_t c = 0; c < branches; ++c) {
        if (NextTrellisWindow(bits, 0, c) == (w & newest)) code[at] = static_cast<uint8_t>(c);
      }
    }
  }
};

namespace {

constexpr float kUnreachable = 1e30f;

const TrellisTables& TablesOf(int bits) {
  static const TrellisTables tables[] = {TrellisTables(2), TrellisTables(3), TrellisTables(4), TrellisTables(5),
                                         TrellisTables(6)};
  return tables[bits - 2];
}

using Lanes = float __attribute__((vector_size(32)));
constexpr size_t kLanes = 8;
constexpr size_t PeriodOf(size_t states, size_t branches) { return std::max(states / branches, kLanes); }

// Costs of the best paths one column on. The state that branch b leads to state s from depends on b and s % kPeriod alone:
// arriving[b, kPeriod] are their costs.
template <int kBits>
inline __attribute__((always_inline)) void StepLanes(const TrellisTables& tables, const float* arriving, float target,
                                                     float weight, float* next) {
  constexpr size_t kStates = kTrellisWindows >> kBits, kBranches = size_t{1} << kBits;
  constexpr size_t kPeriod = PeriodOf(kStates, kBranches);
  for (size_t state = 0; state < kStates; state += kLanes) {
    Lanes best;
    for (size_t b = 0; b < kBranches; ++b) {
      Lanes value, cost;
      __builtin_memcpy(&value, &tables.values[b * kStates + state], sizeof(value));
      __builtin_memcpy(&cost, &arriving[b * kPeriod + state % kPeriod], sizeof(cost));
      const Lanes error = target - value;
      cost += weight * (error * error);
      best = b == 0 ? cost : cost < best ? cost : best;
    }
    __builtin_memcpy(next + state, &best, sizeof(best));
  }
}

inline __attribute__((always_inline)) void StepBits(int bits, const TrellisTables& tables, const float* arriving,
                                                    float target, float weight, float* next) {
  if (bits == 2) return StepLanes<2>(tables, arriving, target, weight, next);
  if (bits == 3) return StepLanes<3>(tables, arriving, target, weight, next);
  if (bits == 4) return StepLanes<4>(tables, arriving, target, weight, next);
  if (bits == 5) return StepLanes<5>(tables, arriving, target, weight, next);
  StepLanes<6>(tables, arriving, target, weight, next);
}

using StepFunction = void (*)(int bits, const TrellisTables& tables, const float* arriving, float target, float weight,
                              float* next);

void StepAnywhere(int bits, const TrellisTables& tables, const float* arriving, float target, float weight, float* next) {
  StepBits(bits, tables, arriving, target, weight, next);
}

#if defined(__x86_64__)
// The same operations on wider registers: the same bits.
__attribute__((target("avx2"))) void StepAvx2(int bits, const TrellisTables& tables, const float* arriving, float target,
                                              float weight, float* next) {
  StepBits(bits, tables, arriving, target, weight, next);
}
const StepFunction kStep = __builtin_cpu_supports("avx2") ? StepAvx2 : StepAnywhere;
#else
const StepFunction kStep = StepAnywhere;
#endif

}  // namespace

TrellisSearch::TrellisSearch(int bits) : bits_(bits), tables_(TablesOf(bits)) {}

void TrellisSearch::Find(std::span<const float> targets, std::span<const float> importance, uint32_t window,
                         std::optional<uint32_t> end, std::span<uint8_t> codes) {
  const size_t states = tables_.states, branches = tables_.branches, period = PeriodOf(states, branches);
  costs_.resize(std::max(costs_.size(), targets.size() + 1));
  costs_[0].fill(kUnreachable);
  costs_[0][tables_.state_of[window]] = 0;
  alignas(64) float arriving[64 * kLanes];  // the most: branches of 6 bits
  for (size_t c = 0; c < targets.size(); ++c) {
    for (size_t b = 0; b < branches; ++b) {
      for (size_t s = 0; s < period; ++s) arriving[b * period + s] = costs_[c][tables_.from[b * states + s]];
    }
    kStep(bits_, tables_, arriving, targets[c], importance[c], costs_[c + 1].data());
  }
  const std::array<float, kMostStates>& last = costs_[targets.size()];
  size_t state = end ? tables_.state_of[*end]
                     : static_cast<size_t>(std::min_element(last.begin(), last.begin() + static_cast<ptrdiff_t>(states)) -
                                           last.begin());
  for (size_t c = targets.size(); c-- > 0;) {
    size_t best = 0;
    float least = 0;
    for (size_t b = 0; b < branches; ++b) {
      const float error = targets[c] - tables_.values[b * states + state];
      const float cost = costs_[c][tables_.from[b * states + state]] + importance[c] * (error * error);
      if (b == 0 || cost < least) best = b, least = cost;
    }
    codes[c] = tables_.code[best * states + state];
    state = tables_.from[best * states + state];
  }
}

float TrellisSearch::FindScale(std::span<const float> weights, std::span<const float> importance, uint32_t window) {
  static constexpr float kMultiples[][3] = {
      {0.92f, 1.04f, 1.16f}, {0.98f, 1.10f, 1.22f}, {1.06f, 1.18f, 1.30f}, {1.16f, 1.29f, 1.42f}, {1.26f, 1.40f, 1.54f}};
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
  const auto spread = static_cast<float>(std::sqrt(sum / all / tables_.energy));
  targets_.resize(weights.size());
  codes_.resize(weights.size());
  double least = 0;
  float best = 0;
  for (const float multiple : kMultiples[bits_ - 2]) {
    const float scale = RoundToElement(Element::kF16, spread * multiple);
    if (!(scale > 0)) continue;
    for (size_t c = 0; c < weights.size(); ++c) targets_[c] = weights[c] / scale;
    Find(targets_, importance_, window, std::nullopt, codes_);
    double wv = 0, vv = 0;
    uint32_t at = window;
    for (size_t c = 0; c < weights.size(); ++c) {
      at = NextTrellisWindow(bits_, at, codes_[c]);
      const double value = TrellisValue(bits_, at), weight = static_cast<double>(importance_[c]) * value;
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
  TrellisSearch search(out->codec.bits);
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
      for (size_t c = begin; c < end; ++c) window = NextTrellisWindow(out->codec.bits, window, codes[c]);
    }
  }
}

}  // namespace moepack
