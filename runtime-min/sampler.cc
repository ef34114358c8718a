#include "runtime-min/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace moepack::runtime {

Random::Random(uint64_t seed) {
  for (uint64_t& s : state_) {
    seed += 0x9e3779b97f4a7c15u;
    uint64_t z = seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    s = z ^ (z >> 31);
  }
}

uint64_t Random::Next() {
  const uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
  const uint64_t t = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= t;
  state_[3] = std::rotl(state_[3], 45);
  return result;
}

Status ValidateSamplerOptions(const SamplerOptions& options) {
  if (!std::isfinite(options.temperature) || options.temperature < 0) {
    return Status(ErrorCode::kUsage, "--temperature: expected a number of at least 0");
  }
  if (!(options.top_p > 0 && options.top_p <= 1))
    return Status(ErrorCode::kUsage, "--top-p: expected a number above 0, at most 1");
  return Status::Ok();
}

int32_t Argmax(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best] || std::isnan(logits[best])) best = i;
  }
  return static_cast<int32_t>(best);
}

// Sorts what is kept, most likely first; ids break ties, so that the order is total.
size_t Sampler::KeepTopK() {
  const auto more_likely = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  const size_t count = candidates_.size();
  const size_t kept = options_.top_k == 0 ? count : std::min<size_t>(options_.top_k, count);
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<ptrdiff_t>(kept), candidates_.end(), more_likely);
  return kept;
}

// Of `count` candidates with unnormalised probabilities.
size_t Sampler::KeepTopP(size_t count) const {
  double total = 0;
  for (size_t i = 0; i < count; ++i) total += candidates_[i].probability;
  double sum = 0;
  for (size_t i = 0; i < count; ++i) {
    sum += candidates_[i].probability;
    if (sum >= options_.top_p * total) return i + 1;
  }
  return count;
}

int32_t Sampler::Sample(std::span<const float> logits) {
  if (options_.temperature == 0 || logits.size() == 1) return Argmax(logits);
  candidates_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    candidates_[i] = {std::isnan(logits[i]) ? -INFINITY : logits[i], static_cast<int32_t>(i), 0};
  }
  size_t kept = KeepTopK();
  if (!std::isfinite(candidates_[0].logit)) return candidates_[0].id;
  for (size_t i = 0; i < kept; ++i) {
    const double scaled = (double{candidates_[i].logit} - candidates_[0].logit) / options_.temperature;
    candidates_[i].probability = std::exp(scaled);
  }
  if (options_.top_p < 1) kept = KeepTopP(kept);
  double total = 0;
  for (size_t i = 0; i < kept; ++i) total += candidates_[i].probability;
  double left = random_.NextDouble() * total;
  for (size_t i = 0; i + 1 < kept; ++i) {
    left -= candidates_[i].probability;
    if (left < 0) return candidates_[i].id;
  }
  return candidates_[kept - 1].id;
}

}  // namespace moepack::runtime
